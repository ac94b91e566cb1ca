"""Commands that take a recipe: `--config FILE`, overrides of its fields, and flags of their own."""

import functools
import importlib.util
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mnist_flax.errors import UserError
from mnist_flax.run import fields
from mnist_flax.runtime import background, hosts, signals
from mnist_flax.runtime.hosts import LostProcess

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="The recipe, a file of configs/ by default.", lock_config=True
)


def start(main: Callable[[ConfigDict], None], default_recipe: str = "default.py") -> None:
    """Calls `main` with the configuration that the command line asks for, and exits.

    A `UserError` is one line and status 2. SIGTERM and Ctrl-C end with a line that says how to
    resume, and status 143 and 130. If another process of the run has died, it is one line and
    status 1.

    Args:
      main: of the command.
      default_recipe: the file of `configs/` to use without `--config`.
    """

    def run(argv: Sequence[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)  # JAX would name every backend it does not find
        main(_CONFIG.value)

    signals.install()
    try:
        app.run(run, flags_parser=functools.partial(_parse_flags, default_recipe))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _exit(2)
    except signals.Interrupted as error:
        resume = f"; to resume: {_again(error.workdir)}" if error.workdir else ""
        print(f"{error}{resume}", file=sys.stderr)
        _exit(error.status)
    except LostProcess as error:
        print(f"error: {error}; to resume, start them all again: {_again('')}", file=sys.stderr)
        _exit(1, at_once=True)  # otherwise JAX would wait for the process that is gone


def _exit(status: int, at_once: bool = False) -> None:
    """Exits, without Python's own clean-up if that could not end well."""
    if not at_once and background.is_abandoned():
        hosts.leave()
    if at_once or background.is_abandoned():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _again(workdir: str) -> str:
    """Returns the command line of this process, with the workdir that it chose by itself."""
    module = sys.modules["__main__"].__spec__
    arguments = list(sys.argv)
    if module:
        arguments = ["-m", module.name.removesuffix(".__main__"), *sys.argv[1:]]
    if workdir and not any(re.match(r"--?workdir(=|$)", argument) for argument in arguments):
        arguments.append(f"--workdir={workdir}")
    return shlex.join(["python", *arguments])


def _find_recipe(name: str) -> pathlib.Path:
    """Returns the path of a recipe that is part of the project, wherever that is installed."""
    package = importlib.util.find_spec("configs")
    folders = list(package.submodule_search_locations or []) if package else []
    if not folders:  # the installation has no recipes
        raise UserError("--config is missing; allowed: a recipe")
    return pathlib.Path(folders[0]) / name


def _parse_flags(default_recipe: str, argv: Sequence[str]) -> list[str]:
    """Parses and checks the command line.

    Raises:
      UserError: one line on what is wrong and what is allowed.
    """
    _check_overrides(argv)
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={_find_recipe(default_recipe)}", *argv[1:]]
    try:
        positional = flags.FLAGS(argv)[1:]
        recipe = config_flags.get_config_filename(flags.FLAGS["config"])
        if not os.path.isfile(recipe):
            raise UserError(f"--config={recipe}: no such file; allowed: a recipe of configs/")
        fields.check(_CONFIG.value)
    except UserError:
        raise
    except Exception as error:  # of absl, of ml_collections, or in the recipe itself
        raise UserError(_explain(error)) from None
    if positional:
        own = flags.FLAGS.get_key_flags_for_module(argv[0])
        allowed = ", ".join(f"--{flag.name}" for flag in own)
        raise UserError(f"{positional[0]!r} is not a flag; allowed: {allowed}")
    return list(argv[:1])


def _check_overrides(arguments: Sequence[str]) -> None:
    """Checks that every `--config.FIELD` argument names a field.

    Raises:
      UserError: names the unknown field and the fields of its group.
    """
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in fields.FIELDS:
            raise fields.unknown(match[1])


def _explain(error: Exception) -> str:
    """Returns one line for an error that parsing flags or loading a recipe raised."""
    text = str(error).strip()
    if "Traceback" in text:  # of a recipe; its last line names the error
        text = text.splitlines()[-1]
    text = " ".join(text.split())
    match = re.search(r"--config\.([\w.]+)=", text)
    if match and match[1] in fields.FIELDS:
        return f"{text}; allowed: {fields.FIELDS[match[1]].allowed}"
    return text if isinstance(error, flags.Error) else f"{type(error).__name__}: {text}"

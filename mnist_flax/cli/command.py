"""Commands that take a recipe: `--config FILE`, its overrides, and their own flags."""

import functools
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mnist_flax.cli import fields as config_lib
from mnist_flax.errors import LostProcess, UserError
from mnist_flax.runtime import signals

_RECIPES = pathlib.Path(__file__).parents[2] / "configs"
_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="The recipe; a default of configs/ if none.", lock_config=True
)


def start(main: Callable[[ConfigDict], None], default_recipe: str = "default.py") -> None:
    """Calls `main` with the configuration that the command line asks for, and exits.

    `default_recipe` is the file of `configs/` that is taken where `--config` is not given.

    A `UserError` is one line and status 2; SIGTERM and Ctrl-C are a line that says how to go on,
    and status 143 and 130; another process of the run that has died is a line and status 1.
    """

    def run(argv: Sequence[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)  # else JAX tells of every backend it does not find
        main(_CONFIG.value)

    signals.install()
    try:
        app.run(run, flags_parser=functools.partial(_parse_flags, default_recipe))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except signals.Interrupted as error:
        go_on = f"; to go on: {_again(error.workdir)}" if error.workdir else ""
        print(f"{error}{go_on}", file=sys.stderr)
        sys.exit(error.status)
    except LostProcess as error:
        print(f"error: {error}; to go on, start them all again: {_again('')}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # at a regular exit, JAX would wait for the process that is gone


def _again(workdir: str) -> str:
    """The command line of this process, with the workdir that it chose by itself."""
    module = sys.modules["__main__"].__spec__
    arguments = ["-m", module.name, *sys.argv[1:]] if module else list(sys.argv)
    if workdir and not any(re.match(r"--?workdir(=|$)", argument) for argument in arguments):
        arguments.append(f"--workdir={workdir}")
    return shlex.join(["python", *arguments])


def _parse_flags(default_recipe: str, argv: Sequence[str]) -> list[str]:
    """Parses and checks everything that was asked for.

    Raises:
      UserError: says in one line what is wrong and what is allowed.
    """
    config_lib.check_overrides(argv)
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={_RECIPES / default_recipe}", *argv[1:]]
    try:
        positional = flags.FLAGS(argv)[1:]
        recipe = config_flags.get_config_filename(flags.FLAGS["config"])
        if not os.path.isfile(recipe):
            raise UserError(f"--config={recipe}: no such file; allowed: a recipe of configs/")
        config_lib.check(_CONFIG.value)
    except UserError:
        raise
    except Exception as error:  # of absl, of ml_collections, or in the recipe itself
        raise UserError(config_lib.explain(error)) from None
    if positional:
        own = flags.FLAGS.get_key_flags_for_module(argv[0])
        allowed = ", ".join(f"--{flag.name}" for flag in own)
        raise UserError(f"{positional[0]!r} is not a flag; allowed: {allowed}")
    return argv[:1]

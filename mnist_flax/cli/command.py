"""Commands that take a recipe: `--config FILE`, overrides of its fields, and flags of their own."""

import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mnist_flax.errors import LostProcess, UserError
from mnist_flax.runtime import background, interpreter, output, signals

_arguments: list[str] = []  # in which ml_collections looks for overrides
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="The recipe, a file of configs/ by default.",
    lock_config=True,
    sys_argv=_arguments,
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
        if background.is_abandoned():
            _exit(0)

    output.protect()
    try:
        with signals.handled():
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
    finally:
        if interpreter.goes_on():
            for flag in list(flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])):
                delattr(flags.FLAGS, flag.name)  # a second run of the file defines it again


def _exit(status: int, at_once: bool = False) -> None:
    """Exits, without Python's own clean-up if that could not end well."""
    if not at_once and background.is_abandoned():
        from mnist_flax.runtime import hosts

        hosts.leave()
    if (at_once or background.is_abandoned()) and not interpreter.goes_on():
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


def _parse_flags(default_recipe: str, argv: Sequence[str]) -> list[str]:
    try:
        from mnist_flax.cli import arguments  # imports JAX
    except ValueError as error:  # JAX refuses a variable of the environment
        raise UserError(str(error)) from None
    arguments.parse(argv, default_recipe, _CONFIG, _arguments)
    return list(argv[:1])

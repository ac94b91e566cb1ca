"""How a command starts, and how it ends: signals, one-line errors and the exit status."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from mnist_flax.errors import UserError
from mnist_flax.runtime import process, signals

flags.disclaim_key_flags()  # a flag belongs to the command that calls `run`


def _parse(argv: list[str]) -> list[str]:
    return flags.FLAGS(argv)[1:]


def run(
    main: Callable[[list[Any]], None], parse: Callable[[list[str]], list[Any]] = _parse
) -> None:
    """Calls `main` with what `parse` makes of the command line, and exits.

    A `UserError` prints one line and exits with status 2. SIGTERM and Ctrl-C print how to resume,
    and exit with status 143 and 130.

    Args:
      main: the command's own function.
      parse: by default, it parses the flags and returns the other arguments.
    """
    _prepare()
    status: Any = 0
    text = ""
    try:
        with signals.handled():
            main(_parsed(parse))
    except UserError as error:
        status, text = 2, f"error: {error}"
    except signals.Interrupted as error:
        resume = f"; to resume: {process.resuming_command(error.workdir)}" if error.workdir else ""
        status, text = 128 + error.number, f"{error}{resume}"
    except SystemExit as leaving:  # of a recipe, or of absl, which exits with 1 after its help
        is_number = isinstance(leaving.code, int | None)
        status, text = (leaving.code or 0, "") if is_number else (1, str(leaving.code))
        if any(re.fullmatch("--?help(short|full|xml)?", argument) for argument in sys.argv):
            status = 0
    except Exception:
        status, text = 1, traceback.format_exc()
    with contextlib.suppress(OSError):  # standard error may be gone
        if text:
            print(text.rstrip(), file=sys.stderr)
    _end(status)


def _prepare() -> None:
    # A closed stream becomes an open file: otherwise the next file would get its number.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        stream or open(os.devnull, "w")  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr)
    )
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="backslashreplace")  # for characters its encoding lacks
    if not process.goes_on():
        os.environ["MPLBACKEND"] = "agg"  # matplotlib could not be imported with an unknown one
    # A thread that draws may keep Python's lock for this many seconds while the main thread waits
    # to start a step. With Python's default of 0.005, steps of 0.4 ms took 2 ms.
    sys.setswitchinterval(0.001)


def _parsed(parse: Callable[[list[str]], list[Any]]) -> list[Any]:
    app.define_help_flags()
    logging.set_verbosity(logging.ERROR)  # ml_collections would warn of what is an error here
    try:
        return parse(sys.argv)
    except (flags.Error, OSError, ValueError) as error:  # absl raises some of each
        raise UserError(" ".join(str(error).split())) from None


def _end(status: int) -> None:
    """Ends the process without Python's clean-up, which would wait for every thread."""
    if status != 1 and "jax" in sys.modules:  # 1: an error of this process, of which others learn
        from mnist_flax.runtime import hosts

        hosts.leave()
    if process.goes_on():
        _forget_flags()
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def _forget_flags() -> None:
    """Lets the next command in this process, for example in a notebook, define its flags."""
    own = {flag.name for flag in flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])}
    for name in own | {name for name in flags.FLAGS if name.startswith("config.")}:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()

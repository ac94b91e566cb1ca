"""How a command starts, and how it ends: signals, lost output, and one-line errors."""

import atexit
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from mnist_flax.cli import environment
from mnist_flax.errors import UserError
from mnist_flax.runtime import background, interpreter, output, process, signals, watchdog
from mnist_flax.runtime.signals import LostProcess


def run(
    main: Callable[[list[str]], None],
    parse: Callable[[Sequence[str]], list[str]] | None = None,
) -> None:
    """Calls `main` with the arguments that are not flags, and exits.

    A `UserError` prints one line and exits with status 2. SIGTERM and Ctrl-C print how to resume,
    and exit with status 143 and 130. If another process of the run failed or disappeared, it prints
    one line and exits with status 1.

    Args:
      main: the command's own function.
      parse: parses the command line, and returns the program's name and the arguments for `main`;
        by default, it parses the flags and checks the environment.
    """
    is_parsed = False

    def call(argv: list[str]) -> None:
        nonlocal is_parsed
        is_parsed = True
        logging.set_verbosity(logging.WARNING)  # JAX would name every backend it does not find
        main(argv[1:])

    _prepare()
    try:
        with signals.handled():
            app.run(call, flags_parser=parse or _parse)
    except SystemExit as leaving:
        _exit(leaving.code if is_parsed else 0)  # absl prints the help, and exits with 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _exit(2)
    except signals.Interrupted as error:
        _end_stopped(error)
    except LostProcess as error:
        end_lost(error)
    except Exception:
        _end_failed()
        raise
    finally:
        if interpreter.goes_on():
            _forget_flags()


def _prepare() -> None:
    output.protect()
    # A thread that draws may keep Python's lock for this many seconds while the main thread waits
    # to start a step. With Python's default of 0.005, steps of 0.4 ms took 2 ms.
    sys.setswitchinterval(0.001)
    if not interpreter.goes_on():
        atexit.register(_quit)  # before the imports that register others, so it runs after them


def _forget_flags() -> None:
    """Lets the next command in this process, for example in a notebook, define its flags."""
    own = {flag.name for flag in flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])}
    for name in own | {name for name in flags.FLAGS if name.startswith("config.")}:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        arguments = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        unknown = f"Unknown command line flag {error.flagname!r}"
        raise UserError(f"{unknown}; allowed: {own_flags(argv[0])}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--flagfile: {error}") from None
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    environment.check()
    return arguments


def own_flags(path: str) -> str:
    """Returns the flags of the command in the file `path`, separated by commas."""
    return ", ".join(f"--{flag.name}" for flag in flags.FLAGS.get_key_flags_for_module(path))


class _Ending:
    """How the command ends: its exit status, once known, and a lock for reporting a loss once."""

    status: int | None = None
    lost = threading.Lock()


def _end_stopped(error: signals.Interrupted) -> None:
    resume = f"; to resume: {again(error.workdir)}" if error.workdir else ""
    print(f"{error}{resume}", file=sys.stderr)
    # The others do not know of a signal that came before the run began, and wait for this process.
    _exit(error.status, at_once=not error.workdir and watchdog.is_watching())


def end_lost(error: LostProcess) -> None:
    """Ends this process, from any thread, because another process of the run is lost."""
    _Ending.lost.acquire()  # and never released, so that only one line is printed
    print(
        f"error: {error}; to resume, start all processes again: {again(error.workdir)}",
        file=sys.stderr,
    )
    _exit(1, at_once=True)  # otherwise JAX would wait for the lost process


def _end_failed() -> None:
    """Sets the exit status after an exception, and exits at once if other processes are waiting."""
    _Ending.status = 1  # Python prints the traceback before it exits
    if watchdog.is_watching():
        sys.excepthook(*sys.exc_info())
        _exit(1, at_once=True)  # tells the others that this process is lost


def _exit(code: Any, at_once: bool = False) -> None:
    """Exits with a code for `sys.exit`; `at_once` skips the steps at exit that could hang."""
    if not at_once:
        watchdog.leave()
    _Ending.status = code if isinstance(code, int) else int(bool(code))
    if not interpreter.goes_on():
        if not at_once and background.is_abandoned():
            from mnist_flax.runtime import hosts

            hosts.leave()
        if at_once or background.is_abandoned():
            _quit()
    sys.exit(code)


def _quit() -> None:
    """Ends the process without Python's clean-up, once its exit status is known.

    The clean-up ends every thread that tries to run Python from then on. JAX and Orbax have such
    threads, and those inside C++ code abort the process.
    """
    if _Ending.status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_Ending.status)


def again(workdir: str) -> str:
    """Returns this process's command line, with the workdir added if none was given."""
    words = process.command_line()
    if workdir and not any(re.match(r"--?workdir(=.|$)", word) for word in words):
        words.append(f"--workdir={workdir}")
    return shlex.join(words)

"""Handles SIGTERM, which a preemption sends, Ctrl-C and SIGHUP."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from mnist_flax.runtime import process

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NOTICE = b"\nSaving, then stopping. Press Ctrl-C again to quit at once\n"


class Interrupted(BaseException):
    """A signal asked the process to stop; its exit status is `128 + number`, as in shells.

    Like `KeyboardInterrupt`, it is not an `Exception`, so code that handles errors lets it pass.

    Args:
      number: the number of the signal.
      progress: how far the run has come, such as 'after epoch 3 of 20'.
      workdir: the folder to resume from; empty if there is none yet.
    """

    def __init__(self, number: int, progress: str = "", workdir: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name} {progress}".rstrip())
        self.number = number
        self.workdir = workdir


class _Received:
    """The first signal so far, and whether it waits for `received`."""

    number = 0
    deferred = False


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Makes the signals raise `Interrupted`, or wait for `received` inside `deferred`.

    Ctrl-C ends the process at once if an earlier signal asked it to stop. SIGHUP, which comes when
    the terminal closes, is ignored, here and in the processes that this one starts. In a notebook,
    the previous handlers are restored afterwards; elsewhere these stay, so that a signal cannot
    spoil the command's exit.
    """
    _Received.number = 0  # from an earlier run in this process
    before = {number: signal.signal(number, _receive) for number in _SIGNALS}
    if hasattr(signal, "SIGHUP"):  # Windows has none
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        if process.goes_on():
            _Received.number = 0  # a later `train.run` asks too
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Makes signals wait until `received` is called."""
    _Received.deferred = True
    try:
        yield
    finally:
        _Received.deferred = False


def received() -> int:
    """Returns the number of the first signal; 0 if none has come."""
    return _Received.number


def _receive(number: int, frame: FrameType | None) -> None:
    del frame
    if _Received.number:
        if number == signal.SIGINT and process.goes_on():
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            os._exit(128 + number)
        return  # some senders repeat SIGTERM
    _Received.number = number
    if not _Received.deferred:
        raise Interrupted(number)
    with contextlib.suppress(OSError):  # standard error may be gone
        os.write(2, _NOTICE)  # not print, which the signal may have interrupted

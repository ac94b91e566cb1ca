"""SIGTERM, which a preemption sends, Ctrl-C and SIGHUP: when they stop a run, what is printed."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from mnist_flax.runtime import interpreter

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NOTICE = b"\nstopping as soon as what is finished is on the disk; Ctrl-C stops at once\n"


class Interrupted(BaseException):
    """A signal asked the process to stop; its exit status is `128 + number`, as shells count.

    Like `KeyboardInterrupt`, it is no `Exception`, so that code that handles errors lets it pass.

    Args:
      number: of the signal.
      progress: how far the run has come, as in 'after epoch 3 of 20'.
      workdir: where it can be resumed; empty if there is nothing yet.
    """

    def __init__(self, number: int, progress: str = "", workdir: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name} {progress}".rstrip())
        self.number = number
        self.status = 128 + number
        self.workdir = workdir


class LostProcess(Exception):
    """Another process of a run on several hosts failed or is gone: one line, and status 1.

    Attributes:
      workdir: of the run of this process, once it has one; else empty.
    """

    workdir = ""


class _Received:
    """What has come so far, and whether it waits to be asked for."""

    number = 0
    deferred = False


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Makes the signals raise `Interrupted`, or wait for `received` inside `deferred`.

    Ctrl-C ends the process at once if it was asked to stop before. SIGHUP, which comes when the
    terminal goes away, is ignored, here and in the processes that this one starts. In a notebook,
    the handlers are afterwards what they were; elsewhere they stay, so that a signal cannot spoil
    Python's exit.
    """
    _Received.number = 0  # of an earlier run in this process
    before = {number: signal.signal(number, _receive) for number in _SIGNALS}
    if hasattr(signal, "SIGHUP"):  # Windows has none
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        if interpreter.goes_on():
            _Received.number = 0  # `train.run` asks too
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Makes signals wait until somebody asks `received`."""
    _Received.deferred = True
    try:
        yield
    finally:
        _Received.deferred = False


def received() -> int:
    """Returns the number of the signal that came first; 0 if none did."""
    return _Received.number


def _receive(number: int, frame: FrameType | None) -> None:
    del frame
    if _Received.number:
        if number == signal.SIGINT and interpreter.goes_on():
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            os._exit(128 + number)
        return  # some senders repeat SIGTERM
    _Received.number = number
    if not _Received.deferred:
        raise Interrupted(number)
    with contextlib.suppress(OSError):  # standard error may be gone
        os.write(2, _NOTICE)  # not print, which the signal may have interrupted

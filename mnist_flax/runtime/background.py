"""Runs work in order, on a thread of its own, while the main thread continues."""

import concurrent.futures
import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def lower_priority() -> None:
    """Lets other threads have the CPU whenever they need it, on Linux.

    This affects the calling thread, and the threads that it starts afterwards.
    """
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        with contextlib.suppress(OSError):  # some sandboxes forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


# Held while any thread but the main one imports a package that parses Python: before Python 3.11.8
# and 3.12.2, two threads that parse at once may raise `SystemError` (CPython's issue 106905).
IMPORTING = threading.Lock()

_abandoned: list[threading.Thread] = []


def attempt(what: str, warn: Callable[[str], None], job: Callable[..., Any], *args: Any) -> Any:
    """Returns `job(*args)`; if it raises, returns None after a warning that begins with `what`."""
    try:
        return job(*args)
    except Exception as error:
        warn(_line(what, error))
        return None


def is_abandoned() -> bool:
    """Whether an abandoned job is still running.

    Python or a library may wait for it for ever at exit: leave by `os._exit`.
    """
    return any(thread.is_alive() for thread in _abandoned)


def is_done(future: Future, seconds: float) -> bool:
    """Waits up to `seconds` for a future, and returns whether it is done."""
    return bool(concurrent.futures.wait([future], seconds).done)


class Background:
    """Runs jobs one after another on a daemon thread.

    A job that hangs delays only the jobs queued behind it: Python exits without waiting for it.

    Args:
      name: the name of the thread, which warnings begin with.
      warn: called with a line about the first job that raises; None: only its future says so.
      stop_on_error: whether to drop the jobs that follow one that raises.
    """

    def __init__(
        self, name: str, warn: Callable[[str], None] | None = None, stop_on_error: bool = False
    ):
        self._name = name
        self._warn = warn
        self._stop_on_error = stop_on_error
        self._failed = False
        self._given_up = False
        self._dropping = False
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether a job has raised."""
        return self._failed

    def submit(self, job: Callable[..., Any], *args: Any) -> Future:
        """Queues `job(*args)` and returns its future at once."""
        future: Future = Future()
        self._jobs.put((future, job, args))
        return future

    def close(self, timeout: float | None = None, drop: bool = False) -> bool:
        """Waits up to `timeout` seconds for the jobs queued so far; no others may follow.

        Args:
          timeout: None waits for ever.
          drop: whether to wait only for the job that is running, and drop the others.

        Returns:
          False if they take longer; their errors are then no longer reported.
        """
        self._dropping = drop
        self.finish()
        self._thread.join(timeout)
        self._given_up = self._thread.is_alive()
        if self._given_up:
            _abandoned.append(self._thread)
        return not self._given_up

    def finish(self) -> None:
        """Lets the thread end after the jobs queued so far; no others may follow."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            self._do(*item)
            del item  # otherwise its arguments would stay in memory until the next job

    def _do(self, future: Future, job: Callable[..., Any], args: tuple) -> None:
        if self._dropping or (self._failed and self._stop_on_error):
            future.cancel()
            return
        try:
            future.set_result(job(*args))
        except BaseException as error:  # SystemExit too, or whoever waits for it waits for ever
            if self._warn is not None and not self._failed and not self._given_up:
                self._warn(_line(self._name, error))
            self._failed = True
            future.set_exception(error)


def _line(what: str, error: BaseException) -> str:
    return f"{what}: {type(error).__name__}: {error}".splitlines()[0]

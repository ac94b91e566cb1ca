"""Work beside the training loop: in order, on a thread of its own, never raising into it."""

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any


def lower_priority() -> None:
    """Leaves the CPU to the other threads where they want it, on Linux.

    Holds for the calling thread, and for what it starts from then on.
    """
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        with contextlib.suppress(OSError):  # some sandboxes forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class Background:
    """Runs jobs one after another on a daemon thread.

    A job that raises is reported once by `warn`; `stop_on_error` then drops the jobs that follow,
    else they run. A job that hangs holds up nothing but the jobs behind it.
    """

    def __init__(self, name: str, warn: Callable[[str], None], stop_on_error: bool = False):
        self._name = name
        self._warn = warn
        self._stop_on_error = stop_on_error
        self._failed = False
        self._given_up = False
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether a job has raised."""
        return self._failed

    def submit(self, job: Callable[..., Any], *args: Any) -> None:
        """Queues `job(*args)` and returns at once."""
        self._jobs.put((job, args))

    def close(self, timeout: float | None = None) -> bool:
        """Waits up to `timeout` seconds for the jobs queued so far.

        Returns:
          False if they took longer; what becomes of them is then no longer said.
        """
        self._jobs.put(None)
        self._thread.join(timeout)
        self._given_up = self._thread.is_alive()
        return not self._given_up

    def _run(self) -> None:
        lower_priority()
        while (item := self._jobs.get()) is not None:
            if self._failed and self._stop_on_error:
                continue
            job, args = item
            try:
                job(*args)
            except Exception as error:  # whatever it is, training goes on
                if not self._failed and not self._given_up:
                    self._warn(f"{self._name}: {type(error).__name__}: {error}".splitlines()[0])
                self._failed = True

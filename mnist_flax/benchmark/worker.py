"""The benchmark's worker processes: one per implementation, which times a task when asked to."""

import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from mnist_flax.errors import UserError

_LEAST_SECONDS = 0.2  # the shortest measurement; faster tasks are repeated until it is reached
_SPAWN = multiprocessing.get_context("spawn")  # a fresh process, with its own environment


class Worker:
    """Starts a process that calls the function `prepare` of a module of this folder.

    `prepare` returns a description, the tasks by name, and a function that waits until a task's
    result is computed.

    Args:
      module: the name of the module; only the new process imports it.
      env: the environment variables that differ from ours.
      *args: the arguments of `prepare`.

    Attributes:
      about: the description.

    Raises:
      UserError: `prepare` raised it, or the process has ended.
    """

    def __init__(self, module: str, env: dict[str, str], *args: Any):
        self._pipe, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs, module, args), daemon=True)
        with mock.patch.dict(os.environ, env):
            process.start()
        theirs.close()  # so that reading fails once the process has ended
        self.about = self._answer()

    def measure(self, task: str) -> float:
        """Returns the seconds of a task."""
        self._pipe.send(task)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise UserError(
                "a process of the benchmark has ended, perhaps for lack of memory"
            ) from None
        if isinstance(answer, UserError):
            raise answer
        return answer


def _serve(pipe: Any, module: str, args: tuple) -> None:
    """Sends the description, then the seconds of each task received, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    os.dup2(2, 1)  # standard output is for results, not for what libraries print
    try:
        prepare = importlib.import_module(f"mnist_flax.benchmark.{module}").prepare
        about, tasks, wait = prepare(*args)
        pipe.send(about)
        while True:
            run = tasks[pipe.recv()]
            _seconds(run, wait)  # compiles, and fills the caches again after the other workers
            once = _seconds(run, wait)
            calls = round(_LEAST_SECONDS / once)
            pipe.send(_seconds(run, wait, calls) if calls > 1 else once)
    except UserError as error:
        pipe.send(error)
    except EOFError:
        pass


def _seconds(run: Callable, wait: Callable, calls: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        result = run()
    wait(result)
    return (time.perf_counter() - started) / calls

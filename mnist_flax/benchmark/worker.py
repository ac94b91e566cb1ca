"""The benchmark's worker processes: one per implementation, timed in turn by the benchmark.

A worker first prints a line of JSON that describes it. It then reads names of tasks, one per line,
and answers each with a line of JSON, usually the seconds that the task took.
"""

import contextlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from mnist_flax.errors import UserError

_LEAST_SECONDS = 0.2  # the shortest measurement; faster tasks are repeated until it is reached


class Worker:
    """Starts a process that runs `serve`, and asks it for measurements.

    Args:
      module: the module of this package to run.
      settings: its only argument, which is passed as JSON.
      env: the environment variables that differ from ours.
      name: its name in error messages.

    Attributes:
      about: the worker's description of itself.
    """

    def __init__(
        self,
        module: str,
        settings: dict[str, Any],
        env: dict[str, str],
        name: str = "a worker of the benchmark",
    ):
        self._name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"mnist_flax.benchmark.{module}", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **env},
            cwd=pathlib.Path(__file__).parents[2],
        )
        try:
            self.about: dict[str, Any] = self._answer()
        except UserError:
            self.close()
            raise

    def measure(self, task: str) -> Any:
        """Returns the seconds of a task, except for 'memory' (bytes) and 'matmul' (s per FLOP).

        Raises:
          UserError: the process has ended; the message gives its last line or the signal.
        """
        with contextlib.suppress(BrokenPipeError):
            print(task, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None  # because it is a pipe
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        if status < 0:
            raise UserError(f"{self._name} has crashed: {signal.Signals(-status).name}")
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["it printed nothing"])[-1]
        # Status 2 means that the worker raised a UserError.
        raise UserError(last if status == 2 else f"{self._name} has ended: {last}")


def timed(run: Callable[[], Any], wait: Callable[[Any], Any]) -> Callable[[], float]:
    """Returns a task that measures seconds per call, waiting for the device after all calls."""

    def seconds(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            result = run()
        wait(result)
        return (time.perf_counter() - started) / calls

    seconds(1)  # compiles
    calls = max(1, round(_LEAST_SECONDS / seconds(1)))

    def measure() -> float:
        seconds(1)  # warms up, because the other workers have used the caches and the memory
        return seconds(calls)

    return measure


def serve(about: dict[str, Any], prepare: Callable[[str], Callable[[], Any]]) -> None:
    """Answers the benchmark until it closes the pipe.

    Args:
      about: the description of this worker.
      prepare: returns a task, given its name; called when the task is first requested.
    """
    # Answers go to standard output; what libraries print goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print(json.dumps(about), file=answers, flush=True)
    ready: dict[str, Callable[[], Any]] = {}
    for name in map(str.strip, sys.stdin):
        if name not in ready:
            ready[name] = prepare(name)
        print(json.dumps(ready[name]()), file=answers, flush=True)


def peak_memory() -> int:
    """Returns the most memory that this process has used so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""The benchmark's worker processes: one per implementation, timed in turns by the benchmark.

A worker describes itself in a line of JSON. It then answers each line that names a task with
another: the seconds that the task took, say.
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

_LEAST_SECONDS = 0.2  # of a measurement; faster tasks are repeated within it


class Worker:
    """A process that answers by `serve`, seen from the benchmark.

    Args:
      module: of this package.
      settings: its only argument, as JSON.
      env: variables of its environment that differ from ours.
      name: what a person calls it.

    Attributes:
      about: its own description.
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
        """Returns seconds; bytes for 'memory', seconds per FLOP for 'matmul'.

        Raises:
          UserError: the process has ended; the message is its last line, or the signal.
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
        assert self._process.stdout is not None  # it is a pipe
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        if status < 0:
            raise UserError(f"{self._name} has crashed: {signal.Signals(-status).name}")
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["it printed nothing"])[-1]
        # By its own UserError, or by any other.
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
        seconds(1)  # the caches and the free memory were the others' until now
        return seconds(calls)

    return measure


def serve(about: dict[str, Any], prepare: Callable[[str], Callable[[], Any]]) -> None:
    """Answers the benchmark until it hangs up.

    Args:
      about: what this worker is.
      prepare: returns a task by its name; called when the task is first asked for.
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
    """Returns the most memory that this process has held so far, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""The benchmark's worker processes: one per implementation, timed in turns by the benchmark.

A worker describes itself in a line of JSON. It then answers each line that names a task with the
seconds that the task took.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

_LEAST_SECONDS = 0.2  # of a measurement; faster tasks are repeated within it


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


def serve(about: dict[str, Any], prepare: Callable[[str], Callable[[], float]]) -> None:
    """Answers the benchmark until it hangs up.

    Args:
      about: what this worker is.
      prepare: returns a task by its name; called when the task is first asked for.
    """
    # Answers go to standard output; what libraries print goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print(json.dumps(about), file=answers, flush=True)
    ready: dict[str, Callable[[], float]] = {}
    for name in map(str.strip, sys.stdin):
        if name not in ready:
            ready[name] = prepare(name)
        print(json.dumps(ready[name]()), file=answers, flush=True)


def peak_memory() -> int:
    """Returns the most memory that this process has held so far, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

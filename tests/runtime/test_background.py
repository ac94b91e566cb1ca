import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mnist_flax.runtime.background import attempt, lower_priority


def nice():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_attempt_returns_or_warns_in_one_line():
    said = []
    assert attempt("reading", said.append, int, "12") == 12
    assert attempt("reading", said.append, int, "one\ntwo") is None
    (line,) = said
    assert line.startswith("reading: ValueError: ") and "\n" not in line


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_thread_leaves_the_cpu_to_the_training():
    ask = [sys.executable, "-c", "import os; print(os.nice(0))"]
    mine = nice()
    with ThreadPoolExecutor(1, initializer=lower_priority) as thread:
        found = thread.submit(nice), thread.submit(subprocess.check_output, ask)
    assert (found[0].result(), int(found[1].result()), nice()) == (19, 19, mine)

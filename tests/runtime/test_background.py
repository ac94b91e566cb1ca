import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest

from mnist_flax.runtime.background import Background, is_abandoned, lower_priority
from tests.runs import ROOT, environment


def test_jobs_run_in_order_on_one_thread():
    done, threads = [], set()

    def job(number, factor):
        done.append(number)
        threads.add(threading.current_thread())
        return number * factor

    background = Background("numbers")
    futures = [background.submit(job, number, 10) for number in range(100)]
    assert [future.result(60) for future in futures] == list(range(0, 1000, 10))
    assert background.close(60)
    assert done == list(range(100))
    assert len(threads) == 1 and threads.pop().name == "numbers"


def test_submitting_does_not_wait():
    background, may_end = Background("slow"), threading.Event()
    future = background.submit(may_end.wait, 60)
    assert not future.done()
    may_end.set()
    assert future.result(60) is True
    assert background.close(60)


def test_the_first_failure_is_reported_in_one_line():
    said, done = [], []

    def fail(text):
        raise ValueError(text)

    background = Background("drawing", said.append)
    background.submit(done.append, 1)
    assert not background.failed
    failures = [background.submit(fail, text) for text in ("one\ntwo", "three")]
    background.submit(done.append, 2)
    assert background.close(60)
    assert done == [1, 2]
    assert said == ["drawing: ValueError: one"]
    assert background.failed
    assert [str(future.exception()) for future in failures] == ["one\ntwo", "three"]


def test_without_a_listener_only_the_future_knows(capsys):
    background = Background("saving")
    failure = background.submit(lambda: 1 / 0)
    assert background.close(60)
    with pytest.raises(ZeroDivisionError):
        failure.result()
    assert capsys.readouterr() == ("", "")


def test_stop_on_error_drops_what_follows():
    said, done = [], []
    background = Background("W&B", said.append, stop_on_error=True)
    background.submit(done.append, 1)
    background.submit(lambda: 1 / 0)
    dropped = background.submit(done.append, 2)
    assert background.close(60)
    assert done == [1]
    assert said == ["W&B: ZeroDivisionError: division by zero"]
    with pytest.raises(CancelledError):
        dropped.result()


def test_closing_may_drop_what_has_not_begun():
    background, begun, done = Background("compiler"), threading.Event(), []

    def job():
        begun.set()
        time.sleep(0.2)
        return "done"

    running = background.submit(job)
    dropped = [background.submit(done.append, number) for number in range(3)]
    assert begun.wait(60)
    assert background.close(60, drop=True)
    assert running.result() == "done" and not done
    assert all(future.cancelled() for future in dropped)


def test_a_job_that_hangs_holds_nothing_up():
    said, may_fail = [], threading.Event()

    def fail_late():
        may_fail.wait(60)
        raise ValueError

    background = Background("W&B", said.append)
    started = time.monotonic()
    late = background.submit(fail_late)
    assert not background.close(timeout=0.2)
    assert time.monotonic() - started < 30
    may_fail.set()
    assert isinstance(late.exception(60), ValueError)
    assert not said  # the job has been given up


def test_python_exits_without_waiting_for_a_job_that_hangs():
    script = (
        "import time\n"
        "from mnist_flax.runtime.background import Background\n"
        "Background('hangs').submit(time.sleep, 600)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_what_a_job_was_given_does_not_stay_in_memory():
    background, array = Background("saving"), np.zeros(3)
    alive = weakref.ref(array)
    background.submit(np.sum, array).result(60)
    del array
    deadline = time.monotonic() + 60
    while alive() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert background.close(60)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_a_thread_may_leave_the_cpu_to_the_training():
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    mine = nice()
    background = Background("drawing")
    assert background.submit(nice).result(60) == mine
    background.submit(lower_priority)
    ask = [sys.executable, "-c", "import os; print(os.nice(0))"]
    found = [background.submit(nice), background.submit(lambda: int(subprocess.check_output(ask)))]
    assert background.close(60)
    assert [future.result() for future in found] == [19, 19] and nice() == mine


def test_a_job_that_was_given_up_is_known_until_it_ends():
    background, may_end = Background("slow"), threading.Event()
    background.submit(may_end.wait, 60)
    assert not background.close(0.01) and is_abandoned()
    may_end.set()
    background._thread.join(60)
    assert not is_abandoned()


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [("raise UserError('enough')", 2, "error: enough\n"), ("print('Done')", 0, "Done\n")],
)
def test_a_command_leaves_a_job_that_it_gave_up(end, status, said):
    """Python would stop the job anywhere, and wait for the threads that the job has started."""
    script = f"""
import time
from concurrent.futures import ThreadPoolExecutor
from mnist_flax.cli import command
from mnist_flax.errors import UserError
from mnist_flax.runtime.background import Background

def main(config):
    background = Background("slow")
    background.submit(ThreadPoolExecutor().submit(time.sleep, 600).result)
    background.close(0.1)
    {end}

command.start(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "--config=configs/default.py"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (status, said)

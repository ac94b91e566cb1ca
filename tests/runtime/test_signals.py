import contextlib
import signal
import subprocess
import sys

import pytest

from tests.runs import ROOT, python

WAITING = """
import sys, time
from mnist_flax.runtime import signals

try:
    with signals.handled(), signals.deferred():
        print("ready", flush=True)
        while not signals.received():
            time.sleep(0.01)
        print("received", signals.received(), flush=True)
        time.sleep(float(sys.argv[1]))
    raise signals.Interrupted(signals.received(), "after epoch 1 of 2", "runs/1")
except signals.Interrupted as error:
    print(error, error.number, error.workdir)
"""


@contextlib.contextmanager
def waiting(seconds):
    """Starts a process that defers signals, and waits for so long after the first."""
    command = [sys.executable, "-c", WAITING, seconds]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_deferred_signal_waits_until_somebody_asks(number):
    with waiting("0") as process:
        process.send_signal(number)
        _, notice, *lines = process.communicate(timeout=60)[0].splitlines()
    assert "Ctrl-C" in notice
    assert lines[0] == f"received {number.value}"
    assert number.name in lines[1] and lines[1].endswith(f"epoch 1 of 2 {number.value} runs/1")


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_second_ctrl_c_ends_the_process_at_once(first):
    with waiting("600") as process:
        process.send_signal(first)
        while process.stdout.readline() != f"received {first.value}\n":
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)  # some senders repeat the signal
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_signal_raises_where_nothing_is_deferred():
    script = """
import os, signal
from mnist_flax.runtime import signals
try:
    with signals.handled():
        os.kill(os.getpid(), signal.SIGTERM)
except Exception:
    print("an error")
except signals.Interrupted as error:
    print(error.number)
"""
    done = python("-c", script)
    assert (done.stdout, done.stderr) == (f"{signal.SIGTERM.value}\n", "")


def test_terminal_that_is_gone():
    """SIGHUP is ignored, and a notice that cannot be written does no harm."""
    script = """
import os, signal
from mnist_flax.runtime import signals
with signals.handled(), signals.deferred():
    os.close(2)
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    print(signals.received())
"""
    done = python("-c", script)
    assert (done.stdout, done.returncode) == (f"{signal.SIGTERM.value}\n", 0)

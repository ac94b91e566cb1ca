import signal
import subprocess
import sys

import pytest

from tests.runs import ROOT, python

SCRIPT = """
import sys, time
from mnist_flax.runtime import signals

try:
    with signals.handled(), signals.deferred():
        print("ready", flush=True)
        while not signals.received():
            time.sleep(0.01)
        print("received", signals.received(), flush=True)
        if sys.argv[1] == "waits":
            time.sleep(600)
    raise signals.Interrupted(signals.received(), "after epoch 1 of 2", "runs/1")
except signals.Interrupted as error:
    print(error, error.status, error.workdir)
"""


@pytest.fixture
def start():
    processes = []

    def start(mode):
        """Starts the script; returns as soon as it defers signals."""
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, mode],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_somebody_asks(start, number):
    process = start("ends")
    process.send_signal(number)
    lines = process.communicate(timeout=60)[0].splitlines()
    assert lines[1].startswith("stopping once finished work is on the disk; Ctrl-C stops")
    assert lines[2:] == [
        f"received {number.value}",
        f"stopped by {number.name} after epoch 1 of 2 {128 + number} runs/1",
    ]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_ends_the_process_at_once(start, first):
    process = start("waits")
    process.send_signal(first)
    while process.stdout.readline() != f"received {first.value}\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)  # some senders repeat the signal
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_a_signal_raises_where_nothing_is_deferred():
    script = """
import os, signal
from mnist_flax.runtime import signals
try:
    with signals.handled():
        os.kill(os.getpid(), signal.SIGTERM)
except Exception:
    print("an error")
except signals.Interrupted as error:
    print(error, error.status)
"""
    done = python("-c", script)
    assert (done.stdout, done.stderr) == ("stopped by SIGTERM 143\n", "")


def test_a_signal_whose_notice_nobody_reads_waits_as_well():
    script = """
import os, signal
from mnist_flax.runtime import signals
with signals.handled(), signals.deferred():
    os.kill(os.getpid(), signal.SIGHUP)  # the terminal is gone
    os.kill(os.getpid(), signal.SIGTERM)
    print("received", signals.received())
"""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=full, text=True
        )
    assert (done.stdout, done.returncode) == (f"received {signal.SIGTERM.value}\n", 0)

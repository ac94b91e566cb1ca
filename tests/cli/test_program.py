"""How commands end while threads are inside JAX; Python's own clean-up would abort there."""

import signal

import pytest

from tests.runs import python

SCRIPT = """
import os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from mnist_flax.cli import program
from mnist_flax.errors import UserError

def main(arguments):
    import jax
    compute = jax.jit(lambda x: x @ x)
    zeros = jax.numpy.zeros((200, 200))
    compute(zeros).block_until_ready()

    def go_on():
        while True:
            compute(zeros).block_until_ready()

    for _ in range(2):
        threading.Thread(target=go_on).start()
    ThreadPoolExecutor().submit(time.sleep, 600)
    print("line\\n" * 20_000, end="the last of it")
    {end}

program.run(main)
"""


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('enough')", 1, "enough"),
        ("raise UserError('enough')", 2, "error: enough"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM, "stopped by SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGINT)", 128 + signal.SIGINT, "stopped by SIGINT"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_command_ends_beside_threads_that_compute_or_hang(end, status, said):
    """It keeps its status and its output, and waits for no thread."""
    done = python("-X", "faulthandler", "-c", SCRIPT.format(end=end), timeout=120)
    assert done.returncode == status, done.stderr
    assert done.stdout == "line\n" * 20_000 + "the last of it"
    lines = done.stderr.splitlines()
    assert lines[-1:] == ([said] if said else []) and (len(lines) < 2 or "ZeroDiv" in said)

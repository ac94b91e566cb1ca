"""How commands end while threads are inside JAX; Python's own clean-up would abort there."""

import signal

import pytest

from mnist_flax.cli import program
from tests.runs import python

SCRIPT = """
import atexit, os, signal, sys, threading
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
        threading.Thread(target=go_on, daemon=True).start()
    atexit.register(print, "at the exit")
    print("line\\n" * 20_000, end="the last of it, ")
    {end}

program.run(main)
"""


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise UserError('enough')", 2, "error: enough\n"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM, "stopped by SIGTERM\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
)
def test_a_command_ends_beside_threads_that_compute(end, status, said):
    """It keeps its status and its output, and runs all exit handlers first."""
    done = python("-X", "faulthandler", "-c", SCRIPT.format(end=end), timeout=120)
    assert done.returncode == status, done.stderr
    assert done.stdout == "line\n" * 20_000 + "the last of it, at the exit\n"
    assert done.stderr.endswith(said) if status == 1 else done.stderr == said


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["--workdir=runs/1"]),
        (["--workdir="], ["--workdir=", "--workdir=runs/1"]),  # the last one counts
        (["--workdir=runs/1"], ["--workdir=runs/1"]),
        (["--workdir", "runs/1"], ["--workdir", "runs/1"]),
    ],
)
def test_the_command_that_resumes_names_the_workdir(monkeypatch, given, expected):
    monkeypatch.setattr(program.process, "command_line", lambda: ["python", "main.py", *given])
    assert program.again("runs/1").split() == ["python", "main.py", *expected]

"""Standard streams that are closed or fail, in every combination."""

import contextlib
import itertools
import os
import pty
import subprocess
import sys

import pytest

from tests.runs import ROOT

# Prints more than any buffer holds, and opens a file, which must not get a stream's number.
SCRIPT = """
import sys
from mnist_flax.runtime import output
output.protect()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    for number in range(4_000):
        print("line", number, "of standard output ±")
        print("line", number, "of standard error ±", file=sys.stderr)
        file.write(f"{number}\\n")
print(end="the last")
"""
LINES = [*(f"line {number} of standard output ±" for number in range(4_000)), "the last"]
ERRORS = [f"line {number} of standard error ±" for number in range(4_000)]
GOOD, CLOSED, FULL, NO_READER, GONE = "good", "closed", "full", "no_reader", "no_terminal"
KINDS = (GOOD, CLOSED, FULL, NO_READER, GONE)

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


@contextlib.contextmanager
def stream(kind, path):
    """Yields a file descriptor of a kind; a stream that is to be closed starts with a good one."""
    if kind in (NO_READER, GONE):
        there, here = os.pipe() if kind == NO_READER else pty.openpty()
        os.close(there)
        yield here
        os.close(here)
    else:
        with open("/dev/full" if kind == FULL else path, "wb") as file:
            yield file.fileno()


@pytest.mark.parametrize("flags", [(), ("-u",)], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(("out", "err"), list(itertools.product(KINDS, KINDS)))
def test_a_program_is_not_disturbed(tmp_path, out, err, flags):
    closing = " ".join(f"{n}>&-" for n, kind in ((1, out), (2, err)) if kind == CLOSED)
    command = [sys.executable, *flags, "-c", SCRIPT, str(tmp_path / "file")]
    with stream(out, tmp_path / "out") as out_file, stream(err, tmp_path / "err") as err_file:
        status = subprocess.call(
            ["sh", "-c", f'exec "$@" {closing}', "sh", *command],
            stdout=out_file,
            stderr=err_file,
            cwd=ROOT,
            env={**os.environ, "PYTHONDEVMODE": "1", "PYTHONIOENCODING": "utf-8"},
        )
    assert status == 0
    assert (tmp_path / "file").read_text().splitlines() == list(map(str, range(4_000)))
    if out == GOOD:
        assert (tmp_path / "out").read_text().splitlines() == LINES
    if err == GOOD:
        said = (tmp_path / "err").read_text().splitlines()
        known = set(ERRORS)
        assert [line for line in said if line in known] == ERRORS
        reason = {FULL: "No space left on device", GONE: "Input/output error"}.get(out)
        told = f"standard output: {reason}; it continues here"
        expected = [told, *LINES] if reason else []
        assert [line for line in said if line not in known] == expected


def test_a_character_that_the_encoding_lacks():
    script = "from mnist_flax.runtime import output; output.protect(); print('±')"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\xb1\n", b"")


def test_a_slow_reader_of_a_pipe_that_does_not_block(tmp_path):
    """Such a pipe refuses output while it is full; nothing may be lost."""
    there, here = os.pipe()
    os.set_blocking(here, False)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "file")],
        stdout=here,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as process:
        os.close(here)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)  # it waits for the reader
        with open(there) as pipe:
            assert pipe.read().splitlines() == LINES
    assert process.returncode == 0

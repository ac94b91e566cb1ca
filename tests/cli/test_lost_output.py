"""The real command loses its output: it keeps training, and its files are complete."""

import os
import pty
import subprocess
import sys

import pytest

from tests.runs import ROOT, TINY, environment, epochs, records, summary
from tests.wandb_log import OfflineRun

# Runs a command that has a controlling terminal, as a shell does.
IN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


def one_epoch(workdir):
    return ("main.py", *TINY, "--config.num_epochs=1", f"--workdir={workdir}")


def assert_complete(workdir, finished):
    """Asserts that a run of one epoch left what the first epoch of `finished` did."""
    assert records(workdir) == records(finished)[:1]
    assert summary(workdir)["step"] == 63 and epochs(workdir)[-1] == 1
    assert {path.name for path in workdir.iterdir()} == {path.name for path in finished.iterdir()}


def start(*arguments, **streams):
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment(), text=True, **streams
    )


def test_a_reader_that_has_seen_enough(tmp_path, finished):
    """The reader is closed after two lines, as in `python main.py | head -2`."""
    with open(tmp_path / "err", "w") as err:
        run = start(*one_epoch(tmp_path / "run"), stdout=subprocess.PIPE, stderr=err)
    assert run.stdout.readline() == f"Workdir: {tmp_path}/run\n"
    assert run.stdout.readline().startswith("Data: ")
    run.stdout.close()
    assert run.wait(300) == 0
    assert (tmp_path / "err").read_text() == ""
    assert_complete(tmp_path / "run", finished)


def test_a_full_disk_under_standard_output(tmp_path, finished):
    """The output moves to standard error, after a line that gives the reason."""
    with open("/dev/full", "w") as full:
        run = start(*one_epoch(tmp_path / "run"), stdout=full, stderr=subprocess.PIPE)
    reason, first, *_, last = run.communicate(timeout=300)[1].splitlines()
    assert run.returncode == 0
    assert reason == "standard output: No space left on device; it continues here"
    assert first == f"Workdir: {tmp_path}/run"
    assert last.startswith("Done: ")
    assert_complete(tmp_path / "run", finished)


def test_closed_streams(tmp_path, finished):
    """No file of the run may get the number of a closed stream, and with it the output."""
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    command = [*shell, sys.executable, *one_epoch(tmp_path / "run")]
    assert subprocess.run(command, cwd=ROOT, env=environment(), timeout=300).returncode == 0
    assert_complete(tmp_path / "run", finished)


def test_a_terminal_that_goes_away(tmp_path, finished):
    """The run and W&B's service get SIGHUP, and printing fails with EIO."""
    main, terminal = pty.openpty()
    arguments = (*TINY, f"--workdir={tmp_path}/run", "--config.wandb.mode=offline")
    run = start(
        *("-c", IN_TERMINAL, sys.executable, "main.py", *arguments),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while b"epoch 1/4" not in shown:
        shown += os.read(main, 4096)
    os.close(main)
    assert run.wait(300) == 0
    assert records(tmp_path / "run") == records(finished)
    tracked = OfflineRun(tmp_path).summary
    assert tracked["final_test_accuracy"] == summary(finished)["final_test_accuracy"]


@pytest.mark.slow
def test_a_study_whose_reader_has_seen_enough(tmp_path):
    arguments = ("-m", "mnist_flax.study", *TINY, "--config.study.num_seeds=2")
    with open(tmp_path / "err", "w") as err:
        run = start(*arguments, f"--workdir={tmp_path}/run", stdout=subprocess.PIPE, stderr=err)
    assert run.stdout.readline() == f"Workdir: {tmp_path}/run\n"
    run.stdout.close()
    assert run.wait(300) == 0
    assert (tmp_path / "err").read_text() == ""
    assert (tmp_path / "run" / "study.md").exists()


@pytest.mark.slow
def test_a_benchmark_on_a_full_disk_shows_its_table_all_the_same(tmp_path):
    with open("/dev/full", "w") as full:
        run = start(
            *("-m", "mnist_flax.benchmark", TINY[0], *TINY[3:-1], "--repeats=1", "--num_images=99"),
            stdout=full,
            stderr=subprocess.PIPE,
        )
    said = run.communicate(timeout=300)[1]
    assert run.returncode == 0
    assert "standard output: No space left on device; it continues here\n" in said
    assert "\n| epoch | " in said


@pytest.mark.parametrize(
    ("stream", "command"),
    [
        ("full", ["main.py"]),
        ("closed", ["-m", "mnist_flax.study"]),
        ("no_reader", ["-m", "mnist_flax.benchmark"]),
    ],
)
def test_an_error_whose_line_nobody_reads_has_its_status(stream, command):
    there, here = os.pipe()
    os.close(there)
    redirection = {"full": "2>/dev/full", "closed": "2>&-", "no_reader": f"2>&{here}"}[stream]
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, *command, "--config.batch_size=0"],
        cwd=ROOT,
        env=environment(),
        pass_fds=[here],
        stdout=subprocess.PIPE,
    )
    os.close(here)
    assert (done.returncode, done.stdout) == (2, b"")


def test_help_that_nobody_reads_to_its_end():
    run = start("main.py", "--helpfull", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    assert run.stderr.read() == ""
    run.stderr.close()
    assert run.wait(60) == 0

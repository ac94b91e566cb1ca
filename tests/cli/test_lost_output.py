"""The real command loses its output: it keeps training, and its files are complete."""

import os
import pty
import subprocess
import sys

import pytest

from tests.runs import MAIN, TINY, environment, epochs, records, summary
from tests.wandb_log import OfflineRun

# Runs a command that has a controlling terminal, as a shell does.
IN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


def start(*arguments, **streams):
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(),
        text=True,
        stderr=subprocess.PIPE,
        **streams,
    )


def assert_complete(workdir, finished):
    """Asserts that a run of one epoch left what the first epoch of `finished` did."""
    assert records(workdir) == records(finished)[:1]
    assert summary(workdir)["step"] == 63 and epochs(workdir)[-1] == 1
    assert {path.name for path in workdir.iterdir()} == {path.name for path in finished.iterdir()}


@pytest.mark.parametrize("lost", ["closed", "full", "no reader"])
def test_run_without_its_output_is_complete(tmp_path, finished, lost):
    """Standard output is closed, on a full disk, or its reader leaves after a line (`| head -1`).

    No file of the run may get the number of a closed stream, and with it the output.
    """
    command = [MAIN, *TINY, "--config.num_epochs=1", f"--workdir={tmp_path}/run"]
    if lost == "closed":
        shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, *command]
        assert subprocess.run(shell, env=environment(), timeout=300).returncode == 0
    else:
        with open("/dev/full", "w") as full:
            run = start(*command, stdout=full if lost == "full" else subprocess.PIPE)
        if lost == "no reader":
            assert f"{tmp_path}/run" in run.stdout.readline()
            run.stdout.close()
        with run.stderr as errors:
            assert "Traceback" not in errors.read()
        assert run.wait(300) == 0
    assert_complete(tmp_path / "run", finished)


def test_terminal_that_goes_away(tmp_path, finished):
    """The run and W&B's service get SIGHUP, and printing fails with EIO."""
    main, terminal = pty.openpty()
    arguments = (*TINY, f"--workdir={tmp_path}/run", "--config.wandb.mode=offline")
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    command = [sys.executable, "-c", IN_TERMINAL, sys.executable, MAIN, *arguments]
    with subprocess.Popen(command, env=environment(), **streams) as run:
        os.close(terminal)
        shown = b""
        while b"epoch 1/4" not in shown:
            shown += os.read(main, 4096)
        os.close(main)
        assert run.wait(300) == 0
    assert records(tmp_path / "run") == records(finished)
    tracked = OfflineRun(tmp_path).summary
    assert tracked["final_test_accuracy"] == summary(finished)["final_test_accuracy"]


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&{here}"])
def test_error_that_nobody_reads_has_its_status(redirection):
    there, here = os.pipe()
    os.close(there)
    shell = ["sh", "-c", f'exec "$@" {redirection.format(here=here)}', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, MAIN, "--config.batch_size=0"],
        env=environment(),
        pass_fds=[here],
        stdout=subprocess.PIPE,
    )
    os.close(here)
    assert (done.returncode, done.stdout) == (2, b"")


def test_help_that_nobody_reads_to_its_end():
    with start(MAIN, "--helpfull", stdout=subprocess.PIPE) as run:
        run.stdout.close()
        assert "Traceback" not in run.stderr.read()
        assert run.wait(60) == 0

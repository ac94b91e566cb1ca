"""Real faults of the machine during a run."""

import errno
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from mnist_flax.runtime.files import is_not_offered
from tests.runs import (
    MAIN,
    TINY,
    assert_same_run,
    environment,
    epochs,
    going_on,
    records,
    run,
    summary,
)

# Lets a user mount file systems: a small disk, and a read-only one.
NAMESPACE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


@pytest.fixture
def in_namespace(tmp_path):
    """Runs a shell script that may mount file systems, with a command `run` and a folder `$dir`."""
    ask = [*NAMESPACE, f"mount -t tmpfs none {tmp_path}"]
    if not shutil.which("unshare") or subprocess.run(ask, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    (tmp_path / "dir").mkdir()

    def in_namespace(script):
        command = shlex.join([sys.executable, MAIN, *TINY])
        return subprocess.run(
            [*NAMESPACE, f'run() {{ {command} "$@"; }}\n{script}'],
            env=environment(dir=str(tmp_path / "dir"), out=str(tmp_path)),
            capture_output=True,
            text=True,
            timeout=400,
        )

    return in_namespace


def test_full_disk_is_reported_and_costs_nothing(in_namespace, finished, tmp_path):
    """The disk fills up after the first epoch; once there is room, the run resumes."""
    done = in_namespace("""
        mount -t tmpfs -o size=16m none $dir
        run --workdir=$dir/run >$out/log 2>$out/err &
        until grep -q 'epoch 1/4' $out/log || ! kill -0 $!; do sleep 0.02; done
        dd if=/dev/zero of=$dir/fill bs=4k 2>$out/dd
        wait $!
        echo status $?
        cp -r $dir/run $out/full
        rm $dir/fill
        run --workdir=$dir/run >$out/log2 2>&1
        echo status $?
        cp -r $dir/run $out/after
    """)
    assert done.stdout.splitlines() == ["status 2", "status 0"], done.stderr
    full = os.strerror(errno.ENOSPC)
    assert full in (tmp_path / "dd").read_text()
    (line,) = (tmp_path / "err").read_text().splitlines()
    reached = len(records(tmp_path / "full"))
    assert f"{tmp_path}/dir/run" in line and full in line
    assert 1 <= reached < 4 and reached in epochs(tmp_path / "full")
    assert line not in (tmp_path / "log").read_text()
    assert f"after epoch {reached} of 4" in (tmp_path / "log2").read_text()
    assert_same_run(tmp_path / "after", finished)


def test_read_only_folder_is_one_line(in_namespace, tmp_path):
    done = in_namespace("mount -t tmpfs -o ro none $dir; run --workdir=$dir/run; echo status $?")
    assert done.stdout == "status 2\n"
    assert done.stderr.count("\n") == 1 and f"--workdir={tmp_path}/dir/run" in done.stderr


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_folder_of_somebody_else_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    done = run(*TINY, f"--workdir={tmp_path}/run")
    tmp_path.chmod(0o700)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"--workdir={tmp_path}/run" in done.stderr


def test_file_system_without_locks_or_syncing(finished, tmp_path):
    """Lustre, some NFS and some mounted buckets are such file systems."""
    refuse = f"""
import fcntl, os

def refuse(*args):
    raise OSError({errno.ENOSYS}, os.strerror({errno.ENOSYS}))

fcntl.flock = os.fsync = os.posix_fallocate = refuse
"""
    done = run(*TINY, f"--workdir={tmp_path}/run", before=refuse)
    assert (done.returncode, done.stderr) == (0, "")
    (warning,) = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert f"{tmp_path}/run" in warning
    assert_same_run(tmp_path / "run", finished)


def test_errors_of_a_file_system_that_lacks_something():
    """These errors mean that a file system does not support a request; others are real faults."""
    for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL):
        assert is_not_offered(OSError(number, ""))
    for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        assert not is_not_offered(OSError(number, ""))


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="there is no /proc")
def test_wandb_dies_in_mid_run(tmp_path):
    """W&B's service is killed; the run continues and says so once."""
    arguments = (*TINY, "--config.wandb.mode=offline", f"--workdir={tmp_path}/run")
    with going_on(tmp_path / "log", *arguments) as running:
        running.wait_until(lambda: list(tmp_path.glob("run/wandb/offline-run-*/*.wandb")))
        tasks = pathlib.Path(f"/proc/{running.pid}/task").iterdir()
        services = [pid for task in tasks for pid in (task / "children").read_text().split()]
        assert services
        for pid in services:
            os.kill(int(pid), signal.SIGKILL)
        assert running.wait(200) == 0, running.output
    assert running.output.count("W&B") == 1 and "Traceback" not in running.output
    assert len(records(tmp_path / "run")) == 4 and summary(tmp_path / "run")["step"] == 4 * 63


@pytest.mark.slow
def test_wandb_server_that_never_answers(tmp_path):
    """W&B takes half a minute to give up, while the training goes on."""
    arguments = (*TINY, "--config.wandb.mode=online", f"--workdir={tmp_path}/run")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = run(*arguments, WANDB_BASE_URL=url, WANDB_API_KEY="a" * 40)
    assert (done.returncode, done.stderr) == (0, "")
    assert "wandb sync" in done.stdout and summary(tmp_path / "run")["step"] == 4 * 63

"""Real faults of the machine during a run."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys

import psutil
import pytest

from tests.runs import ROOT, TINY, assert_same_run, environment, epochs, going_on, records, summary

# Lets a user mount file systems: a small disk, and a read-only one.
NAMESPACE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


@pytest.fixture
def in_namespace(tmp_path):
    """Runs a shell script that may mount file systems, with a command `run` and a folder `$dir`."""
    ask = [*NAMESPACE, f"mount -t tmpfs none {tmp_path}"]
    if not shutil.which("unshare") or subprocess.run(ask, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    folder = tmp_path / "dir"
    folder.mkdir()

    def run(script):
        command = shlex.join([sys.executable, f"{ROOT}/main.py", *TINY])
        return subprocess.run(
            [*NAMESPACE, f'run() {{ {command} "$@"; }}\n{script}'],
            env=environment(dir=str(folder), out=str(tmp_path)),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
        )

    return run


def test_a_full_disk_is_reported_and_costs_nothing(in_namespace, finished, tmp_path):
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
    assert "No space left on device" in (tmp_path / "dd").read_text()
    (line,) = (tmp_path / "err").read_text().splitlines()
    full = tmp_path / "full"
    reached = len(records(full))
    assert line.startswith(f"error: epoch {reached + 1} cannot be saved in {tmp_path}/dir/run: ")
    assert "No space left on device" in line
    assert 1 <= reached < 4 and reached in epochs(full)
    assert "cannot be saved" not in (tmp_path / "log").read_text()  # it is reported only once
    assert f"Resuming after epoch {reached} of 4" in (tmp_path / "log2").read_text()
    assert_same_run(tmp_path / "after", finished)


def test_a_folder_that_cannot_be_written_is_reported(in_namespace, tmp_path):
    done = in_namespace("""
        mount -t tmpfs -o ro none $dir
        run --workdir=$dir/run
        echo status $?
    """)
    assert done.stdout == "status 2\n"
    folder = tmp_path / "dir"
    assert done.stderr == f"error: --workdir={folder}/run: {folder} cannot be written\n"


@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_folder_of_somebody_else_is_reported(fork_main, tmp_path):
    tmp_path.chmod(0o500)
    done = fork_main(*TINY, f"--workdir={tmp_path}/run")
    tmp_path.chmod(0o700)
    assert done.returncode == 2
    assert done.stderr == f"error: --workdir={tmp_path}/run: {tmp_path} cannot be written\n"


def test_wandb_dies_in_mid_run(tmp_path):
    """W&B's service is killed; the run continues and says so once."""
    arguments = (*TINY, "--config.wandb.mode=offline", f"--workdir={tmp_path}/run")
    with going_on(tmp_path / "log", *arguments) as run:

        def services():
            children = psutil.Process(run.pid).children(recursive=True)
            return [child for child in children if "wandb" in child.name()]

        run.wait_until(lambda: list(tmp_path.glob("run/wandb/offline-run-*/*.wandb")))
        for service in services():
            service.kill()
        assert run.wait(200) == 0, run.output
    assert len([line for line in run.output.splitlines() if line.startswith("W&B")]) == 1
    assert "Traceback" not in run.output
    assert [record["epoch"] for record in records(tmp_path / "run")] == [1, 2, 3, 4]
    assert summary(tmp_path / "run")["step"] == 4 * 63


@contextlib.contextmanager
def endpoint(kind):
    """Yields a W&B address on loopback that refuses connections, or never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "stalls":
            listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refuses", "stalls"])
def test_a_wandb_server_that(kind, tmp_path, run_main):
    """W&B may take half a minute to connect, while the training goes on."""
    with endpoint(kind) as url:
        done = run_main(
            *TINY,
            "--config.wandb.mode=online",
            f"--workdir={tmp_path}/run",
            WANDB_BASE_URL=url,
            WANDB_API_KEY="a" * 40,
        )
    assert done.returncode == 0, done.stderr
    assert "no connection" in done.stdout and "wandb sync" in done.stdout
    assert "Traceback" not in done.stderr
    assert [record["epoch"] for record in records(tmp_path / "run")] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "summary.json").exists()

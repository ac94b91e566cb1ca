"""Two real processes, connected over loopback as two hosts would be."""

import signal
import time

import pytest

from tests.runs import (
    QUICK,
    SHORT,
    assert_close_run,
    assert_same_results,
    epochs,
    files,
    on_devices,
    pair,
    records,
    run,
)

LONG = (*SHORT, "--config.num_epochs=5")


def test_two_processes_are_one(tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    done = run(*SHORT, f"--workdir={alone}", **QUICK)
    assert done.returncode == 0, done.stderr
    with pair(tmp_path, *SHORT, f"--workdir={both}") as runs:
        assert [running.wait() for running in runs] == [0, 0], runs[1].output
    said, silent = (running.output for running in runs)
    assert "Devices: 2 cpu in 2 processes" in said
    assert "epoch" not in silent and str(both) not in silent
    assert_close_run(both, alone, 5e-3)
    assert files(both).keys() == files(alone).keys()


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_killed_process_ends_the_other_and_both_resume(tmp_path, killed):
    """Process 1 never sees the workdir. A signal to it stops the resumed pair after one epoch."""
    workdir, unseen = tmp_path / "run", (f"--workdir={tmp_path}/unseen",)
    with pair(tmp_path, *LONG, f"--workdir={workdir}", other=unseen) as runs:
        runs[0].wait_for("epoch 1/5")
        runs[killed].kill()
        started = time.monotonic()
        assert runs[1 - killed].wait(120) not in (0, 2)
        assert time.monotonic() - started < 60
    assert "To resume it: " in runs[0].output
    reached = epochs(workdir)[-1]
    assert 1 <= reached < 5

    with pair(tmp_path, *LONG, f"--workdir={workdir}", other=unseen) as runs:
        runs[0].wait_for(f"epoch {reached + 1}/5")
        assert f"after epoch {reached} of 5" in runs[0].output
        runs[1].send_signal(signal.SIGTERM)
        assert [running.wait(120) for running in runs] == [143, 143]
    reached = epochs(workdir)[-1]
    for running in runs:
        assert f"SIGTERM after epoch {reached} of 5" in running.output
        assert "Traceback" not in running.output
    assert not (tmp_path / "unseen").exists()
    assert len(records(workdir)) == reached

    done = run(*LONG, f"--workdir={workdir}", **on_devices(2))
    assert done.returncode == 0, done.stderr
    assert f"after epoch {reached} of 5" in done.stdout
    assert [record["epoch"] for record in records(workdir)] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_silent_process_ends_the_other(tmp_path):
    with pair(tmp_path, *LONG, f"--workdir={tmp_path}/run") as runs:
        runs[0].wait_for("epoch 1/5")
        runs[1].send_signal(signal.SIGSTOP)
        started = time.monotonic()
        assert runs[0].wait(120) not in (0, 2)
        assert time.monotonic() - started < 90


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        ((), ("--config.seed=1",), "configuration"),
        ((), ("--config.dataset.manual_dir=/",), "/"),
        (("--workdir=/dev/null/run",), (), "/dev/null"),
    ],
)
def test_error_of_one_process_ends_both(tmp_path, first, other, said):
    """They differ in the configuration, one has no data, and process 0 has no folder."""
    auto = tuple(argument for argument in SHORT if "source" not in argument)
    arguments = (*auto, f"--workdir={tmp_path}/run", *first)
    with pair(tmp_path, *arguments, other=other) as runs:
        assert [running.wait(120) for running in runs] == [2, 2]
    for running in runs:
        (line,) = [line for line in running.output.splitlines() if line.startswith("error: ")]
        assert said in line and "Traceback" not in running.output
    assert not (tmp_path / "run").exists()


def test_launchers_variables_alone_join_nobody(tmp_path):
    """A task of Slurm that does not ask for the others trains alone."""
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
    }
    one, other = tmp_path / "slurm", tmp_path / "plain"
    for workdir, env in ((one, slurm), (other, {})):
        done = run(*SHORT, f"--workdir={workdir}", **env, **QUICK)
        assert (done.returncode, done.stderr) == (0, "")
    assert_same_results(one, other)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num_processes=2"], "--distributed"),
        (["--coordinator_address=127.0.0.1:1", "--process_id=0"], "--distributed"),
        (["--process_id=first"], "--process_id=first"),
        (["--distributed", "--num_processes=2", "--process_id=2"], "--process_id "),
        (["--distributed", "--num_processes=2", "--process_id=-1"], "--process_id "),
        (["--distributed"], "--coordinator_address"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, arguments, said):
    done = run(*SHORT, *arguments, f"--workdir={tmp_path}/run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert not (tmp_path / "run").exists()


def test_signal_while_joining(tmp_path):
    with pair(tmp_path, *SHORT, f"--workdir={tmp_path}/run") as runs:
        runs[1].kill()
        runs[0].wait_for("Joining")
        time.sleep(1)
        runs[0].send_signal(signal.SIGTERM)
        assert runs[0].wait(60) == 143
    assert "Traceback" not in runs[0].output

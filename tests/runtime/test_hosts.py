"""Two real processes, connected over loopback as two hosts would be."""

import contextlib
import signal
import time

import pytest

from tests.runs import (
    QUICK,
    SHORT,
    TINY,
    Run,
    assert_close_run,
    epochs,
    free_port,
    going_on,
    on_devices,
    pair,
    records,
)


def finish(runs: list[Run]) -> list[str]:
    for run in runs:
        assert run.wait(300) == 0, run.output
        assert "Traceback" not in run.output
    return [run.output for run in runs]


def test_two_processes_are_one(run_main, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    done = run_main(*SHORT, f"--workdir={alone}", **QUICK)
    assert done.returncode == 0, done.stderr
    with pair(tmp_path, *SHORT, f"--workdir={both}") as runs:
        said, silent = finish(runs)
    assert "Devices: 2 cpu in 2 processes" in said
    assert "epoch" not in silent and str(both) not in silent
    assert_close_run(both, alone, 5e-3)


@pytest.mark.slow
def test_two_processes_resume_what_one_has_saved(run_main, tmp_path):
    """Slurm's variables give the processes their ranks, as on a cluster."""
    workdir = tmp_path / "run"
    assert run_main(*SHORT, f"--workdir={workdir}").returncode == 0
    slurm = {
        "SLURM_JOB_ID": str(free_port()),  # the coordinator's port is derived from it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(
                going_on(
                    tmp_path / f"slurm{task}",
                    *SHORT,
                    "--config.num_epochs=3",
                    f"--workdir={workdir}",
                    **slurm,
                    SLURM_PROCID=str(task),
                    SLURM_LOCALID=str(task),
                )
            )
            for task in (0, 1)
        ]
        said, _ = finish(runs)
    assert "Devices: 2 cpu in 2 processes" in said
    assert "Resuming after epoch 2 of 3" in said


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_what_happens_to_one_of_a_pair_ends_both_and_they_resume(run_main, tmp_path, killed):
    """One is killed; a signal stops the resumed pair; one process with two devices finishes."""
    workdir = tmp_path / "run"
    arguments = (*SHORT, f"--workdir={workdir}", "--config.num_epochs=5")
    with pair(tmp_path, *arguments) as runs:
        runs[0].wait_for("epoch 1/5")
        runs[killed].kill()
        started = time.monotonic()
        other = runs[1 - killed]
        assert other.wait(120) == 1
        assert time.monotonic() - started < 60
    errors = other.output[other.output.index("error: ") :].splitlines()
    assert errors[0].startswith("error: another process of the run failed or disappeared (")
    assert "; to resume, start all processes again: python" in errors[0]
    # If process 0 dies, JAX may report it at the same moment.
    assert len(errors) == 1 or killed == 0
    reached = epochs(workdir)[-1]
    assert 1 <= reached < 5

    with pair(tmp_path, *arguments) as runs:
        runs[0].wait_for(f"epoch {reached + 1}/5")
        assert f"Resuming after epoch {reached} of 5" in runs[0].output
        started = time.monotonic()
        runs[1].send_signal(signal.SIGTERM)
        assert [run.wait(120) for run in runs] == [143, 143]
        assert time.monotonic() - started < 60
    reached = epochs(workdir)[-1]
    for run in runs:
        assert f"stopped by SIGTERM after epoch {reached} of 5; to resume:" in run.output
        assert "Traceback" not in run.output

    done = run_main(*arguments, **on_devices(2))
    assert done.returncode == 0, done.stderr
    assert f"Resuming after epoch {reached} of 5" in done.stdout
    assert [record["epoch"] for record in records(workdir)] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_process_that_is_silent_ends_both(tmp_path):
    with pair(tmp_path, *SHORT, f"--workdir={tmp_path}/run", "--config.num_epochs=9") as runs:
        runs[0].wait_for("epoch 1/9")
        runs[1].send_signal(signal.SIGSTOP)
        started = time.monotonic()
        assert runs[0].wait(120) == 1
        assert time.monotonic() - started < 60
        runs[1].send_signal(signal.SIGCONT)
        assert runs[1].wait(60) == 1
    silent = "another process of the run failed or disappeared (nothing was heard from it for 15 s)"
    assert f"error: {silent}" in runs[0].output
    for run in runs:
        assert "; to resume, start all processes again: python" in run.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("--config.seed=1",), "process 1 has a different configuration from process 0"),
        (("--config.dataset.manual_dir=/",), "No such file"),
    ],
)
def test_processes_that_do_not_fit_all_end(tmp_path, other, said):
    first = tuple(argument for argument in TINY if "source" not in argument)
    started = time.monotonic()
    with pair(
        tmp_path,
        *first,
        f"--workdir={tmp_path}/run",
        "--config.dataset.source=auto",
        other=other,
    ) as runs:
        assert [run.wait(120) for run in runs] == [2, 2]
    assert time.monotonic() - started < 60
    for run in runs:
        assert f"error: {said}" in run.output or (said in run.output and "error: /" in run.output)
        assert "Traceback" not in run.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num_processes=2"], "go together; allowed: all three or none"),
        (["--coordinator_address=127.0.0.1:1", "--process_id=0"], "go together"),
        (
            ["--coordinator_address=here", "--num_processes=2", "--process_id=0"],
            "--coordinator_address=here is not allowed; allowed: HOST:PORT",
        ),
        (
            ["--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 is not allowed; allowed: from 0 to below --num_processes=2",
        ),
        (["--process_id=first"], "--process_id=first"),
    ],
)
def test_wrong_flags_are_one_line(fork_main, tmp_path, arguments, said):
    done = fork_main(*TINY, *arguments, f"--workdir={tmp_path}/run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line
    assert not (tmp_path / "run").exists()

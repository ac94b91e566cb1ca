"""The real command, interrupted in different ways and started again."""

import contextlib
import json
import random
import signal
import time

import pytest

from tests.runs import (
    QUICK,
    TINY,
    arrays,
    assert_same_results,
    assert_same_run,
    copy,
    epochs,
    files,
    going_on,
    records,
    summary,
)
from tests.wandb_log import OfflineRun


def finish(run_main, workdir, *arguments):
    done = run_main(*TINY, f"--workdir={workdir}", *arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def epochs_said(log):
    return [int(line.split()[1].split("/")[0]) for line in log.splitlines() if "epoch " in line[:6]]


def stop(run, number):
    """Sends a signal to a run, which must stop soon and name the command that resumes it."""
    started = time.monotonic()
    run.send_signal(number)
    assert run.wait(120) == 128 + number
    assert time.monotonic() - started < 60
    assert "Traceback" not in run.output


def assert_says_how_to_resume(run, workdir, number):
    last = run.output.splitlines()[-1]
    reached = epochs(workdir)[-1]
    assert last.startswith(
        f"stopped by {number.name} after epoch {reached} of 4; to resume: python"
    )
    assert last.endswith(f"--workdir={workdir}")
    assert len(records(workdir)) == reached


def test_what_a_run_leaves(finished):
    assert epochs(finished)[-2:] == [3, 4]
    best = max(records(finished), key=lambda record: record["test/accuracy"])
    assert summary(finished)["best_epoch"] == best["epoch"]
    assert best["epoch"] in epochs(finished) and len(epochs(finished)) <= 3
    assert arrays(finished)["state/step"] == 4 * 63
    details = json.loads((finished / "checkpoints/4/details/metadata").read_text())
    assert [r["epoch"] for r in details["records"]] == [1, 2, 3, 4]


def test_killed_at_the_worst_moments(finished, run_main, tmp_path):
    """SIGKILL comes while a checkpoint is being written, right after that, and within an epoch."""
    workdir = tmp_path / "run"
    checkpoints = workdir / "checkpoints"

    def being_written():
        return [path for path in checkpoints.glob("*") if "tmp" in path.name and path.name[0] > "0"]

    moments = [
        lambda run: run.wait_until(being_written),
        lambda run: run.wait_until(lambda: (checkpoints / "2" / "files.sha256").exists()),
        lambda run: (run.wait_for("epoch 3/4"), time.sleep(0.2)),
    ]
    for number, moment in enumerate(moments):
        with going_on(tmp_path / f"log{number}", *TINY, f"--workdir={workdir}") as run:
            moment(run)
        # The epochs that were reported as finished have been saved.
        assert max(epochs_said(run.output), default=0) <= epochs(workdir)[-1]
    reached = epochs(workdir)[-1]
    done = finish(run_main, workdir)
    if reached < 4:  # otherwise the last epoch was saved before SIGKILL came
        assert f"Resuming after epoch {reached} of 4" in done.stdout
    assert_same_run(workdir, finished)


@pytest.mark.slow
def test_killed_at_random_25_times(run_main, tmp_path):
    """One run of 40 epochs is killed 25 times; prints what the kills hit."""
    moments = random.Random(0)
    long = (*TINY, "--config.num_epochs=40", "--config.augment.enabled=True")
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    assert run_main(*long, f"--workdir={whole}", timeout=900).returncode == 0
    hits = []

    def being_written(since):
        """Whether a checkpoint is being written; leftovers of earlier kills do not count."""
        for path in (workdir / "checkpoints").glob("*tmp*"):
            with contextlib.suppress(FileNotFoundError):  # it is complete now, and renamed
                if path.stat().st_ctime > since:
                    return True
        return False

    for kill in range(25):
        done = max(epochs(workdir), default=0)
        started = time.time()
        with going_on(tmp_path / f"log{kill}", *long, f"--workdir={workdir}") as run:
            if kill % 5 == 0:  # soon after the start, at any moment
                time.sleep(moments.uniform(0, 6))
            else:
                wanted = moments.randrange(3)
                run.wait_until(lambda wanted=wanted: len(epochs_said(run.output)) >= wanted)
                time.sleep(moments.uniform(0, 0.7))
            if kill % 2:
                run.wait_until(lambda started=started: being_written(started))
            saving = being_written(started)
            run.kill()
            run.wait()
        assert "Traceback" not in run.output
        said = epochs_said(run.output)
        # Only the epoch in progress is lost, and no epoch is trained twice.
        assert said == list(range(done + 1, done + 1 + len(said)))
        assert not said or said[-1] <= epochs(workdir)[-1]
        if (workdir / "metrics.jsonl").exists():
            assert [r["epoch"] for r in records(workdir)][:done] == list(range(1, done + 1))
        hits.append(f"epoch {done + len(said) + 1}{', saving' if saving else ''}")
    done = run_main(*long, f"--workdir={workdir}", timeout=900)
    assert done.returncode == 0, done.stderr
    print(f"{len(hits)} kills: {'; '.join(hits)}; then: {done.stdout.splitlines()[3]}")
    assert sum("saving" in hit for hit in hits) >= 5
    assert_same_run(workdir, whole)


def test_sigterm_stops_soon_and_the_run_resumes(finished, run_main, tmp_path):
    """W&B's run resumes too: the data of its last start contain every step from the first one."""
    workdir, offline = tmp_path / "run", "--config.wandb.mode=offline"
    with going_on(tmp_path / "log", *TINY, offline, f"--workdir={workdir}") as run:
        run.wait_for("epoch 1/4")
        stop(run, signal.SIGTERM)
    assert_says_how_to_resume(run, workdir, signal.SIGTERM)
    finish(run_main, workdir, offline)
    assert_same_results(workdir, finished)
    first, last = sorted(workdir.glob("wandb/offline-run-*"))
    assert first.name.split("-")[-1] == last.name.split("-")[-1]
    logged = OfflineRun(copy(last, tmp_path / "last" / last.name).parent)
    assert [row["_step"] for row in logged.history] == list(range(1, 4 * 63 + 1))
    for record in records(workdir):
        row = logged.history[record["step"] - 1]
        assert row["test/accuracy"] == record["test/accuracy"]
    assert logged.run.run_id == last.name.split("-")[-1]


def test_a_second_run_is_refused_until_ctrl_c_stops_the_first(fork_main, tmp_path):
    workdir = tmp_path / "run"
    with going_on(tmp_path / "log", *TINY, f"--workdir={workdir}") as run:
        run.wait_for("Workdir: ")
        done = fork_main(*TINY, f"--workdir={workdir}")
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: --workdir={workdir} is in use by process {run.pid} on ")
        run.wait_for("epoch 1/4")
        stop(run, signal.SIGINT)
    assert_says_how_to_resume(run, workdir, signal.SIGINT)


def test_a_signal_stops_a_run_that_compiles(tmp_path):
    """It waits for the program that XLA is compiling, and for none in the queue."""
    env = QUICK | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_LOG_COMPILES": "1"}
    with going_on(tmp_path / "log", *TINY, f"--workdir={tmp_path}/run", **env) as run:
        run.wait_for("_train_step")  # JAX prints the names of programs that it compiles
        run.send_signal(signal.SIGTERM)
        assert run.wait(120) == 143
    assert "stopped by SIGTERM" in run.output
    assert "Device: " not in run.output and "_predict_batch" not in run.output
    assert "Traceback" not in run.output


def test_a_finished_run_is_only_drawn_again(finished, run_main, tmp_path):
    workdir = copy(finished, tmp_path / "run")
    for path in (workdir / "figures").iterdir():
        path.unlink()
    (workdir / "report.html").unlink()
    done = finish(run_main, workdir)
    assert "This run is already finished; drawing its figures again" in done.stdout
    assert "epoch 4/4" not in done.stdout
    before, after = files(finished), files(workdir)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert all(name.startswith(("figures/", "report.html")) for name in changed)


def test_more_epochs_extend_a_run(finished, run_main, tmp_path):
    """The extension is stopped by a second Ctrl-C, which ends the process at once, and resumed."""
    workdir = copy(finished, tmp_path / "run")
    with going_on(tmp_path / "log", *TINY, f"--workdir={workdir}", "--config.num_epochs=6") as run:
        run.wait_for("epoch 5/6")
        assert not (workdir / "summary.json").exists()  # the run is unfinished again
        run.send_signal(signal.SIGINT)
        run.wait_for("Ctrl-C stops at once")
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
    finish(run_main, workdir, "--config.num_epochs=6")
    assert records(workdir)[:4] == records(finished)
    assert [record["epoch"] for record in records(workdir)] == [1, 2, 3, 4, 5, 6]
    assert summary(workdir)["config"]["num_epochs"] == 6
    assert json.loads((workdir / "config.json").read_text())["num_epochs"] == 6


def test_another_configuration_is_refused_untouched(finished, fork_main):
    before = files(finished)
    done = fork_main(
        *TINY, f"--workdir={finished}", "--config.model.norm=layer", "--config.num_epochs=5"
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"error: --workdir={finished} has config.model.norm=" in line
    assert "config.model.norm='batch' (now 'layer'); allowed: the same" in line
    done = fork_main(*TINY, f"--workdir={finished}", "--config.num_epochs=3")
    assert done.returncode == 2 and "config.num_epochs=4 (now 3)" in done.stderr
    assert files(finished) == before


def test_a_damaged_checkpoint_is_reported_and_the_one_before_taken(
    finished, run_main, fork_main, tmp_path
):
    workdir = copy(finished, tmp_path / "run")
    newest = workdir / "checkpoints" / "4"
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    done = finish(run_main, workdir)
    (warning,) = [line for line in done.stdout.splitlines() if "warning" in line]
    assert warning.startswith(f"warning: the checkpoint {newest} is damaged: ")
    assert "Resuming after epoch 3 of 4" in done.stdout
    assert done.stderr == ""
    assert_same_run(workdir, finished)
    for path in (workdir / "checkpoints").rglob("files.sha256"):
        path.write_text("")
    before = files(workdir)
    done = fork_main(*TINY, f"--workdir={workdir}", "--config.num_epochs=5")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: no checkpoint in {workdir}/checkpoints can be read (4: ")
    assert line.endswith("restore one from a backup, or choose a new --workdir")
    assert files(workdir) == before

"""The real command, interrupted in different ways and started again."""

import contextlib
import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import (
    QUICK,
    TINY,
    arrays,
    assert_same_results,
    assert_same_run,
    copy,
    environment,
    epochs,
    files,
    going_on,
    records,
    run,
    summary,
)
from tests.wandb_log import OfflineRun

# Ends the process just before, or just after, a file gets its name.
KILL = """
import os, signal

def kill(source, target, replace=os.replace):
    if os.path.basename(target) == {name!r}:
        {action}
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = kill
"""


def finish(workdir, *arguments):
    done = run(*TINY, f"--workdir={workdir}", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refusal(workdir, *arguments):
    """Returns the line of a run that is refused."""
    done = run(*TINY, f"--workdir={workdir}", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert str(workdir) in done.stderr
    return done.stderr


def epochs_said(log):
    return [int(line.split()[1].split("/")[0]) for line in log.splitlines() if "epoch " in line[:6]]


def stop(running, number):
    """Sends a signal to a run, which must stop soon."""
    started = time.monotonic()
    running.send_signal(number)
    assert running.wait(120) == 128 + number
    assert time.monotonic() - started < 60
    assert "Traceback" not in running.output


def test_what_a_run_leaves(finished):
    best = max(records(finished), key=lambda record: record["test/accuracy"])
    assert summary(finished)["best_epoch"] == best["epoch"]
    assert set(epochs(finished)) == {3, 4, best["epoch"]}
    assert arrays(finished)["state/step"] == 4 * 63
    names = {"config.json", "dataset.json", "metrics.jsonl", "summary.json", "report.html"}
    assert {name for name in files(finished) if "/" not in name} == names


def test_resume_after_sigkill_at_the_worst_moments(finished, tmp_path):
    """While a checkpoint is written, before its epoch is recorded, in an epoch, and at the end.

    The name of the folder is no pattern, no placeholder, and no text.
    """
    workdir = tmp_path / os.fsdecode(b"run \xff[1]*?{}%s:")
    moments = [
        ("1.msgpack", "os.truncate(source, 999)", 0),
        ("2.msgpack", "replace(source, target)", 2),
        ("summary.json", "pass", 4),
    ]
    for name, action, reached in moments:
        kill = KILL.format(name=name, action=action)
        with going_on(tmp_path / "log", *TINY, f"--workdir={workdir}", before=kill) as running:
            assert running.wait() == -signal.SIGKILL, running.output
        assert epochs(workdir)[-1] == reached
        if name == "2.msgpack":
            assert [record["epoch"] for record in records(workdir)] == [1]
            with going_on(tmp_path / "log", *TINY, f"--workdir={workdir}") as running:
                running.wait_for("epoch 3/4")
                time.sleep(0.1)
    assert epochs_said(finish(workdir)) == []
    assert_same_run(workdir, finished)


@pytest.mark.slow
def test_resume_after_sigkill_at_25_random_moments(tmp_path):
    """Every other kill comes while a checkpoint is written, the others whenever it happens."""
    moments = random.Random(0)
    long = (*TINY, "--config.num_epochs=50", "--config.augment.enabled=True")
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    assert run(*long, f"--workdir={whole}", timeout=900).returncode == 0
    for kill in range(25):
        done = max(epochs(workdir), default=0)
        wanted, before = moments.randrange(3), ""
        if kill % 2:
            action = f"os.truncate(source, {moments.randrange(9_000)})"
            before = KILL.format(name=f"{done + 1 + wanted}.msgpack", action=action)
        arguments = (*long, f"--workdir={workdir}")
        with going_on(tmp_path / "log", *arguments, before=before) as running:
            if kill % 2:
                assert running.wait() == -signal.SIGKILL, running.output
            elif kill % 4:
                running.wait_until(lambda wanted=wanted: len(epochs_said(running.output)) >= wanted)
                time.sleep(moments.uniform(0, 0.7))
            else:  # soon after the start
                time.sleep(moments.uniform(0, 3))
        assert "Traceback" not in running.output
        said = epochs_said(running.output)
        # Only the epoch in progress is lost, and no epoch is trained twice.
        assert said == list(range(done + 1, done + 1 + len(said)))
        assert not said or said[-1] <= epochs(workdir)[-1]
        with contextlib.suppress(FileNotFoundError):
            assert [r["epoch"] for r in records(workdir)][:done] == list(range(1, done + 1))
    assert run(*long, f"--workdir={workdir}", timeout=900).returncode == 0
    assert_same_run(workdir, whole)


def test_resume_after_sigterm_by_the_printed_command(finished, tmp_path):
    """W&B's run resumes too: the data of its last start contain every step from the first one."""
    workdir = tmp_path / "my run's [2]*?{x} %d"
    offline = "--config.wandb.mode=offline"
    with going_on(tmp_path / "log", *TINY, offline, f"--workdir={workdir}") as running:
        running.wait_for("epoch 1/4")
        printed = running.output.splitlines()[1]
        stop(running, signal.SIGTERM)
    reached, command = epochs(workdir)[-1], printed.partition(": ")[2]
    assert shlex.split(command)[0] == "python"
    last = running.output.splitlines()[-1]
    assert f"SIGTERM after epoch {reached} of 4" in last and last.endswith(command)
    assert len(records(workdir)) == reached
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env=environment(PATH=path), cwd="/")
    assert_same_results(workdir, finished)
    first, last = sorted(workdir.glob("wandb/offline-run-*"))
    assert first.name.split("-")[-1] == last.name.split("-")[-1]
    logged = OfflineRun(copy(last, tmp_path / "last" / last.name).parent)
    assert [row["_step"] for row in logged.history] == list(range(1, 4 * 63 + 1))
    for record in records(workdir):
        row = logged.history[record["step"] - 1]
        assert row["test/accuracy"] == record["test/accuracy"]
    assert logged.run.run_id == last.name.split("-")[-1]


def test_second_run_is_refused_until_ctrl_c_stops_the_first(tmp_path):
    workdir = tmp_path / "run"
    with going_on(tmp_path / "log", *TINY, f"--workdir={workdir}") as running:
        running.wait_for("epoch 1/4")
        assert "another process" in refusal(workdir)
        stop(running, signal.SIGINT)
    assert f"SIGINT after epoch {epochs(workdir)[-1]} of 4" in running.output.splitlines()[-1]


def test_signal_while_compiling(tmp_path):
    log_compiles = "import jax; jax.config.update('jax_log_compiles', True)"
    env = QUICK | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    arguments = (*TINY, f"--workdir={tmp_path}/run")
    with going_on(tmp_path / "log", *arguments, before=log_compiles, **env) as running:
        running.wait_for("_train_step")  # JAX prints the names of programs that it compiles
        stop(running, signal.SIGTERM)
    assert "stopped by SIGTERM" in running.output and "Device: " not in running.output


def test_finished_run_is_only_drawn_again(finished, tmp_path):
    workdir = copy(finished, tmp_path / "run")
    for path in (*(workdir / "figures").iterdir(), workdir / "report.html"):
        path.unlink()
    assert epochs_said(finish(workdir)) == []
    before, after = files(finished), files(workdir)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert all(name.startswith(("figures/", "report.html")) for name in changed)


def test_more_epochs_and_a_second_ctrl_c(finished, tmp_path):
    """An extension is ended at once by the second Ctrl-C, and resumed."""
    workdir, longer = copy(finished, tmp_path / "run"), "--config.num_epochs=6"
    with going_on(tmp_path / "log", *TINY, f"--workdir={workdir}", longer) as running:
        running.wait_for("epoch 5/6")
        assert not (workdir / "summary.json").exists()  # the run is unfinished again
        running.send_signal(signal.SIGINT)
        running.wait_for("Ctrl-C")
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    finish(workdir, longer)
    assert records(workdir)[:4] == records(finished)
    assert [record["epoch"] for record in records(workdir)] == [1, 2, 3, 4, 5, 6]
    for config in (summary(workdir)["config"], json.loads((workdir / "config.json").read_text())):
        assert config["num_epochs"] == 6


def test_another_configuration_is_refused_untouched(finished):
    before = files(finished)
    named = "config.model.norm='batch' (now 'layer')"
    assert named in refusal(finished, "--config.model.norm=layer")
    assert "config.num_epochs=4 (now 3)" in refusal(finished, "--config.num_epochs=3")
    assert files(finished) == before


def test_damaged_checkpoint_is_reported_and_the_one_before_taken(finished, tmp_path):
    workdir = copy(finished, tmp_path / "run")
    newest = workdir / "checkpoints" / "4.msgpack"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    said = finish(workdir)
    (warning,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert str(newest) in warning and epochs_said(said) == [4]
    assert_same_run(workdir, finished)
    for path in (workdir / "checkpoints").iterdir():
        path.write_bytes(b"")
    before = files(workdir)
    assert str(workdir / "checkpoints") in refusal(workdir, "--config.num_epochs=5")
    assert files(workdir) == before

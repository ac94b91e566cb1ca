"""The study command on the bundled sample: its results, its end by force, and going on."""

import json
import signal
import subprocess
import sys

import jax
import pytest

from mnist_flax import data
from mnist_flax.errors import UserError
from mnist_flax.run.workdir import Workdir
from mnist_flax.runtime import devices
from mnist_flax.study import laboratory
from mnist_flax.trainer import Trainer
from tests.runs import ROOT, TINY, Run, environment, files, going_on, summary
from tests.wandb_log import OfflineRun

STUDY = ("-m", "mnist_flax.study")
RECIPE = """
from configs import quick

def get_config():
    config = quick.get_config()
    config.label_smoothing = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.ema_decay = 0.5
    config.evaluation.num_views = 2
    config.study.num_seeds = config.study.ensemble_size = 2
    config.study.variants = {"layer norm": {"model": {"norm": "layer"}}}
    return config
"""
NAMES = ("base", "layer norm")
SEEDS = (42, 43)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Of a study of four replicas of two epochs."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    path.write_text(RECIPE)
    return (f"--config={path}", *TINY[1:], "--config.num_epochs=2")


def study(*arguments, **env):
    return subprocess.run(
        [sys.executable, *STUDY, *arguments],
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """A study that came to its end; its folder and what it said."""
    workdir = tmp_path_factory.mktemp("study") / "norms"
    done = study(*arguments, f"--workdir={workdir}", "--config.wandb.mode=offline", "--ensemble")
    assert done.returncode == 0, done.stderr
    return workdir, done


def results(workdir):
    """What the replicas came to, times aside."""
    found = {}
    for name in NAMES:
        for seed in SEEDS:
            replica = json.loads((workdir / "replicas" / name / f"{seed}.json").read_text())
            records = [
                {k: v for k, v in record.items() if k != "seconds"} for record in replica["records"]
            ]
            found[name, seed] = (replica["results"], records)
    return found


def test_it_says_and_leaves_what_it_found(finished):
    workdir, done = finished
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.split("/")[0].strip().isdigit()]) == 4
    assert " 0:00:00 left" in done.stdout
    assert lines[-1] == f"Done: {workdir / 'study.md'}"
    assert done.stderr == ""
    text = (workdir / "study.md").read_text()
    assert "SAMPLE" in text and "| layer norm | 2 |" in text
    content = json.loads((workdir / "study.json").read_text())
    overrides = {row["name"]: row["overrides"] for row in content["recipes"]}
    assert overrides == {"base": {}, "layer norm": {"model.norm": "layer"}}
    assert len({tuple(results(workdir)[key][0]["test"].values()) for key in results(workdir)}) == 4
    assert {len(row["ensembles"][-1]["num_errors"]) for row in content["recipes"]} == {1}
    for name in ("study", "ensemble"):
        assert (workdir / "figures" / f"{name}.png").stat().st_size > 10_000


@pytest.mark.slow  # of the same, in one process: test_replicas
def test_a_replica_is_the_run_of_its_seed(finished, arguments, run_main, tmp_path):
    done = run_main(*arguments, "--config.seed=43", f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    (test, records) = results(finished[0])["base", 43]
    alone = summary(tmp_path / "run")
    assert test["test"]["num_errors"] == alone["num_test_errors"]
    assert test["test"]["loss"] == pytest.approx(alone["final_test_loss"], rel=1e-5)
    assert records[-1]["step"] == alone["step"]


def test_wandb_has_a_group_and_a_run_for_each(finished):
    workdir, _ = finished
    folders = (workdir / "wandb").glob("offline-run-*")
    runs = [OfflineRun(workdir, folder.name) for folder in folders]
    assert sorted(run.run.display_name for run in runs) == [
        f"{name}-seed{seed}" for name in NAMES for seed in SEEDS
    ]
    assert {run.run.run_group for run in runs} == {"norms"}
    assert len({run.run.run_id for run in runs}) == 4
    for run in runs:
        assert len(run.history) == 2 and run.summary["test_accuracy"] > 0.1
        assert run.config["seed"] in SEEDS


def test_killed_it_goes_on_and_runs_nothing_twice(finished, arguments, tmp_path):
    workdir = tmp_path / "norms"
    command = (*arguments, f"--workdir={workdir}")
    with going_on(tmp_path / "log", *command, command=STUDY) as run:
        run.wait_until(lambda: len(list(workdir.glob("replicas/*/*.json"))) == 2)
        run.send_signal(signal.SIGKILL)
        run.wait()
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("replicas/*/*.json")}
    assert 2 <= len(before) < 4
    done = study(*command)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of them finished" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert results(workdir) == results(finished[0])


def test_asked_to_stop_it_says_how_to_go_on(arguments, tmp_path):
    workdir = tmp_path / "norms"
    command = (*arguments, f"--workdir={workdir}", "--config.num_epochs=10000")
    run = Run(tmp_path / "log", *command, command=STUDY)
    try:
        run.wait_until(lambda: workdir.exists() and "Study:" in run.output)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 143
    finally:
        run.kill()
    last = run.output.splitlines()[-1]
    assert last.startswith(
        "stopped by SIGTERM with 0 of 4 replicas finished; to go on: "
        "python -m mnist_flax.study --config="
    )
    assert "Traceback" not in run.output


def test_finished_it_reports_again_and_takes_no_other_recipe(finished, arguments):
    workdir, _ = finished
    before = files(workdir / "replicas")
    (workdir / "study.md").unlink()
    again = study(*arguments, f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    assert "4 of them finished" in again.stdout and (workdir / "study.md").exists()
    assert files(workdir / "replicas") == before
    other = study(*arguments, f"--workdir={workdir}", "--config.batch_size=32")
    assert other.returncode == 2 and other.stdout == ""
    assert "config.batch_size=64 (now 32)" in other.stderr and other.stderr.count("\n") == 1
    assert files(workdir / "replicas") == before


@pytest.fixture
def in_process(tiny_config, tmp_path):
    """A study in this process, of one recipe."""
    tiny_config.batch_size = 500
    tiny_config.augment.enabled = False
    whole = data.load(tiny_config.dataset, 0)
    few = [data.Split(*(array[:500] for array in split)) for split in (whole.train, whole.test)]
    dataset = whole._replace(train=few[0], test=few[1])

    def create(path="study"):
        folder = Workdir(str(tmp_path / path), tiny_config.to_dict(), laboratory._may_differ)
        return laboratory.Study(tiny_config, dataset, folder, ensemble=False)

    create.config, create.path = tiny_config, tmp_path / "study"
    return create


@pytest.mark.parametrize("fails", [False, True])
def test_as_many_together_as_the_memory_has_room_for(in_process, monkeypatch, capsys, fails):
    """By what the program needs, or by XLA's own refusal to compile it."""
    in_process.config.study.update(num_seeds=2, num_together=2)
    if fails:
        compile_all = Trainer.finish_compiling

        def finish_compiling(trainer):
            if trainer.num_replicas > 1:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
            compile_all(trainer)

        monkeypatch.setattr(Trainer, "finish_compiling", finish_compiling)
    else:
        needed = property(lambda trainer: 100 * trainer.num_replicas)
        monkeypatch.setattr(Trainer, "memory", needed)
        monkeypatch.setattr(devices, "memory", lambda: 150)
    in_process().complete()
    said = capsys.readouterr().out
    assert said.count("base: the memory has room for 1 replicas at a time") == 1
    replicas = [json.loads(path.read_text()) for path in in_process.path.glob("replicas/*/*.json")]
    assert sorted((replica["seed"], replica["num_together"]) for replica in replicas) == [
        *((42, 1), (43, 1))
    ]


def test_a_variant_of_before_is_not_taken_for_another(in_process):
    in_process.config.study.num_seeds = 1
    in_process.config.study.variants = {"other": {"optimizer": {"b1": 0.8}}}
    in_process().complete()
    in_process.config.study.variants = {"other": {"optimizer": {"b1": 0.7}}}
    # The lock is held by this process: the same folder, under another name.
    in_process.path.rename(in_process.path.with_name("again"))
    with pytest.raises(UserError, match=r"other, seed 42, .*config.optimizer.b1=0.8 \(now 0.7\)"):
        in_process("again")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ensemble"], "config.study.ensemble_size=10 is not allowed with --ensemble; allowed: "),
        (["--config.seed=4294967294"], "config.study.num_seeds=4 is not allowed with config.seed="),
        (["--config.study.num_seeds=0"], "config.study.num_seeds=0 is not allowed; allowed: an "),
        (["--config.study.num_seed=3"], "config.study.num_seed is not a field; allowed: study."),
    ],
)
def test_bad_flags_are_one_line(arguments, says, tmp_path):
    done = study(*TINY, "--config.study.num_seeds=4", *arguments, f"--workdir={tmp_path}/study")
    assert done.returncode == 2 and done.stdout == ""
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_a_run_is_not_taken_for_a_study(in_process, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="study holds a run; allowed: a new folder"):
        in_process()


def test_replicas_that_diverge_are_results_too(in_process):
    in_process.config.optimizer.learning_rate = 1e30
    in_process.config.study.num_seeds = 2
    in_process().complete()
    assert "; 2 diverged" in (in_process.path / "study.md").read_text()
    content = (in_process.path / "study.json").read_text()
    (recipe,) = json.loads(content, parse_constant=pytest.fail)["recipes"]
    assert recipe["num_diverged"] == 2
    assert {replica["results"]["test"]["loss"] for replica in recipe["replicas"]} == {None}


def test_a_run_does_not_go_on_in_a_study(finished, run_main, arguments):
    workdir, _ = finished
    done = run_main(*arguments, f"--workdir={workdir}")
    assert done.returncode == 2
    assert done.stderr == f"error: --workdir={workdir} holds a study; allowed: a new folder\n"

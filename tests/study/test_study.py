"""The study command on the bundled sample: its results, and how it is stopped and resumed."""

import contextlib
import functools
import json
import re
import signal

import numpy as np
import pytest

from mnist_flax.errors import UserError
from mnist_flax.runtime import devices, memory
from mnist_flax.runtime.signals import Interrupted
from mnist_flax.study import laboratory
from mnist_flax.study.replicas import Replicas
from tests.runs import QUICK, TINY, files, going_on, python, summary
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
    config.study.num_final_epochs = 2
    config.study.variants = {"layer norm": {"model": {"norm": "layer"}}}
    return config
"""
NAMES = ("base", "layer norm")
SEEDS = (42, 43)
NUM_EPOCHS = 4


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """The arguments of a study with four replicas."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    path.write_text(RECIPE)
    return (f"--config={path}", *TINY[1:], f"--config.num_epochs={NUM_EPOCHS}")


study = functools.partial(python, *STUDY, timeout=600, **QUICK)


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """The folder and the output of a study that was never interrupted."""
    workdir = tmp_path_factory.mktemp("study") / "norms"
    done = study(*arguments, f"--workdir={workdir}", "--config.wandb.mode=offline", "--ensemble")
    assert done.returncode == 0, done.stderr
    return workdir, done


def load(workdir):
    """Returns the content of each finished replica's file, by variant and seed."""
    paths = workdir.glob("replicas/*/*.json")
    return {(path.parent.name, int(path.stem)): json.loads(path.read_text()) for path in paths}


def results(workdir):
    """Returns the replicas' results and records, without times."""
    return {
        key: (
            replica["results"],
            [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in replica["records"]],
        )
        for key, replica in load(workdir).items()
    }


def unfinished(workdir):
    """Returns the complete checkpoints of unfinished replicas, the newest last."""
    digests = workdir.glob("replicas/*/*.unfinished/*/files.sha256")
    return sorted((path.parent for path in digests), key=lambda path: int(path.name))


def under_way(workdir):
    """Returns the newest complete checkpoint of each replica without a final result."""
    found = {
        (path.parents[1].name, int(path.parent.name.partition("-")[0])): path
        for path in unfinished(workdir)
    }
    return {replica: path for replica, path in found.items() if replica not in load(workdir)}


def test_it_prints_and_leaves_what_it_found(finished):
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
    found = results(workdir)
    assert found.keys() == {(name, seed) for name in NAMES for seed in SEEDS}
    assert len({tuple(of_replica["test"].values()) for of_replica, _ in found.values()}) == 4
    assert {len(row["ensembles"][-1]["num_errors"]) for row in content["recipes"]} == {1}
    for name in ("study", "ensemble"):
        assert (workdir / "figures" / f"{name}.png").stat().st_size > 10_000
    page = (workdir / "study.html").read_text()
    assert "SAMPLE" in page and page.count("data:image/png") == 2
    command = re.search(r"<code>(.*?)</code>", page, re.DOTALL)[1]
    assert re.sub(r"<[^>]*>", "", command).startswith("python -m mnist_flax.study --config=")
    assert str(workdir) not in page
    assert unfinished(workdir) == [] and list(workdir.glob("replicas/*/*.unfinished")) == []


def test_results_are_means_over_the_last_epochs(finished):
    """The test set is evaluated in these epochs only."""
    for of_replica, records in results(finished[0]).values():
        assert [epoch["epoch"] for epoch in records] == [1, 2, 3, 4]
        assert ["test/loss" in epoch for epoch in records] == [False, False, True, True]
        test, last = of_replica["test"], records[-2:]
        assert test["loss"] == pytest.approx(np.mean([epoch["test/loss"] for epoch in last]))
        accuracy = np.mean([epoch["test/accuracy"] for epoch in last])
        assert test["accuracy"] == pytest.approx(accuracy)
        assert test["num_errors"] == pytest.approx(1_000 * (1 - accuracy))
        assert last[0]["test/loss"] != last[1]["test/loss"]


@pytest.mark.slow  # test_replicas checks the same in one process
def test_a_replica_is_the_run_of_its_seed(run_main, tmp_path):
    """They agree up to rounding; a large epsilon keeps Adam from magnifying it."""
    arguments = (*TINY, "--config.seed=43", "--config.optimizer.eps=0.1")
    done = study(*arguments, "--config.study.num_seeds=1", f"--workdir={tmp_path}/study")
    assert done.returncode == 0, done.stderr
    assert "Study: 1 replica (1 recipe, 1 seed), 0 finished; Device: cpu" in done.stdout
    done = run_main(*arguments, f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    ((_, records),) = results(tmp_path / "study").values()
    alone = summary(tmp_path / "run")
    assert records[-1]["step"] == alone["step"]
    assert records[-1]["test/loss"] == pytest.approx(alone["final_test_loss"], rel=1e-3)
    # An accuracy is a count: one or two images may be classified differently.
    accuracy = alone["final_test_accuracy"]
    assert records[-1]["test/accuracy"] == pytest.approx(accuracy, abs=2.01 / 1_000)


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
        assert len(run.history) == NUM_EPOCHS and run.summary["test_accuracy"] > 0.1
        assert run.config["seed"] in SEEDS


def test_killed_it_resumes_from_the_last_epoch_and_repeats_nothing(finished, arguments, tmp_path):
    """Finished replicas are not trained again, and the unfinished one loses no saved epoch."""
    workdir = tmp_path / "norms"
    command = (*arguments, f"--workdir={workdir}")
    with going_on(tmp_path / "log", *command, command=STUDY, **QUICK) as run:
        run.wait_until(lambda: len(load(workdir)) == 2 and under_way(workdir))
        run.send_signal(signal.SIGKILL)
        run.wait()
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("replicas/*/*.json")}
    assert len(before) == 2
    ((replica, checkpoint),) = under_way(workdir).items()
    details = json.loads((checkpoint / "details" / "metadata").read_text())
    saved = [epoch["replicas"][0] for epoch in details["records"]]
    assert len(saved) == int(checkpoint.name) >= 1
    done = study(*command)
    assert done.returncode == 0, done.stderr
    assert "(2 recipes, 2 seeds), 2 finished; " in done.stdout and "warning" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert results(workdir) == results(finished[0])
    # A repeated epoch would have other seconds, so these are the saved records.
    assert load(workdir)[replica]["records"][: len(saved)] == saved
    assert not checkpoint.parent.exists()


def test_asked_to_stop_it_tells_how_to_resume(arguments, tmp_path):
    workdir = tmp_path / "norms"
    command = (*arguments, f"--workdir={workdir}", "--config.num_epochs=10000")
    with going_on(tmp_path / "log", *command, command=STUDY, **QUICK) as run:
        run.wait_for("Study:")
        run.send_signal(signal.SIGTERM)
        assert run.wait(300) == 143
    last = run.output.splitlines()[-1]
    assert last.startswith(
        "stopped by SIGTERM with 0 of 4 replicas finished; to resume: "
        "python -m mnist_flax.study --config="
    )
    assert "Traceback" not in run.output


def test_finished_it_reports_again_and_takes_no_other_recipe(finished, fork_main, arguments):
    workdir, _ = finished
    before = files(workdir / "replicas")
    (workdir / "study.md").unlink()
    again = study(*arguments, f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    assert ", 4 finished; " in again.stdout and (workdir / "study.md").exists()
    assert files(workdir / "replicas") == before
    changed = (*arguments, f"--workdir={workdir}", "--config.batch_size=32")
    other = fork_main(*changed, command="mnist_flax.study")
    assert other.returncode == 2 and other.stdout == ""
    assert "config.batch_size=64 (now 32)" in other.stderr and other.stderr.count("\n") == 1
    assert files(workdir / "replicas") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ensemble"], "config.study.ensemble_size=10 is not allowed; allowed: at most config."),
        (
            ["--config.study.num_seed=3"],
            "config.study.num_seed is not a field; did you mean --config.study.num_seeds? ",
        ),
    ],
)
def test_bad_flags_are_one_line(fork_main, arguments, message, tmp_path):
    arguments = (*TINY, "--config.study.num_seeds=4", *arguments, f"--workdir={tmp_path}/study")
    done = fork_main(*arguments, command="mnist_flax.study")
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_a_run_does_not_resume_a_study(finished, fork_main, arguments):
    workdir, _ = finished
    done = fork_main(*arguments, f"--workdir={workdir}")
    assert done.returncode == 2
    assert done.stderr == f"error: --workdir={workdir} holds a study; allowed: a new folder\n"


class TestInThisProcess:
    """Studies with few images; each takes a second or two."""

    @pytest.fixture
    def config(self, tiny_config):
        tiny_config.batch_size = 160
        tiny_config.augment.enabled = False
        tiny_config.study.num_seeds = 1
        return tiny_config

    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "study"

    @pytest.fixture
    def run(self, config, path, small_data):
        return lambda folder=path: laboratory.run(config, str(folder))

    @pytest.fixture
    def trained(self, monkeypatch):
        """The list of epochs that have been started, in order."""
        epochs, train_epoch = [], Replicas.train_epoch

        def noted(trainer, state, epoch, on_step):
            epochs.append(epoch)
            return train_epoch(trainer, state, epoch, on_step)

        monkeypatch.setattr(Replicas, "train_epoch", noted)
        return epochs

    @contextlib.contextmanager
    def interrupted_in(self, epoch, trained, monkeypatch):
        """Pretends that SIGTERM comes during an epoch of this number."""
        with monkeypatch.context() as patch:
            is_there = lambda: signal.SIGTERM if trained[-1:] == [epoch] else 0  # noqa: E731
            patch.setattr(laboratory.signals, "received", is_there)
            with pytest.raises(Interrupted, match="with 0 of"):
                yield

    def test_replicas_together_resume_from_their_last_epoch(
        self, config, run, path, trained, monkeypatch, tmp_path
    ):
        config.num_epochs = 3
        config.dataset.validation_size = 20
        config.study.update(num_seeds=2, num_together=2, num_final_epochs=2)
        with self.interrupted_in(3, trained, monkeypatch):
            run()
        assert trained == [1, 2, 3] and load(path) == {}
        # Only the finished epoch is on the disk.
        assert [checkpoint.name for checkpoint in unfinished(path)] == ["2"]
        run()
        assert trained == [1, 2, 3, 3]
        run(tmp_path / "uninterrupted")
        assert trained[4:] == [1, 2, 3]
        assert results(path) == results(tmp_path / "uninterrupted")
        for replica in load(path).values():
            assert replica["num_together"] == 2
            for split, size in (("validation", 20), ("test", 100)):
                last = [epoch[f"{split}/accuracy"] for epoch in replica["records"][-2:]]
                of_split = replica["results"][split]
                assert of_split["accuracy"] == pytest.approx(np.mean(last))
                assert of_split["num_errors"] == pytest.approx(size * (1 - np.mean(last)))

    def test_a_variant_that_changed_starts_again(self, config, run, path, trained, monkeypatch):
        config.num_epochs = 2
        config.study.variants = {"other": {"optimizer": {"b1": 0.8}}}
        with monkeypatch.context() as patch:
            patch.setattr(laboratory.Study, "_plan", lambda study: iter([("other", [42])]))
            with self.interrupted_in(2, trained, monkeypatch):
                run()
        assert len(unfinished(path)) == 1
        config.study.variants = {"other": {"optimizer": {"b1": 0.7}}}
        run()
        assert trained == [1, 2, 1, 2, 1, 2]  # the old `other`, the base, the new `other`
        assert load(path)["other", 42]["config"]["optimizer"]["b1"] == 0.7
        assert unfinished(path) == []

    def test_a_damaged_checkpoint_is_named(self, config, run, path, trained, monkeypatch):
        config.num_epochs = 3
        with self.interrupted_in(3, trained, monkeypatch):
            run()
        (checkpoint,) = unfinished(path)
        (checkpoint / "details" / "metadata").write_text("{}")
        with pytest.raises(UserError, match=f"no checkpoint in {checkpoint.parent} can be read"):
            run()

    def test_checkpoints_of_finished_replicas_do_not_stay(self, config, run, path, trained):
        """They are removed even if the process was killed just before it removed them."""
        config.num_epochs = 2
        run()
        left = path / "replicas" / "base" / "42-42.0123456789ab.unfinished"
        (left / "1").mkdir(parents=True)
        run()
        assert not left.exists() and trained == [1, 2]

    def test_as_many_together_as_fit_in_memory(self, config, run, path, monkeypatch, capsys):
        config.study.update(num_seeds=2, num_together=2)
        monkeypatch.setattr(Replicas, "memory", lambda replicas: 100 * replicas.num_replicas)
        monkeypatch.setattr(memory, "free", lambda: 150)
        run()
        output = capsys.readouterr().out
        assert output.count("base: training 1 at a time; more do not fit in memory") == 1
        together = {seed: replica["num_together"] for (_, seed), replica in load(path).items()}
        assert together == {42: 1, 43: 1}

    def test_one_copy_of_the_data_serves_all_recipes(self, config, run, monkeypatch):
        config.study.variants = {"no norm": {"model": {"norm": "none"}}}
        config.study.num_seeds = 2
        placed, place = [], devices.place
        monkeypatch.setattr(devices, "place", lambda *args: placed.append(1) or place(*args))
        run()
        assert placed == [1]

    def test_a_variant_of_before_is_not_taken_for_another(self, config, run):
        config.study.variants = {"other": {"optimizer": {"b1": 0.8}}}
        run()
        config.study.variants = {"other": {"optimizer": {"b1": 0.7}}}
        with pytest.raises(
            UserError, match=r"other, seed 42, .*config.optimizer.b1=0.8 \(now 0.7\)"
        ):
            run()

    def test_more_seeds_and_variants_are_welcome_and_other_averages_are_not(
        self, config, run, path
    ):
        config.num_epochs = 2
        run()
        (before,) = load(path).items()
        config.study.num_seeds = 2
        config.study.variants = {"other": {"optimizer": {"b1": 0.8}}}
        run()
        found = load(path)
        assert len(found) == 4 and before in found.items()
        config.study.num_final_epochs = 2
        with pytest.raises(UserError, match=r"study\.num_final_epochs=1 \(now 2\)"):
            run()

    @pytest.mark.parametrize(
        ("group", "field", "value", "message"),
        [
            ("study", "num_seeds", 0, "config.study.num_seeds=0 is not allowed; allowed: an int"),
            ("study", "num_final_epochs", 2, "allowed: at most the 1 epochs of base"),
            (
                "",
                "seed",
                2**32 - 1,
                "config.study.num_seeds=2 is not allowed; allowed: at most 1, because seeds must",
            ),
        ],
    )
    def test_fields_that_do_not_fit_are_refused(
        self, config, run, path, group, field, value, message
    ):
        config.study.num_seeds = 2
        (config[group] if group else config)[field] = value
        with pytest.raises(UserError) as error:
            run()
        assert message in str(error.value)
        assert not path.exists()

    def test_a_run_is_not_taken_for_a_study(self, run, path):
        path.mkdir()
        (path / "metrics.jsonl").write_text("")
        with pytest.raises(UserError, match="study holds a run; allowed: a new folder"):
            run()

    def test_replicas_that_diverge_are_results_too(self, config, run, path):
        config.optimizer.learning_rate = 1e30
        config.study.num_seeds = 2
        run()
        assert "; 2 replicas diverged" in (path / "study.md").read_text()
        content = (path / "study.json").read_text()
        (recipe,) = json.loads(content, parse_constant=pytest.fail)["recipes"]
        assert recipe["num_diverged"] == 2
        assert {replica["results"]["test"]["loss"] for replica in recipe["replicas"]} == {None}

"""The study command on the bundled sample: its results, and how it is stopped and resumed."""

import functools
import json
import re
import signal
import time

import jax
import numpy as np
import pytest

from mnist_flax import train
from mnist_flax.errors import UserError
from mnist_flax.run.checkpoint import read
from mnist_flax.runtime.signals import Interrupted
from mnist_flax.study import laboratory, tracking
from mnist_flax.study.replicas import Replicas
from tests import runs
from tests.runs import QUICK, TINY, files, going_on
from tests.wandb_log import OfflineRun

STUDY = {"command": "mnist_flax.study", **QUICK}
RECIPE = """
from configs import quick

def get_config():
    config = quick.get_config()
    config.optimizer.schedule = "cosine"
    config.optimizer.ema_decay = 0.5
    config.study.num_seeds = 2
    config.study.variants = {"layer norm": {"model": {"norm": "layer"}}}
    return config
"""
REPLICAS = {(name, seed) for name in ("base", "layer norm") for seed in (42, 43)}

study = functools.partial(runs.run, timeout=600, **STUDY)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """The arguments of a study with four replicas."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    path.write_text(RECIPE)
    return (f"--config={path}", *TINY[1:])


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """The folder and the output of a study that was never interrupted, inside a W&B sweep."""
    workdir = tmp_path_factory.mktemp("study") / "norms"
    command = (*arguments, f"--workdir={workdir}", "--config.wandb.mode=offline", "--ensemble")
    done = study(*command, WANDB_SWEEP_ID="abc", WANDB_RUN_ID="of-the-sweep")
    assert done.returncode == 0, done.stderr
    return workdir, done


def load(workdir):
    """Returns the content of each finished replica's file, by variant and seed."""
    paths = workdir.glob("replicas/*/*.json")
    return {(path.parent.name, int(path.stem)): json.loads(path.read_text()) for path in paths}


def records(workdir):
    """Returns the replicas' records, without times."""
    return {
        key: [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in replica["records"]]
        for key, replica in load(workdir).items()
    }


def unfinished(workdir):
    """Returns the checkpoints of unfinished replicas."""
    return sorted(workdir.glob("replicas/*/unfinished/*.msgpack"))


def test_it_prints_and_leaves_what_it_found(finished):
    workdir, done = finished
    lines = done.stdout.splitlines()
    assert [line[:6] for line in lines if " left" in line] == [f"{n} of 4" for n in (1, 2, 3, 4)]
    assert " 0:00:00 left" in done.stdout and done.stderr == ""
    ending = lines[lines.index(f"Done: {workdir / 'study.md'}") + 1 :]
    assert ending[-1].endswith(f"wandb sync {workdir}/wandb/offline-*")
    text, page = (workdir / "study.md").read_text(), (workdir / "study.html").read_text()
    assert "SAMPLE" in text and "| layer norm | 2 |" in text
    content = json.loads((workdir / "study.json").read_text())
    overrides = {row["name"]: row["overrides"] for row in content["recipes"]}
    assert overrides == {"base": {}, "layer norm": {"model.norm": "layer"}}
    assert all(0 < row["ensemble_errors"] < 1_000 for row in content["recipes"])
    assert load(workdir).keys() == REPLICAS and unfinished(workdir) == []
    assert len({str(of_replica) for of_replica in records(workdir).values()}) == 4
    command = re.search(r"<code>(.*?)</code>", page, re.DOTALL)[1]
    assert re.sub(r"<[^>]*>", "", command).startswith("python -m mnist_flax.study --config=")
    assert "SAMPLE" in page and str(workdir) not in page


def test_wandb_has_a_group_and_a_run_for_each_even_in_a_sweep(finished):
    workdir, _ = finished
    folders = (workdir / "wandb").glob("offline-run-*")
    runs = [OfflineRun(workdir, folder.name) for folder in folders]
    names = {run.run.display_name for run in runs}
    assert names == {f"{name}-seed{seed}" for name, seed in REPLICAS} and len(runs) == 4
    assert {run.run.run_group for run in runs} == {"norms"}
    assert {run.run.run_id for run in runs} == {of["run_id"] for of in load(workdir).values()}
    for run in runs:
        assert len(run.history) == 4 and run.summary["test_accuracy"] > 0.1


def test_stopped_and_killed_it_resumes_and_repeats_nothing(finished, arguments, tmp_path):
    """Finished replicas are not trained again, and the unfinished one loses no saved epoch."""
    workdir, kept = tmp_path / "norms", {}
    command = (*arguments, f"--workdir={workdir}")
    for number, by in ((1, signal.SIGTERM), (3, signal.SIGKILL)):
        with going_on(tmp_path / "log", *command, **STUDY) as run:
            run.wait_until(lambda n=number: len(load(workdir)) == n and unfinished(workdir))
            run.send_signal(by)
            assert run.wait(300) == (143 if by == signal.SIGTERM else -signal.SIGKILL)
        assert load(workdir).items() >= kept.items() and "Traceback" not in run.output
        kept = load(workdir)
        if by == signal.SIGTERM:
            assert run.output.splitlines()[-1].startswith(
                "stopped by SIGTERM with 1 of 4 replicas finished; to resume: "
                "python -m mnist_flax.study --config="
            )
    saved = [epoch["replicas"][0] for epoch in read(unfinished(workdir)[-1]).history.records]
    done = study(*command)
    assert done.returncode == 0, done.stderr
    assert "Study: 3 of 4 replicas finished" in done.stdout and "warning" not in done.stdout
    assert load(workdir).items() >= kept.items() and records(workdir) == records(finished[0])
    # A repeated epoch would have other seconds, so these are the saved records.
    assert saved in [of["records"][: len(saved)] for of in load(workdir).values()]
    before = files(workdir / "replicas")
    assert study(*command).returncode == 0 and files(workdir / "replicas") == before


class TestInThisProcess:
    """Studies with few images; each takes a second or two."""

    @pytest.fixture
    def config(self, tiny_config):
        tiny_config.batch_size, tiny_config.num_epochs = 160, 2
        tiny_config.augment.enabled = False
        tiny_config.study.num_seeds = 1
        return tiny_config

    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "study"

    @pytest.fixture
    def run(self, config, path, small_data):
        return lambda folder=path: laboratory.run(config, folder)

    @pytest.fixture
    def trained(self, monkeypatch):
        """The seeds and epochs that have been started, in order, each as one tuple."""
        started, train_epoch, create = [], Replicas.train_epoch, Replicas.create_state

        def noted(trainer, state, epoch, on_step):
            started.append((*trainer.seeds, epoch))
            return train_epoch(trainer, state, epoch, on_step)

        def create_noted(trainer, seeds):
            trainer.seeds = seeds.tolist()
            return create(trainer, seeds)

        monkeypatch.setattr(Replicas, "train_epoch", noted)
        monkeypatch.setattr(Replicas, "create_state", create_noted)
        return started

    @pytest.fixture
    def interrupt(self, run, trained, monkeypatch):
        """Runs a study; pretends that SIGTERM comes when a group of seeds is in an epoch."""

        def interrupt(*where):
            with monkeypatch.context() as patch:
                is_there = lambda: signal.SIGTERM if trained[-1:] == [where] else 0  # noqa: E731
                patch.setattr(laboratory.signals, "received", is_there)
                with pytest.raises(Interrupted):
                    run()
            trained.clear()

        return interrupt

    def test_more_seeds_restart_no_replica(self, config, run, path, trained, interrupt, tmp_path):
        """A third seed, which had no partner in its group, resumes alone."""
        config.num_epochs = 3
        config.dataset.validation_size = 20
        config.study.update(num_seeds=3, num_together=2, num_final_epochs=2)
        interrupt(44, 3)
        assert [file.name for file in unfinished(path)] == ["2.msgpack"]
        run(tmp_path / "uninterrupted")
        assert trained == [(42, 43, 1), (42, 43, 2), (42, 43, 3), (44, 1), (44, 2), (44, 3)]
        config.study.num_seeds = 6
        trained.clear()
        run()
        assert trained[:2] == [(44, 3), (45, 1)] and trained[-1] == (46, 47, 3)
        found = records(path)
        assert found.items() >= records(tmp_path / "uninterrupted").items() and len(found) == 6
        replicas = load(path)
        assert [replicas["base", 42 + i]["num_together"] for i in range(6)] == [2, 2, 1, 1, 2, 2]
        for replica in replicas.values():
            assert ["test/loss" in epoch for epoch in replica["records"]] == [False, True, True]
            for split, size in (("validation", 20), ("test", 100)):
                last = [epoch[f"{split}/accuracy"] for epoch in replica["records"][-2:]]
                of_split = replica["results"][split]
                assert of_split["accuracy"] == pytest.approx(np.mean(last))
                assert of_split["num_errors"] == pytest.approx(size * (1 - np.mean(last)))

    def test_a_group_that_is_partly_kept_is_completed_together(
        self, config, run, path, trained, monkeypatch
    ):
        """As if the process was killed between the files of two replicas."""
        config.study.update(num_seeds=2, num_together=2)
        keep = laboratory.Study._keep

        def keep_first(study, name, seed, *args):
            if seed == 43:
                raise Interrupted(signal.SIGTERM)
            keep(study, name, seed, *args)

        with monkeypatch.context() as patch:
            patch.setattr(laboratory.Study, "_keep", keep_first)
            with pytest.raises(Interrupted, match="with 1 of 2 replicas finished"):
                run()
        first = files(path / "replicas")["base/42.json"]
        run()
        assert trained == [(42, 43, 1), (42, 43, 2), (42, 43, 2)]
        assert load(path).keys() == {("base", 42), ("base", 43)} and unfinished(path) == []
        assert files(path / "replicas")["base/42.json"] == first

    def test_a_variant_that_changed_starts_again_until_it_is_finished(
        self, config, run, trained, interrupt, monkeypatch
    ):
        run()
        config.study.variants = {"other": {"optimizer": {"b1": 0.8}}}
        trained.clear()
        interrupt(42, 2)
        config.study.variants = {"other": {"optimizer": {"b1": 0.7}}}
        run()
        assert trained == [(42, 1), (42, 2)]
        config.study.variants = {"other": {"optimizer": {"b1": 0.6}}}
        with pytest.raises(UserError, match=r"other, seed 42, .*b1=0.7 \(now 0.6\)"):
            run()
        config.batch_size = 80
        with pytest.raises(UserError, match=r"config.batch_size=160 \(now 80\)"):
            run()

    def test_fewer_together_start_again(self, config, run, trained, interrupt):
        """Otherwise lowering the number would not help if the memory does not suffice."""
        config.study.update(num_seeds=2, num_together=2)
        interrupt(42, 43, 2)
        config.study.num_together = 1
        run()
        assert trained == [(42, 1), (42, 2), (43, 1), (43, 2)]

    def test_a_damaged_checkpoint_is_named(self, run, path, interrupt):
        interrupt(42, 2)
        (checkpoint,) = unfinished(path)
        checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
        (checkpoint.parent / "._1.msgpack").touch()  # of another system
        with pytest.raises(UserError, match=r"1\.msgpack is damaged; delete .*1\.msgpack to train"):
            run()
        checkpoint.unlink()
        run()

    def test_too_little_memory_says_what_to_lower(self, config, run, monkeypatch):
        config.study.update(num_seeds=4, num_together=3)

        def fail(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GB are missing\nmore")

        monkeypatch.setattr(Replicas, "train_epoch", fail)
        with pytest.raises(UserError, match=r"^.*lower config.study.num_together \(now 3\)$"):
            run()

    def test_the_time_left_counts_what_this_process_trained(
        self, config, run, interrupt, monkeypatch, capsys
    ):
        """Two of three epochs are left of one replica, and another: each takes ten seconds."""
        config.num_epochs = 3
        config.study.num_seeds = 2
        interrupt(42, 2)
        now, train_epoch = [0.0], Replicas.train_epoch

        def takes_ten_seconds(*args):
            now[0] += 10
            return train_epoch(*args)

        monkeypatch.setattr(Replicas, "train_epoch", takes_ten_seconds)
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        run()
        output = capsys.readouterr().out
        assert re.search("1 of 2  base, seed 42 .* 0:00:30 left", output)
        assert re.search("2 of 2  base, seed 43 .* 0:00:00 left", output)

    def test_wandb_cannot_hold_it_up(self, config, run, path, monkeypatch, capsys):
        config.wandb.mode = "online"
        monkeypatch.setattr(tracking.StudyTracking, "_send", lambda *_: time.sleep(5))
        monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.1)
        run()
        assert capsys.readouterr().out.splitlines()[-3:] == [
            f"Done: {path / 'study.md'}",
            "Waiting for W&B",
            "W&B does not have 1 replicas yet; repeat the command to send them",
        ]

    def test_more_variants_are_welcome_and_other_averages_are_not(self, config, run, path):
        run()
        (before,) = load(path).items()
        config.study.variants = {"other": {"optimizer": {"b1": 0.8}}}
        run()
        assert before in load(path).items() and len(load(path)) == 2
        with pytest.raises(UserError, match="holds a study"):
            train.run(config, path)
        config.study.num_final_epochs = 2
        with pytest.raises(UserError, match=r"study\.num_final_epochs=1 \(now 2\)"):
            run()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"study.num_seeds": 0}, "config.study.num_seeds must be an integer from 1"),
            ({"study.num_final_epochs": 3}, r"must be at most config.num_epochs \(2 for 'base'\)"),
            (
                {"seed": 2**32 - 1, "study.num_seeds": 2},
                "config.study.num_seeds must be at most 1, because seeds",
            ),
        ],
    )
    def test_fields_that_do_not_fit_are_refused(self, config, run, path, changes, message):
        config.update_from_flattened_dict(changes)
        with pytest.raises(UserError, match=message):
            run()
        assert not path.exists()

    def test_a_run_is_not_taken_for_a_study(self, run, path):
        path.mkdir()
        (path / "metrics.jsonl").write_text("")
        with pytest.raises(UserError, match="study holds a run; choose a new folder"):
            run()

    def test_replicas_that_diverge_are_results_too(self, config, run, path):
        config.optimizer.learning_rate = 1e30
        config.study.num_seeds = config.study.num_final_epochs = 2
        run()
        assert "; 2 of the 2 replicas diverged" in (path / "study.md").read_text()
        content = (path / "study.json").read_text()
        (recipe,) = json.loads(content, parse_constant=pytest.fail)["recipes"]
        assert {replica["results"]["test"]["loss"] for replica in recipe["replicas"]} == {None}

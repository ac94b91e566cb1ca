"""`mnist_flax.predict`, with a run that the real command trained."""

import json
import shutil

import numpy as np
import pytest

from mnist_flax import data, predict
from mnist_flax.errors import UserError
from mnist_flax.evaluate import evaluate
from mnist_flax.run.checkpoint import Checkpoints, read
from tests.runs import ROOT, python, records

# Predicts in another project, which has a package `configs` of its own, with one file of the run.
SCRIPT = """
import sys
import numpy as np
from mnist_flax import predict
probabilities = predict.load("4.msgpack")(np.load("images.npy"))
np.save("probabilities.npy", probabilities)
assert not any(name in sys.modules for name in ("wandb", "tensorflow_datasets", "matplotlib"))
from configs import default
assert default.THEIRS
"""


@pytest.fixture(scope="module")
def test_split():
    from configs import default

    config = default.get_config()
    config.dataset.source = "sample"
    return data.load(config.dataset, 0).test


def test_it_answers_as_the_run_did(finished, test_split):
    classifier = predict.load(finished)
    probabilities = classifier(test_split.images)
    assert probabilities.shape == (1000, 10) and probabilities.dtype == np.float32
    summary = json.loads((finished / "summary.json").read_text())
    wrong = np.flatnonzero(probabilities.argmax(1) != test_split.labels)
    assert wrong.tolist() == summary["misclassified"]
    assert classifier.epoch == len(records(finished))
    # The loss must agree too: it depends on every digit of every probability.
    loss = -np.log(probabilities[np.arange(1000), test_split.labels]).mean()
    assert loss == pytest.approx(summary["final_test_loss"], rel=1e-5)


def rewritten(run, folder, change):
    """Copies a run, and changes its newest checkpoint; returns the path of the copy."""
    newest = shutil.copytree(run, folder) / "checkpoints" / "4.msgpack"
    saved = read(newest)
    change(saved)
    Checkpoints(newest.parent, keep=9).save(*saved)
    return folder


def test_fields_of_other_versions(finished, tmp_path, test_split):
    """A field that is newer than the run has its default; those of a study do not matter."""

    def change(saved):
        del saved.config["model"]["norm"]
        saved.config["study"] = {"old": 1, "variants": {"layer 0.5": {"model": {"norm": "layer"}}}}

    run = rewritten(finished, tmp_path / "run", change)
    images = test_split.images[:3]
    np.testing.assert_array_equal(predict.load(run)(images), predict.load(finished)(images))


def test_a_field_that_this_version_lacks(finished, tmp_path):
    change = lambda saved: saved.config["model"].update(dropout=0.5)  # noqa: E731
    run = rewritten(finished, tmp_path / "run", change)
    with pytest.raises(UserError, match=r"which has config\.model\.dropout; use that version$"):
        predict.load(run)


def test_one_image_or_none(finished, test_split):
    classifier = predict.load(finished)
    every = classifier(test_split.images[:3])
    # The channel axis may be left out.
    np.testing.assert_array_equal(classifier(test_split.images[:1, ..., 0]), every[:1])
    assert classifier(test_split.images[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 28, 28), np.float32),
        np.zeros((28, 28), np.uint8),
        np.zeros((1, 27, 28), np.uint8),
        np.zeros((1, 28, 28, 3), np.uint8),
    ],
)
def test_other_images_are_refused(finished, images):
    with pytest.raises(
        UserError, match=r"images must be uint8 and each of shape \(28, 28, 1\), got"
    ):
        predict.load(finished)(images)


def test_a_checkpoint_alone_in_another_project(finished, test_split, tmp_path):
    shutil.copy(finished / "checkpoints" / "4.msgpack", tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "default.py").write_text("THEIRS = True")
    np.save(tmp_path / "images.npy", test_split.images[:20])
    env = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = python("-c", SCRIPT, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    expected = predict.load(finished)(test_split.images[:20])
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-6)


class TestCheckpoints:
    def prefer(self, run, copy, epoch, split):
        """Copies a run and makes an earlier epoch the best, as its newest checkpoint has it."""

        def change(saved):
            saved.history.records[epoch - 1][f"{split}/accuracy"] = 1.0

        return rewritten(run, copy, change)

    def test_by_default_the_latest_without_a_validation_split(self, finished, tmp_path):
        run = self.prefer(finished, tmp_path / "run", 3, "test")
        assert predict.load(run).epoch == predict.load(run, "latest").epoch == 4
        assert predict.load(run, "best").epoch == 3

    def test_by_default_the_best_with_one(self, averaged, tmp_path):
        run = self.prefer(averaged, tmp_path / "run", 2, "validation")
        assert predict.load(run).epoch == predict.load(run, "best").epoch == 2
        assert predict.load(run, "latest").epoch == 4

    def test_any_epoch_that_is_kept(self, averaged, test_split):
        """Views and averaged weights are those of the run's own evaluation."""
        for record in records(averaged):
            classifier = predict.load(str(averaged), record["epoch"])
            logits = np.log(classifier(test_split.images))
            result = evaluate(logits, test_split.labels)
            assert result.accuracy == record["test/accuracy"]

    @pytest.mark.parametrize("name", ["0", 9, "newest", "-1"])
    def test_others_are_refused(self, averaged, name):
        allowed = f"--checkpoint must be one of latest, best, 1, 2, 3, 4, got '{name}'"
        with pytest.raises(UserError, match=allowed):
            predict.load(averaged, name)

    def test_a_file_has_only_one(self, finished):
        with pytest.raises(UserError, match="--checkpoint must be empty for the single file"):
            predict.load(finished / "checkpoints" / "4.msgpack", 4)

    def test_a_bad_one_is_one_line(self, averaged, tmp_path):
        copy = shutil.copytree(averaged, tmp_path / "copy")
        newest = copy / "checkpoints" / "4.msgpack"
        newest.write_bytes(newest.read_bytes()[:-1])
        for which in ("", "latest", "best"):
            with pytest.raises(UserError, match=f"{newest} is damaged"):
                predict.load(copy, which)
        newest.unlink()
        assert predict.load(copy, "latest").epoch == 3
        newest.mkdir()  # neither damaged nor readable
        with pytest.raises(UserError, match=f"^{newest}: Is a directory$"):
            predict.load(copy, "latest")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["run/"], "run is not the folder of a run, or it has not finished an epoch"),
        (["run/checkpoints/0.msgpack"], "or it has not finished an epoch"),
        (["run/checkpoints/3/"], "older version"),
        ([], "run: No such file or directory"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, names, expected):
    for name in names:
        path = tmp_path / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True)
        if not name.endswith("/"):
            path.touch()
    with pytest.raises(UserError, match=expected) as error:
        predict.load(tmp_path / "run")
    assert "\n" not in str(error.value)

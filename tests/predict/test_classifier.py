"""`mnist_flax.predict`, with a run that the real command trained."""

import json
import shutil

import numpy as np
import pytest

from mnist_flax import data, predict
from mnist_flax.errors import UserError
from mnist_flax.evaluate import evaluate
from mnist_flax.run import checkpoint
from tests.runs import ROOT, python, records

# Predicts with nothing but the run's folder: no data set, no configuration, no W&B.
SCRIPT = """
import sys
import numpy as np
from mnist_flax import predict
classifier = predict.load(sys.argv[1])
probabilities = classifier(np.load(sys.argv[2]))
np.save(sys.argv[3], probabilities)
assert not any(name in sys.modules for name in ("wandb", "tensorflow_datasets", "matplotlib"))
"""


@pytest.fixture(scope="module")
def test_split():
    from configs import default

    config = default.get_config()
    config.dataset.source = "sample"
    return data.load(config.dataset, 0).test


def test_it_answers_as_the_run_did(finished, test_split):
    classifier = predict.load(str(finished))
    probabilities = classifier(test_split.images)
    assert probabilities.shape == (1000, 10) and probabilities.dtype == np.float32
    summary = json.loads((finished / "summary.json").read_text())
    wrong = np.flatnonzero(probabilities.argmax(1) != test_split.labels)
    assert wrong.tolist() == summary["misclassified"]
    assert classifier.epoch == len(records(finished))
    # The loss must agree too: it depends on every digit of every probability.
    loss = -np.log(probabilities[np.arange(1000), test_split.labels]).mean()
    assert loss == pytest.approx(summary["final_test_loss"], rel=1e-5)


def test_a_recipe_with_variants(finished, tmp_path, test_split):
    """The configuration of a study's recipe holds its variants, whose names may contain dots."""
    folder = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["study"]["variants"] = {"layer 0.5": {"model": {"norm": "layer"}}}
    (folder / "config.json").write_text(json.dumps(config))
    images = test_split.images[:3]
    expected = predict.load(str(finished))(images)
    np.testing.assert_array_equal(predict.load(str(folder))(images), expected)


def test_a_run_with_a_field_of_another_version(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"which has config\.model\.dropout; use that version$"):
        predict.load(str(folder))


def test_one_image_or_none(finished, test_split):
    classifier = predict.load(str(finished))
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
    with pytest.raises(UserError, match=r"images are \w+ .*; allowed: uint8 \(n, 28, 28, 1\)"):
        predict.load(str(finished))(images)


def test_a_copy_elsewhere_needs_nothing_else(finished, test_split, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, ignore=shutil.ignore_patterns("figures", "summary.json"))
    np.save(tmp_path / "images.npy", test_split.images[:20])
    arguments = [str(copy), str(tmp_path / "images.npy"), str(tmp_path / "answer.npy")]
    env = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = python("-c", SCRIPT, *arguments, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    expected = predict.load(str(finished))(test_split.images[:20])
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), expected, atol=1e-6)


class TestCheckpoints:
    def best(self, workdir, split):
        return max(records(workdir), key=lambda r: (r[f"{split}/accuracy"], -r["epoch"]))["epoch"]

    def prefer(self, run, copy, epoch, split):
        """Copies a run and makes an earlier epoch the best, as its newest checkpoint has it."""
        newest = shutil.copytree(run, copy) / "checkpoints" / "4"
        metadata = newest / "details" / "metadata"
        details = json.loads(metadata.read_text())
        details["records"][epoch - 1][f"{split}/accuracy"] = 1.0
        metadata.write_text(json.dumps(details))
        (newest / checkpoint.DIGESTS).unlink()
        checkpoint._write_digests(newest)
        return str(copy)

    def test_by_default_the_latest_without_a_validation_split(self, finished, tmp_path):
        run = self.prefer(finished, tmp_path / "run", 3, "test")
        classifier = predict.load(run)
        assert classifier.epoch == 4 and classifier.is_chosen_on_test and not classifier.is_best
        assert predict.load(run, "best").epoch == 3

    def test_by_default_the_best_with_one(self, averaged, tmp_path):
        run = self.prefer(averaged, tmp_path / "run", 2, "validation")
        classifier = predict.load(run)
        assert classifier.epoch == predict.load(run, "best").epoch == 2
        assert not classifier.is_chosen_on_test
        assert predict.load(run, "latest").epoch == 4

    def test_any_epoch_that_is_kept(self, averaged, test_split):
        """Views and averaged weights are those of the run's own evaluation."""
        for record in records(averaged):
            classifier = predict.load(str(averaged), str(record["epoch"]))
            logits = np.log(classifier(test_split.images))
            result = evaluate(logits, test_split.labels)
            assert result.accuracy == record["test/accuracy"]

    @pytest.mark.parametrize("name", ["0", "9", "newest", "-1"])
    def test_others_are_refused(self, averaged, name):
        with pytest.raises(UserError, match="does not exist; allowed: latest, best, 1, 2, 3, 4"):
            predict.load(str(averaged), name)

    def test_a_damaged_one_is_refused_and_one_being_written_left_out(self, averaged, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(averaged, copy)
        checkpoints = copy / "checkpoints"
        with open(next((checkpoints / "4" / "details").glob("*")), "a") as file:
            file.write("x")
        with pytest.raises(UserError, match=r"checkpoints/4 cannot be read: .*has changed"):
            predict.load(str(copy), "latest")
        with pytest.raises(UserError, match=r"checkpoints.* cannot be read"):
            predict.load(str(copy), "best")
        assert predict.load(str(copy), "3").epoch == 3
        (checkpoints / "4" / "files.sha256").unlink()
        assert predict.load(str(copy), "latest").epoch == 3


@pytest.mark.parametrize("damage", ["no folder", "config.json", "dataset.json", "checkpoints"])
def test_what_is_no_run_is_refused(finished, tmp_path, damage):
    copy = tmp_path / "copy"
    if damage != "no folder":
        shutil.copytree(finished, copy)
        (shutil.rmtree if damage == "checkpoints" else type(copy).unlink)(copy / damage)
    with pytest.raises(UserError, match=str(copy)) as error:
        predict.load(str(copy))
    assert "\n" not in str(error.value)

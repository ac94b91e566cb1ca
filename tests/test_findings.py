"""The words follow the numbers: of replicas that nobody trained, so that all is known."""

import json

import numpy as np
import pytest
from PIL import Image

from mnist_flax import data
from mnist_flax.run.workdir import Workdir
from mnist_flax.study.findings import Findings
from mnist_flax.study.store import ReplicaStore
from tests.test_replica import create

SEEDS = range(5)
LABELS = np.arange(1_000, dtype=np.int32) % 10
# Test errors of 1,000, a seed each. Differences to the base: 20, 21, 19, 20, 22; -5, 5, 0, 1, -2;
# -9, -10, -11, -10, -9.
ERRORS = {
    "base": [100, 104, 96, 101, 99],
    "worse": [120, 125, 115, 121, 121],
    "as good": [95, 109, 96, 102, 97],
    "better": [91, 94, 85, 91, 90],
}


@pytest.fixture
def study(tiny_config, tmp_path):
    """Writes the findings of replicas; returns the words, the text and the numbers."""
    split = data.Split(np.zeros((1_000, 28, 28, 1), np.uint8), LABELS)
    names = tuple(map(str, range(10)))
    folder = Workdir(str(tmp_path / "made up"), tiny_config.to_dict())
    store = ReplicaStore(folder.path / "replicas")

    def write(replicas, ensemble=False, validation=split, names_of_recipes=tuple(ERRORS)):
        tiny_config.study.num_seeds = len(SEEDS)
        dataset = data.Dataset("mnist", "tfds", names, split, validation, split, 0.1, 0.3)
        findings = Findings(tiny_config, dataset, names_of_recipes, folder, store, ensemble)
        words = findings.write(replicas, pytest.fail)
        text = (folder.path / "study.md").read_text()
        return words, text, json.loads((folder.path / "study.json").read_text())

    write.config, write.store, write.path = tiny_config, store, folder.path
    return write


def replicas_of(errors, **options):
    return [
        create(name, seed, count, **options)
        for name, counts in errors.items()
        for seed, count in enumerate(counts)
    ]


def cells(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_best_is_at_the_top(study):
    _, text, content = study(replicas_of(ERRORS))
    assert [row["name"] for row in content["recipes"]] == ["better", "as good", "base", "worse"]
    positions = [text.index(f"| {name} |") for name in ("better", "as good", "base", "worse")]
    assert positions == sorted(positions)


def test_words_say_what_the_numbers_do(study):
    words, text, _ = study(replicas_of(ERRORS))
    by_name = {line.partition(":")[0]: line for line in words}
    assert by_name["base"] == "base: 90.000 % test accuracy (n = 5)"
    # 20.4 more errors of 1,000 in mean; standard error 0.5099, so t = 40.0.
    assert by_name["worse"].startswith("worse: worse than the base (n = 5): -2.040 points (")
    assert by_name["worse"].endswith("p < 0.001")
    # Mean -0.2, standard error 1.655: t = -0.12, p = 0.91, three times that is over 1.
    assert by_name["as good"].startswith("as good: no difference found (n = 5): +0.020 points (")
    assert by_name["as good"].endswith("p = 1.000")
    assert by_name["better"].startswith("better: better than the base (n = 5): +0.980 points (")
    for line in words:
        assert f"- {line}\n" in text


def test_the_table_by_hand(study):
    _, text, _ = study(replicas_of(ERRORS, seconds=2.5))
    # Of 100, 104, 96, 101, 99: standard deviation 2.9155, its error 1.3038, times 2.7764.
    assert cells(text, "base") == [
        *("base", "5", "90.000", "90.000 ± 0.362", "100.0 ± 3.6", "", "", "2.5", "1")
    ]
    # Differences of 20.4 with error 0.5099, times t(1 - 0.05 / 6, 4) = 3.9608: 18.380 to 22.420.
    assert cells(text, "worse")[5:7] == ["-2.040 (-2.242 to -1.838)", "< 0.001"]


def test_the_text_says_how_it_was_done(study):
    _, text, _ = study(replicas_of(ERRORS))
    assert "1,000 training images were set aside for decisions" in text
    assert "read the test set once" in text and "paired t-test" in text
    assert "Bonferroni's correction for 3 comparisons" in text
    assert "fixed beforehand" in text and "replicas are finished" not in text
    _, text, _ = study(replicas_of(ERRORS), validation=None)
    assert "No images were set aside" in text and "validation accuracy" not in text


def test_a_part_of_a_study_says_so(study):
    some = replicas_of(ERRORS)[:7]  # the base and two seeds of the second
    _, text, content = study(some)
    assert "**7 of 20 replicas are finished.**" in text
    assert len(content["recipes"]) == 2
    assert cells(text, "worse")[1] == "2"


def test_one_seed_is_not_tested(study):
    words, text, _ = study([create("base", 0, 100), create("worse", 0, 120)])
    assert "worse: not tested (one seed): -2.000 points" in words
    assert cells(text, "worse")[3:7] == ["88.000", "120.0", "-2.000", "not tested"]


def test_replicas_that_diverged_are_said(study):
    broken = replicas_of({"worse": [900, 900]}, loss=None)
    words, _, content = study(replicas_of({"base": ERRORS["base"]}) + broken)
    assert any(line.startswith("worse") and line.endswith("; 2 diverged") for line in words)
    assert content["recipes"][-1]["num_diverged"] == 2


def test_a_recipe_alone_needs_no_comparison(study):
    words, text, _ = study(
        replicas_of({"base": ERRORS["base"]}), names_of_recipes=("base",), validation=None
    )
    assert words == ["base: 90.000 % test accuracy (n = 5)"]
    assert "t-test" not in text


def test_pictures_are_drawn(study):
    study(replicas_of(ERRORS))
    with Image.open(study.path / "figures" / "study.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    # The colours of better and of worse.
    for color in ((0x1A, 0x98, 0x50), (0xD7, 0x30, 0x27)):
        assert (pixels == color).all(1).sum() > 100
    assert not (study.path / "figures" / "ensemble.png").exists()


def test_ensembles_of_the_replicas(study):
    """Networks that each miss other images, and are unsure there: together they miss none."""
    study.config.study.ensemble_size = 3
    replicas = replicas_of({"base": ERRORS["base"]})
    for replica in replicas:
        probabilities = np.full((1_000, 10), 0.01)
        probabilities[np.arange(1_000), LABELS] = 0.91
        missed = np.arange(10) + 10 * replica.seed
        probabilities[missed, LABELS[missed]] = 0.4
        probabilities[missed, (LABELS[missed] + 1) % 10] = 0.6
        study.store.save(replica, {"test": probabilities})
    words, text, content = study(replicas, ensemble=True, names_of_recipes=("base",))
    drawn = content["recipes"][0]["ensembles"]
    assert [(row["size"], len(row["num_errors"]), row["is_all"]) for row in drawn] == [
        *((1, 5, True), (2, 10, True), (3, 10, True))
    ]
    assert set(drawn[0]["num_errors"]) == {10}
    assert set(drawn[1]["num_errors"]) == set(drawn[2]["num_errors"]) == {0}
    assert "| 3 | 10, all | 100.000 | 100.00 to 100.00 |" in text
    assert "base: ensembles of 3: 0.0 test errors in mean" in words
    assert (study.path / "figures" / "ensemble.png").stat().st_size > 10_000

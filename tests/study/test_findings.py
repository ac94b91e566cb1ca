"""Findings about made-up replicas, whose numbers are known."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from mnist_flax.run.workdir import Workdir
from mnist_flax.study.findings import Findings
from mnist_flax.study.store import ReplicaStore
from tests.study.made_up import DATASET, LABELS, SPLIT, create, replicas_of

SEEDS = range(5)
# Errors in 1,000 test images, one number per seed.
ERRORS = {
    "base": [100, 104, 96, 101, 99],
    "worse": [120, 125, 115, 121, 121],
    "as good": [95, 109, 96, 102, 97],
    "better": [91, 94, 85, 91, 90],
}


@pytest.fixture
def study(tiny_config, tmp_path):
    """Writes findings about replicas; returns their words, study.md and study.json's content."""
    folder = Workdir(str(tmp_path / "made up"), tiny_config.to_dict())
    store = ReplicaStore(folder.path / "replicas")

    def write(replicas, ensemble=False, validation=SPLIT, names_of_recipes=tuple(ERRORS)):
        tiny_config.study.num_seeds = len(SEEDS)
        dataset = DATASET._replace(validation=validation)
        findings = Findings(tiny_config, dataset, names_of_recipes, folder, store, ensemble)
        words = findings.write(replicas, pytest.fail)
        text = (folder.path / "study.md").read_text()
        return words, text, json.loads((folder.path / "study.json").read_text())

    write.config, write.store, write.path = tiny_config, store, folder.path
    yield write
    folder.close()


def cells(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_best_is_at_the_top(study):
    _, text, content = study(replicas_of(ERRORS))
    assert [row["name"] for row in content["recipes"]] == ["better", "as good", "base", "worse"]
    positions = [text.index(f"| {name} |") for name in ("better", "as good", "base", "worse")]
    assert positions == sorted(positions)


def test_words_follow_the_numbers(study):
    words, text, _ = study(replicas_of(ERRORS))
    by_name = {line.partition(":")[0]: line for line in words}
    assert by_name["base"] == "base: 90.000 % test accuracy (n = 5)"
    # The geometric means of errors + 0.5 are 100.466, 120.857, 100.169 and 90.652.
    assert by_name["worse"].startswith(
        "worse: worse than the base (n = 5): it made 1.20 times the base's errors (1.14 to 1.27), "
        "-2.039 points of accuracy, p < 0.001"
    )
    assert "found four times" not in by_name["worse"]
    assert by_name["as good"] == (
        "as good: no difference found (n = 5): it made 1.00 times the base's errors (0.91 to "
        "1.09), +0.030 points of accuracy, p = 0.999; a difference of 13 errors or more would have "
        "been found four times in five"
    )
    assert by_name["better"].startswith("better: better than the base (n = 5): it made 0.90 times")
    assert by_name["better"].endswith(", +0.981 points of accuracy, p = 0.004")
    for line in words:
        assert f"- {line}\n" in text


def test_the_table_by_hand(study):
    _, text, content = study(replicas_of(ERRORS, seconds=1_502.54))
    # 100, 104, 96, 101, 99: standard deviation 2.9155, standard error 1.3038, times t = 2.7764.
    assert cells(text, "base") == [
        *("base", "5", "90.000", "90.000 ± 0.362", "100.0 ± 3.6", "", "", "1,502.5", "1.0")
    ]
    # The ratio of geometric means is 1.20297 (1.13674 to 1.27305); the base has 10.0466 % errors.
    assert cells(text, "worse")[5:7] == ["-2.039 (-2.743 to -1.374)", "< 0.001"]
    result = content["recipes"][-1]["comparison_with_base"]
    gains = [10.04661 * (1 - result[name]) for name in ("ratio", "high", "low")]
    assert gains == pytest.approx([-2.039, -2.743, -1.374], abs=5e-4)
    assert content["num_comparisons"] == 3
    assert content["recipes"][2]["comparison_with_base"] is None


def test_interval_excludes_zero_exactly_where_a_difference_is_found(study):
    words, text, _ = study(replicas_of(ERRORS))
    for line in words[:2] + words[3:]:
        name = line.partition(":")[0]
        low, high = map(float, re.search(r"\((.+) to (.+)\)", cells(text, name)[5]).groups())
        assert (low > 0 or high < 0) == ("than the base" in line)


def test_the_original_layer_norm_is_worse(study):
    """With four replicas each, layer norm made 2.9 times the errors: that must be found."""
    errors = {"base": [48, 94, 49, 46], "layer norm": [177, 116, 170, 199]}
    errors |= {"max pooling": [60, 55, 70, 48], "no augmentation": [52, 60, 41, 77]}
    words, _, _ = study(replicas_of(errors), names_of_recipes=tuple(errors))
    (line,) = [line for line in words if line.startswith("layer norm")]
    assert line.startswith("layer norm: worse than the base (n = 4): it made 2.86 times the base's")


def test_no_difference_is_never_claimed_where_results_do_not_overlap(study):
    """The three results of each recipe are too few and too scattered for p < 0.05."""
    errors = {"base": [130, 90, 160], "worse": [350, 170, 220]}
    words, _, content = study(replicas_of(errors))
    (line,) = [line for line in words if line.startswith("worse")]
    assert content["recipes"][1]["comparison_with_base"]["p"] > 0.05
    assert line.startswith(
        "worse: undecided, although every replica is worse than all of the base's (n = 3): it "
        "made 1.91 times"
    )
    assert re.search(r"; a difference of \d+ errors or more would have been found", line)


def test_too_few_replicas_say_so(study):
    words, text, _ = study(replicas_of({"base": [10, 400], "worse": [700, 20]}))
    (line,) = [line for line in words if line.startswith("worse")]
    assert line.startswith("worse: no difference found (n = 2): ")
    assert line.endswith("; with so few replicas, no difference could have been found reliably")
    # Accuracy cannot fall below 0, however wide the ratio's interval is.
    low = float(re.search(r"\((.+) to", cells(text, "worse")[5])[1])
    assert low == pytest.approx(-100 + 100 * (10.5 * 400.5) ** 0.5 / 1_000, abs=1e-3)


def test_the_text_describes_the_method(study):
    _, text, _ = study(replicas_of(ERRORS))
    assert "1,000 training images were set aside for validation" in text
    assert "was evaluated on the test set once" in text
    assert "Dunnett's test (1955)" in text and "on the logarithms" in text
    assert "hold for all 3 comparisons together" in text and "the chance of" in text
    assert "seed are not paired" in text and "1 at a time" in text
    assert "fixed beforehand" in text and "replicas are finished" not in text
    _, text, _ = study(replicas_of(ERRORS), validation=None)
    assert "No images were set aside" in text and "validation accuracy" not in text


def test_a_part_of_a_study_says_so(study):
    some = replicas_of(ERRORS)[:7]  # the base, and two seeds of the second recipe
    words, text, content = study(some)
    assert "**7 of 20 replicas are finished.**" in text
    assert len(content["recipes"]) == 2
    assert cells(text, "worse")[1] == "2"
    assert "those of an unfinished study are provisional" in text
    (line,) = [line for line in words if line.startswith("worse")]
    assert line.startswith("worse: worse than the base (n = 2, base 5): it made 1.2")


def test_without_the_base_nothing_is_compared(study):
    words, text, content = study(replicas_of({"worse": [120, 125], "better": [91, 94]}))
    assert words[0] == "better: 90.750 % test accuracy (n = 2)"
    assert content["num_comparisons"] == 0 and "Dunnett" not in text


def test_one_seed_or_no_spread_is_not_tested(study):
    words, text, _ = study([create("base", 0, 100), create("worse", 0, 120)])
    assert "worse: not tested (one seed): -2.000 points of accuracy" in words
    assert cells(text, "worse")[3:7] == ["88.000", "120.0", "-2.000", "not tested"]
    assert "Dunnett" not in text
    words, _, content = study(replicas_of({"base": [100, 100], "worse": [120, 120]}))
    assert "worse: not tested (no spread): -2.000 points of accuracy" in words
    assert content["recipes"][1]["comparison_with_base"]["p"] is None


def test_diverged_replicas_are_reported(study):
    broken = replicas_of({"worse": [900, 900]}, loss=None)
    words, _, content = study(replicas_of({"base": ERRORS["base"]}) + broken)
    assert any(
        line.startswith("worse") and line.endswith("; 2 replicas diverged") for line in words
    )
    assert content["recipes"][-1]["num_diverged"] == 2


def test_a_recipe_alone_needs_no_comparison(study):
    words, text, _ = study(
        replicas_of({"base": ERRORS["base"]}), names_of_recipes=("base",), validation=None
    )
    assert words == ["base: 90.000 % test accuracy (n = 5)"]
    assert "Welch" not in text and "paired" not in text


def test_pictures_are_drawn(study):
    study(replicas_of(ERRORS))
    with Image.open(study.path / "figures" / "study.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    # The colours for better and for worse.
    for color in ((0x1A, 0x98, 0x50), (0xD7, 0x30, 0x27)):
        assert (pixels == color).all(1).sum() > 100
    assert not (study.path / "figures" / "ensemble.png").exists()


def test_ensembles_of_the_replicas(study):
    """Each network misses other images and is unsure of them: together they miss none."""
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
    assert "base: ensembles of 3 networks make 0.0 test errors on average" in words
    assert (study.path / "figures" / "ensemble.png").stat().st_size > 10_000

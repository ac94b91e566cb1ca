"""The published tables, recomputed from the epochs of the published replicas."""

import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from configs import claims, study
from mnist_flax.run.configs import flatten
from mnist_flax.study.comparison import compare
from mnist_flax.study.recipes import recipes

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
NUM_TEST, NUM_FINAL = 10_000, 5


def errors(name):
    """Each seed's number of test errors, the mean over its last epochs."""
    found = []
    for file in sorted((RESULTS / "study" / name).glob("*.json")):
        records = json.loads(file.read_text())["records"]
        assert [record["epoch"] for record in records] == [*range(1, 21)]
        found.append(NUM_TEST * np.mean([1 - r["test/accuracy"] for r in records[-NUM_FINAL:]]))
    return found


def line(name, values, comparison):
    mean, n = np.mean(values), len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    points = 100 / NUM_TEST
    cells = [name, str(n), f"{100 - mean * points:.3f} ± {half * points:.3f}"]
    cells += [f"{mean:.1f} ± {half:.1f}"]
    if comparison is None:
        return f"| {' | '.join(cells)} |  |  |"
    gain, high, low = (
        -points * comparison.difference(ratio)
        for ratio in (comparison.ratio, comparison.low, comparison.high)
    )
    cells += [f"{gain:+.3f} ({low:+.3f} to {high:+.3f})", f"{comparison.p:.3f}"]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("recipe", [claims, study], ids=["claims", "all"])
def test_tables_follow_from_the_data(recipe):
    of_recipe = {name: errors(name) for name in recipes(recipe.get_config())}
    base, *variants = (name for name, values in of_recipe.items() if values)
    results = compare(of_recipe[base], [of_recipe[name] for name in variants])
    page = (RESULTS / "claims.md").read_text().splitlines()
    for name, comparison in zip([base, *variants], [None, *results], strict=True):
        assert line(name, of_recipe[name], comparison) in page


def test_replicas_are_of_the_recipes():
    """Every published replica has the configuration that the recipe gives its seed."""
    ours = recipes(study.get_config())
    for file in RESULTS.glob("study/*/*.json"):
        replica = json.loads(file.read_text())
        assert (replica["variant"], str(replica["seed"])) == (file.parent.name, file.stem)
        expected = json.loads(json.dumps(flatten(ours[replica["variant"]].to_dict())))
        different = {
            name
            for name, value in flatten(replica["config"]).items()
            if value != expected[name] and not name.startswith(("study.", "wandb."))
        }
        assert different <= {"seed"}

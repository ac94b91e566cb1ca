"""The published tables, recomputed from the epochs of the published replicas."""

import json
import math
import pathlib

import numpy as np
import pytest
from scipy import stats

from configs import claims, default, quick, record, speedrun, study
from mnist_flax.run.configs import flatten
from mnist_flax.study import comparison
from mnist_flax.study.findings import change, p_value
from mnist_flax.study.recipes import recipes
from mnist_flax.study.store import ReplicaStore
from tests.study import protocol

# What was tried for the record, by folder: the fields that differ from the recipe.
ON_FEWER = {"dataset.validation_size": 5_000}
NARROW = {**ON_FEWER, "model.channels": [[32, 32], [64, 64], [128]]}
CANDIDATES = {
    "base": {},
    "25 epochs": {**ON_FEWER, "num_epochs": 25},
    "narrow, 25 epochs": {
        **NARROW,
        "num_epochs": 25,
        "augment.rotation": 12.0,
        "augment.translation": 0.08,
        "augment.scale": [0.88, 1.12],
    },
    "narrow, 15 epochs": {**NARROW, "num_epochs": 15},
    "narrow first block, 10 epochs": {
        **ON_FEWER,
        "model.channels": [[16, 32], [96, 128], [256]],
        "num_epochs": 10,
    },
}
ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
NUM_TEST, NUM_FINAL = 10_000, 5


def replicas_of(name):
    """The replicas in a folder of results, in the order of their seeds."""
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"{name}/*.json"))]


def half_width(values):
    """Half the width of the 95 % interval of the mean, by Student's t."""
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def accuracies(name):
    """The test accuracies of the last epochs, percent, [seeds, epochs]."""
    found = []
    for replica in replicas_of(f"study/{name}"):
        records = replica["records"]
        assert [record["epoch"] for record in records] == [*range(1, 21)]
        found.append([100 * record["test/accuracy"] for record in records[-NUM_FINAL:]])
    return np.array(found)


def errors(name):
    """Each replica's number of test errors by seed, the mean over its last epochs."""
    seeds = [replica["seed"] for replica in replicas_of(f"study/{name}")]
    of_seeds = NUM_TEST * (1 - accuracies(name).mean(axis=1) / 100) if seeds else []
    return dict(zip(seeds, of_seeds, strict=True))


def tables(page):
    """The rows of the tables of recipes, without their heads."""
    found, is_row = [], False
    for text in page:
        was_row, is_row = is_row, text.startswith("|")
        if is_row and not was_row:
            found.append([])
        if is_row:
            found[-1].append(text)
    return [rows[2:] for rows in found if rows[0].startswith("| recipe |")]


def differing(config, recipe):
    """The values of a replica's configuration that differ from a recipe's, by field."""
    expected = json.loads(json.dumps(flatten(recipe.to_dict())))
    return {
        name: value
        for name, value in flatten(config).items()
        if not name.startswith(("study.", "wandb.", "seed")) and value != expected[name]
    }


def line(name, of_seeds, test=None):
    """The row of a recipe, by the protocol's test."""
    values = [*of_seeds.values()]
    mean, half, points = np.mean(values), half_width(values), 100 / NUM_TEST
    cells = [name, str(len(values)), f"{100 - mean * points:.3f} ± {half * points:.3f}"]
    cells += [f"{mean:.1f} ± {half:.1f}"]
    if test is None:
        return f"| {' | '.join(cells)} |  |  |"
    base = np.exp(np.mean(np.log(np.add([*errors("base").values()], 0.5))))
    gain, high, low = (-points * (ratio - 1) * base for ratio in test[:3])
    cells += [f"{gain:+.3f} ({low:+.3f} to {high:+.3f})", f"{test[3]:.3f}"]
    return f"| {' | '.join(cells)} |"


def by_protocol(recipe):
    """The errors of the base and of each variant by seed, and the results of its test."""
    of_recipe = {name: errors(name) for name in recipes(recipe.get_config())}
    base, *variants = (of.values() for of in of_recipe.values() if of)
    tests = protocol.compare([*base], [[*values] for values in variants])
    return {name: of for name, of in of_recipe.items() if of}, tests


@pytest.mark.parametrize("recipe", [claims, study], ids=["claims", "all"])
def test_tables_follow_from_the_data(recipe):
    of_recipe, tests = by_protocol(recipe)
    expected = {
        line(*item, test) for item, test in zip(of_recipe.items(), [None, *tests], strict=True)
    }
    page = (RESULTS / "claims.md").read_text().splitlines()
    assert expected in [set(rows) for rows in tables(page)]


def test_the_answers_follow_from_the_data():
    """The ratios of the three claims, where the pages put them into words."""
    pages = [ROOT / "README.md", RESULTS / "claims.md"]
    readme, page = (" ".join(path.read_text().split()) for path in pages)
    for ratio, low, high, p, _ in by_protocol(claims)[1]:
        interval = f"({low:.2f} to {high:.2f})"
        assert interval in readme and interval in page
        assert f"{ratio:.2f} times the errors" in page
        assert f"{ratio:.2f} times the errors" in readme or p > 0.05


@pytest.mark.parametrize("recipe", [claims, study], ids=["claims", "all"])
def test_what_the_paired_test_gives_follows_from_the_data(recipe):
    base, *variants = recipes(recipe.get_config())
    compared = comparison.compare(errors(base), {name: errors(name) for name in variants})
    expected = set()
    for name, of in compared.items():
        interval = f"{change(of.ratio)} ({change(of.low)} to {change(of.high)})"
        cells = [name, str(of.n), interval, f"{of.correlation:.2f}", p_value(of.p)[2:]]
        expected.add(f"| {' | '.join([*cells, f'{of.detectable:.0f}'])} |")
    page = (RESULTS / "claims.md").read_text().splitlines()
    assert expected in [set(rows) for rows in tables(page)]


def test_the_accuracy_of_the_default_recipe_is_that_of_the_base():
    by_epoch = accuracies("base")
    *before, last = by_epoch.T
    half = half_width(last)
    result = f"{last.mean():.2f} % ± {half:.2f}"
    readme, page = (ROOT / "README.md").read_text(), (RESULTS / "README.md").read_text()
    assert f"| {result} | {len(last)} |" in readme
    assert f"| {len(last)} | {result} (from {last.min():.2f} to {last.max():.2f} %) |" in page
    assert result.replace("±", "+-") in default.__doc__
    means = [of_epoch.mean() for of_epoch in before]
    assert f"means are {min(means):.2f} to {max(means):.2f} %" in page
    over_all = by_epoch.mean(axis=1)
    assert f"{over_all.mean():.3f} % ± {half_width(over_all):.3f}" in page


@pytest.mark.parametrize("recipe", [quick, record, speedrun], ids=["quick", "record", "speedrun"])
def test_the_accuracy_of_a_recipe_follows_from_the_data(recipe):
    replicas = replicas_of(f"{recipe.__name__.removeprefix('configs.')}/base")
    last = np.array([100 * replica["records"][-1]["test/accuracy"] for replica in replicas])
    half = half_width(last)
    decimals = 3 if half < 0.1 else 2
    result = f"{last.mean():.{decimals}f} % ± {half:.{decimals}f}"
    page = " ".join((RESULTS / "README.md").read_text().split())
    assert f"| {result} | {len(last)} |" in (ROOT / "README.md").read_text()
    assert f"**{result}**" in page and f"n = {len(last)}" in page
    assert f"{last.min():.2f}" in page and f"{last.max():.2f} %" in page
    documented = " ".join(recipe.__doc__.split())
    assert result.replace("±", "+-") in documented
    assert f"from {last.min():.2f} to {last.max():.2f} %" in documented


def test_the_times_of_training_follow_from_the_data():
    page = " ".join((RESULTS / "README.md").read_text().split())
    of_recipe = {name: replicas_of(f"{name}/base") for name in ("quick", "record", "speedrun")}
    seconds = {
        name: [replica["train_seconds"] for replica in replicas]
        for name, replicas in of_recipe.items()
    }
    assert f"took {np.mean(seconds['quick']):.0f} s on average" in page
    assert f"in {np.mean(seconds['speedrun']):.1f} s, on 2 cores" in page
    *of_pairs, _ = (value / 60 for value in seconds["record"])
    assert f"in {min(of_pairs):.1f} to {max(of_pairs):.1f} minutes" in page
    assert f"{np.mean(of_pairs) / 2:.0f} minutes of two cores per network" in page


@pytest.mark.parametrize("recipe", [study, quick, speedrun, record])
def test_replicas_are_of_the_recipes(recipe, tmp_path):
    """A study of this version takes every published replica for its own."""
    folder = recipe.__name__.removeprefix("configs.")
    (tmp_path / "replicas").symlink_to(RESULTS / folder)
    ours = recipes(recipe.get_config())
    store = ReplicaStore(tmp_path, ours, "MNIST, CRC-32 13a47ca1")
    files = [file for name in ours for file in (RESULTS / folder / name).glob("*.json")]
    assert files
    for file in files:
        replica = store.load(file.parent.name, int(file.stem))
        assert (replica.variant, str(replica.seed)) == (file.parent.name, file.stem)


def test_the_table_of_the_record_follows_from_the_data():
    page = (RESULTS / "README.md").read_text()
    for name, changes in CANDIDATES.items():
        replicas = replicas_of(f"record/{name}")
        for replica in replicas:
            assert differing(replica["config"], record.get_config()) == changes
        results, config = [replica["results"] for replica in replicas], replicas[0]["config"]
        validated = [of["validation"]["num_errors"] for of in results if "validation" in of]
        cells = [
            name,
            "; ".join(", ".join(map(str, block)) for block in config["model"]["channels"]),
            config["num_epochs"],
            f"{60_000 - config['dataset']['validation_size']:,}",
            f"{np.mean(validated):.1f}" if validated else "",
            ", ".join(f"{of['test']['num_errors']:.0f}" for of in results),
        ]
        assert f"| {' | '.join(map(str, cells))} |" in page


def test_the_table_of_ensembles_follows_from_the_data():
    page = (RESULTS / "README.md").read_text()
    (recipe,) = json.loads((RESULTS / "record" / "study.json").read_text())["recipes"]
    assert recipe["ensembles"][0]["num_errors"] == [
        replica["results"]["test"]["num_errors"] for replica in replicas_of("record/base")
    ]
    for ensemble in recipe["ensembles"]:
        found = np.array(ensemble["num_errors"])
        assert ensemble["is_all"] and len(found) == math.comb(5, ensemble["size"])
        accuracy = 100 - 100 * found.mean() / NUM_TEST
        ends = " to ".join(map(str, sorted({found.min(), found.max()})))
        cells = [ensemble["size"], len(found), f"{accuracy:.3f}", ends]
        assert f"| {' | '.join(map(str, cells))} |" in page

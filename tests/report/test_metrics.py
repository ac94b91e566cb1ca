import numpy as np
import pytest

from mnist_flax.history import History
from mnist_flax.report import metrics
from tests.report.pages import history


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("loss", 0.12345, "0.1235"),
        ("test/loss", 2, "2.0000"),
        ("accuracy", 0.98765, "98.77%"),
        ("train/top3_accuracy", np.float32(0.5), "50.00%"),
        ("grad_norm", 12.5, "12.5000"),
        ("weight_loss", 1.0, "1.0000"),
    ],
)
def test_numbers_as_text(name, value, shown):
    assert metrics.text(name, value) == shown


def test_charts_of_the_metrics_of_the_original():
    loss, accuracy = metrics.charts(history(2))
    assert (loss["title"], loss["unit"], loss["scale"]) == ("Loss", "cross-entropy", "log")
    assert (accuracy["title"], accuracy["unit"], accuracy["scale"]) == ("Accuracy", "%", "linear")
    steps, train, test = loss["series"]
    assert steps["name"] == "train, each step" and steps["isFaint"]
    np.testing.assert_allclose(steps["x"], (np.arange(6) + 0.5) / 3, rtol=1e-5)
    np.testing.assert_allclose(steps["y"], [1, 1.25, 1.5, 2, 2.25, 2.5], rtol=1e-5)
    assert (train["name"], train["x"], train["y"], test["y"]) == ("train", [1, 2], [1, 0.5], [2, 1])
    assert accuracy["series"][1]["y"] == [87.5, 93.75]


def test_steps_are_averaged_in_groups():
    records = tuple({**record, "step": 90 * record["epoch"]} for record in history(2).records)
    chart = metrics.charts(History("anid", "MNIST", records, {"loss": np.ones(180)}))[0]
    assert chart["series"][0]["name"] == "train, mean of 3 steps"
    assert len(chart["series"][0]["x"]) == 60


def test_a_metric_appears_wherever_a_record_has_it():
    """It may be new in the last epoch, and may be of one split only."""
    past = history(2)
    records = (past.records[0], past.records[1] | {"train/grad_norm": 3.0, "validation/f1": 0.5})
    steps = {**past.steps, "grad_norm": np.float32([3, 4, 5])}
    charts = {c["title"]: c for c in metrics.charts(History("anid", "MNIST", records, steps))}
    assert list(charts) == ["Loss", "Accuracy", "Grad norm", "F1"]
    of_steps, of_epochs = charts["Grad norm"]["series"]
    np.testing.assert_allclose(of_steps["x"], (np.arange(3, 6) + 0.5) / 3, rtol=1e-5)
    assert (of_epochs["x"], of_epochs["y"]) == ([2], [3])
    assert [line["name"] for line in charts["F1"]["series"]] == ["validation"]

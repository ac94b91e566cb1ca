"""How metrics are shown: the one place that knows what their names mean.

A metric appears in the console, the curves and the page wherever a record holds it, as
`SPLIT/NAME`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mnist_flax.history import History

SPLITS = ("train", "validation", "test")  # also the names of their colours in style.css
_MAX_POINTS = 1_000  # per curve
_STEPS_PER_EPOCH = 30  # points per epoch in a curve of steps; more would look like a cloud


class Look(NamedTuple):
    """How a metric is shown; its fields are part of a chart in `chart.js`."""

    unit: str = ""
    factor: int = 1  # from the number in a record to the one that is shown
    decimals: int = 4
    scale: str = "linear"  # or 'log'


def look(name: str) -> Look:
    """Returns the look of a metric, with or without its split: 'loss' or 'test/loss'."""
    if name.endswith("accuracy"):
        return Look("%", factor=100, decimals=2)
    return Look("cross-entropy", scale="log") if name.split("/")[-1] == "loss" else Look()


def text(name: str, value: float) -> str:
    """Returns a number of a record as it is shown, such as '0.1234' or '98.76%'."""
    unit, factor, decimals, _ = look(name)
    return f"{factor * value:.{decimals}f}{'%' if unit == '%' else ''}"


def found(records: Sequence[Mapping[str, float]]) -> dict[str, list[str]]:
    """Returns the splits of each metric in records: `{'loss': ['train', 'test'], …}`."""
    names: dict[str, list[str]] = {}
    for split in SPLITS:
        for key in dict.fromkeys(key for record in records for key in record):
            if key.startswith(f"{split}/"):
                names.setdefault(key.removeprefix(f"{split}/"), []).append(split)
    return names


def charts(history: History) -> list[dict[str, Any]]:
    """Returns the curves of every metric over the epochs, in the form that `chart.js` reads."""
    return [
        {
            **look(name)._asdict(),
            "title": name.replace("_", " ").capitalize(),
            "x": "epoch",
            "series": [
                *([_of_steps(history, name)] if name in history.steps else []),
                *(_of_epochs(history, split, name) for split in splits),
            ],
        }
        for name, splits in found(history.records).items()
    ]


def thin(records: Sequence[Any]) -> list[Any]:
    """Returns at most a thousand records, evenly spaced, with the first and the last."""
    count = min(len(records), _MAX_POINTS)
    return [records[round(at)] for at in np.linspace(0, len(records) - 1, count)]


def _of_epochs(history: History, split: str, name: str) -> dict[str, Any]:
    key = f"{split}/{name}"
    kept = thin([record for record in history.records if key in record])
    shown = [look(name).factor * record[key] for record in kept]
    return _curve(split, split, [record["epoch"] for record in kept], shown)


def _of_steps(history: History, name: str) -> dict[str, Any]:
    """Returns a faint curve of training steps, averaged in groups."""
    values, per_epoch = look(name).factor * history.steps[name], history.steps_per_epoch
    group = max(-(-per_epoch // _STEPS_PER_EPOCH), -(-len(values) // _MAX_POINTS))
    count = len(values) // group
    # A metric that was added during the run has only the last steps.
    before = history.records[-1]["step"] - len(values)
    middles = (before + (np.arange(count) + 0.5) * group) / per_epoch
    means = values[: count * group].reshape(count, group).mean(axis=1)
    points = "each step" if group == 1 else f"mean of {group} steps"
    return _curve(f"train, {points}", "train", middles, means, is_faint=True)


def _curve(
    name: str, color: str, x: Sequence[float], y: Sequence[float], is_faint: bool = False
) -> dict[str, Any]:
    """Returns a curve in the form that `chart.js` reads, rounded to six digits."""
    rounded = {key: [float(f"{v:.6g}") for v in values] for key, values in (("x", x), ("y", y))}
    return {"name": name, "color": color, "isFaint": is_faint, **rounded}

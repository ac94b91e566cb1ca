"""Prepares what a page says about a run, as plain data for the template and the scripts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mnist_flax.data import Dataset
from mnist_flax.evaluate import Evaluation

_MAX_POINTS = 1_000  # per curve
_STEPS_PER_EPOCH = 30  # points per epoch in a curve of steps; more would look like a cloud
_NOT_SHOWN = "study."  # prefix of the fields that do not concern a run
METRICS: dict[str, dict[str, Any]] = {  # the other fields of a chart in `chart.js`
    "loss": {"title": "Loss", "unit": "cross-entropy", "isLogarithmic": True, "decimals": 4},
    "accuracy": {"title": "Accuracy", "unit": "%", "isLogarithmic": False, "decimals": 2},
}
_DECIMALS = {"learning_rate": 6, "seconds": 2, "images_per_second": 0}  # 4 for all others
_SPLITS = ("train", "validation", "test")  # also the names of their colours in style.css


# Returns an image, uint8 `[side, side, 1]`, and augmentations `[n, side, side, 1]`: uint8, or
# float32 in 0..255 with bilinear interpolation.
CreateExamples = Callable[[], tuple[np.ndarray, np.ndarray]]


class Run(NamedTuple):
    """A finished run."""

    config: Mapping[str, Any]  # by field name, such as 'model.norm'
    default: Mapping[str, Any]  # the default recipe in the same form; empty if it is missing
    command: str  # the command line that started the run; empty if Python code did
    dataset: Dataset
    create_examples: CreateExamples | None
    history: Any  # a `run.history.History`
    test: Evaluation
    summary: Mapping[str, Any]  # the contents of summary.json
    variables: Mapping[str, Any]  # the evaluated parameters and statistics, as NumPy arrays


def headline(run: Run) -> dict[str, Any]:
    """Returns the parts of the headline, which gives the result."""
    test, devices, names = run.test, run.summary["devices"], run.dataset.class_names
    device = devices[0] if len(devices) == 1 else f"{len(devices)} × {devices[0]}"
    return {
        "title": run.dataset.title,
        "is_sample": run.dataset.source == "sample",
        "note": run.dataset.note,
        "has_names": list(names) != [str(label) for label in range(len(names))],
        "noun": "digit" if run.dataset.name == "mnist" else "picture",
        "accuracy": _percent(test.accuracy, 2),
        "num_errors": len(test.misclassified),
        "num_test": len(run.dataset.test),
        "num_epochs": run.history.epoch,
        "time": duration(run.summary["train_seconds"]),
        "machine": run.summary.get("machine", device) if device == "cpu" else device,
        "jax": run.summary["versions"]["jax"],
    }


def facts(run: Run) -> list[tuple[str, str]]:
    """Returns further facts about the run, as pairs of term and value."""
    summary, sizes = run.summary, run.summary["dataset"]
    splits = {"training": "train_size", "validation": "validation_size", "test": "test_size"}
    counts = [f"{sizes[key]:,} {name}" for name, key in splits.items() if sizes[key]]
    best = f"{_percent(summary['best_test_accuracy'], 2)} on the test set, after epoch"
    return [
        ("Data", f"{run.dataset.title}: {', '.join(counts)} images"),
        ("Best epoch", f"{best} {summary['best_epoch']} of {run.history.epoch}"),
        ("Test loss", f"{run.test.loss:.4f} (cross-entropy)"),
        ("Machine", "; ".join([*dict.fromkeys(summary["devices"]), summary.get("machine", "")])),
        ("Network", f"{summary['num_parameters']:,} parameters"),
        ("Time", f"{duration(summary['train_seconds'])} of training, "
                 f"{duration(summary['compile_seconds'])} of compilation"),
        ("Finished", summary.get("finished", "with an older version").replace("+00:00", " UTC")),
        ("Versions", ", ".join(f"{name} {v}" for name, v in summary["versions"].items())),
    ]  # fmt: skip


def duration(seconds: float) -> str:
    """Returns a time in words: '1 h 2 min', '1 min 5 s', '4.2 s'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def configuration(run: Run) -> list[dict[str, Any]]:
    """Returns the fields of a run in groups, each with its value and whether it differs."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for field, value in run.config.items():
        if field.startswith(_NOT_SHOWN):
            continue
        group, _, name = field.rpartition(".")
        default = run.default.get(field, value)
        entry = {"name": name, "value": _text(value), "default": _text(default)}
        groups.setdefault(group, []).append(entry | {"differs": _text(value) != _text(default)})
    return [{"name": name or "run", "fields": fields} for name, fields in groups.items()]


def call(run: Run) -> str:
    """Returns how to repeat a run: its command, or Python code if that is what started it."""
    if run.command:
        return run.command
    differing = [
        f"config.{field} = {value!r}"
        for field, value in run.config.items()
        if not field.startswith(_NOT_SHOWN) and _text(value) != _text(run.default.get(field, value))
    ]
    start = ["from configs import default", "from mnist_flax import train", ""]
    lines = [*start, "config = default.get_config()", *differing, "train.run(config)"]
    return "\n".join(lines)


def matrix(run: Run) -> list[dict[str, Any]]:
    """Returns the rows of the confusion matrix, with the strength of each error's colour, 0..1."""
    confusion, names = run.test.confusion, run.dataset.class_names
    errors = confusion * (1 - np.eye(len(confusion), dtype=int))
    strengths = np.sqrt(errors / max(errors.max(), 1))
    rows = []
    for label, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        cells = [
            {"count": int(count), "strength": round(float(strength), 2)}
            for count, strength in zip(counts, strengths[label], strict=True)
        ]
        recall = _percent(counts[label] / counts.sum(), 1) if counts.sum() else "none"
        rows.append({"name": name, "cells": cells, "recall": recall})
    return rows


def charts(run: Run) -> list[dict[str, Any]]:
    """Returns the curves of loss and accuracy, in the form that `chart.js` reads."""
    steps = {"loss": run.history.steps["loss"], "accuracy": 100 * run.history.steps["accuracy"]}
    return [
        {**chart, "x": "epoch", "series": [_steps(run, steps[name]), *_epochs(run, name)]}
        for name, chart in METRICS.items()
    ]


def thin(records: Sequence[Any], max_points: int = _MAX_POINTS) -> list[Any]:
    """Returns at most `max_points` records, evenly spaced, with the first and the last."""
    count = min(len(records), max_points)
    return [records[round(at)] for at in np.linspace(0, len(records) - 1, count)]


def _steps(run: Run, values: np.ndarray) -> dict[str, Any]:
    """Returns a faint curve of training steps, averaged in groups."""
    per_epoch = run.history.steps_per_epoch
    group = max(-(-per_epoch // _STEPS_PER_EPOCH), -(-len(values) // _MAX_POINTS))
    count = len(values) // group
    means = values[: count * group].reshape(count, group).mean(axis=1)
    ends = np.arange(1, count + 1) * group / per_epoch
    name = "each step" if group == 1 else f"mean of {group} steps"
    return series(f"train, {name}", "train", ends - 0.5 * group / per_epoch, means, True)


def _epochs(run: Run, metric: str) -> list[dict[str, Any]]:
    """Returns the curves of a metric by epoch, one for each split."""
    kept = thin(run.history.records)
    factor = 100 if metric == "accuracy" else 1
    return [
        series(
            split,
            split,
            [record["epoch"] for record in kept],
            [factor * record[f"{split}/{metric}"] for record in kept],
        )
        for split in _SPLITS
        if f"{split}/{metric}" in kept[0]
    ]


def series(
    name: str, color: str, x: Sequence[float], y: Sequence[float], is_faint: bool = False
) -> dict[str, Any]:
    """Returns a curve in the form that `chart.js` reads, rounded to six digits."""
    rounded = {key: [float(f"{v:.6g}") for v in values] for key, values in (("x", x), ("y", y))}
    return {"name": name, "color": color, "isFaint": is_faint, **rounded}


def records(run: Run) -> list[dict[str, str]]:
    """Returns the numbers of the epochs as text, with the decimals that each column needs."""
    return [
        {key: f"{value:,.{_decimals(key, value)}f}" for key, value in record.items()}
        for record in thin(run.history.records)
    ]


def _decimals(key: str, value: float) -> int:
    return 0 if isinstance(value, int) else _DECIMALS.get(key, 4)


def _percent(share: float, decimals: int) -> str:
    return f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def _text(value: Any) -> str:
    """Returns a value as one writes it in a flag; a list looks like a tuple."""
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_text, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value) if isinstance(value, str) and not value else str(value)

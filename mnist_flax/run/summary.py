"""A run's results and what they depend on: the contents of summary.json and dataset.json."""

import datetime
import importlib.metadata
import platform
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax.data import Dataset
from mnist_flax.evaluate import Evaluation
from mnist_flax.history import History
from mnist_flax.runtime import process

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")  # what a result depends on


def summarize(
    config: ConfigDict, dataset: Dataset, history: History, test: Evaluation
) -> dict[str, Any]:
    """Returns the results of a finished run for summary.json, where `Session.finish` adds more."""
    records, best = history.records, history.best
    assert best is not None  # a finished run has at least one epoch
    return {
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "title": dataset.title,
            "note": dataset.note,
            "train_size": len(dataset.train),
            "validation_size": len(dataset.validation or ()),
            "test_size": len(dataset.test),
        },
        "step": records[-1]["step"],
        "final_test_accuracy": test.accuracy,
        "final_test_loss": test.loss,
        "best_test_accuracy": best["test/accuracy"],
        "best_epoch": best["epoch"],
        "num_test_errors": len(test.misclassified),
        "class_accuracies": dict(
            zip(dataset.class_names, class_accuracies(test.confusion), strict=True)
        ),
        "confusion_matrix": test.confusion.tolist(),
        "misclassified": test.misclassified.tolist(),
        "devices": [device.device_kind for device in jax.devices()],
        "machine": f"{process.num_cpus()} CPUs, {process.processor()}",
        "finished": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
        "train_seconds": sum(record["seconds"] for record in records),
        "versions": versions(),
        "config": config.to_dict(),
    }


def class_accuracies(confusion: np.ndarray) -> list[float | None]:
    """Returns the share of correct predictions by true class, 0..1; None for an empty class."""
    return [float(row[i] / row.sum()) if row.sum() else None for i, row in enumerate(confusion)]


class About(NamedTuple):
    """What is needed to use a network: the data that it was trained on, from dataset.json."""

    name: str  # the name of the data set
    source: str  # 'tfds' or 'sample'
    title: str  # its name as people read it
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]  # height, width, channels
    mean: float  # of the pixels scaled to 0..1
    std: float


def describe(dataset: Dataset) -> About:
    """Returns what dataset.json says about the data of a run."""
    shape, names = dataset.test.images.shape[1:], dataset.class_names
    return About(
        dataset.name, dataset.source, dataset.title, names, shape, dataset.mean, dataset.std
    )


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in _PACKAGES
    }

"""A run's results and what they depend on: the contents of summary.json and dataset.json."""

import datetime
import importlib.metadata
import platform
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax.data import Dataset
from mnist_flax.evaluate import Evaluation
from mnist_flax.run.history import History
from mnist_flax.runtime import process

_PACKAGES = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "wandb"]
_PACKAGES.append("tensorflow-datasets")


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
    return [
        float(row[label] / row.sum()) if row.sum() else None for label, row in enumerate(confusion)
    ]


def describe(dataset: Dataset) -> dict[str, Any]:
    """Returns what is needed to use a network that was trained on these data."""
    return {
        "name": dataset.name,
        "source": dataset.source,
        "title": dataset.title,
        "class_names": dataset.class_names,
        "image_shape": dataset.test.images.shape[1:],
        "mean": dataset.mean,
        "std": dataset.std,
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in _PACKAGES
    }

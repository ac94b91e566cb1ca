"""Loads a trained run and classifies images with it:

    from mnist_flax import predict

    classifier = predict.load("runs/1")
    probabilities = classifier(images)  # uint8 [n, 28, 28] -> float32 [n, classes]

It needs only the folder of the run: no training data, no W&B, and not the machine that trained it.
Only `export` imports this folder.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_flax.predict.classifier import Classifier, load

__all__ = ["Classifier", "load"]

CHECKPOINT_HELP = (  # of the commands that load a run
    "latest, best, or the number of an epoch. By default, the best if it was chosen on a "
    "validation split, otherwise the latest."
)


def __getattr__(name: str) -> Any:
    """Imports JAX only when needed, so that the command can check its environment first."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("mnist_flax.predict.classifier"), name)

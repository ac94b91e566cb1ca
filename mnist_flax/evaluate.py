"""What a network gets right: exact counts over a whole split."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

# Images that a device predicts at a time, all their views counted: divisors of MNIST's 10,000, so
# that one program serves them all. What a CPU computes for 100 stays in its caches, which made it a
# third faster than with 2,000.
_CPU_BATCH_SIZE = 100
_BATCH_SIZE = 2_000


class Evaluation(NamedTuple):
    """Results on a split of n images.

    Attributes:
      loss: mean cross-entropy.
      accuracy: share of right predictions, 0..1.
      probabilities: float64 `[n, classes]`, softmax.
      predictions: int `[n]`.
      misclassified: int `[errors]`, indices into the split, ascending.
      confusion: int `[classes, classes]`, rows are true classes.
    """

    loss: float
    accuracy: float
    probabilities: np.ndarray
    predictions: np.ndarray
    misclassified: np.ndarray
    confusion: np.ndarray

    @property
    def class_accuracies(self) -> list[float | None]:
        """Share of right predictions by true class, 0..1; None for a class without images."""
        return [
            float(row[label] / row.sum()) if row.sum() else None
            for label, row in enumerate(self.confusion)
        ]


def split_batches(images: np.ndarray, num_views: int = 1) -> list[np.ndarray]:
    """Cuts `[n, height, width, 1]` into what all devices predict at a time; the rest comes last.

    Args:
      images: of a split.
      num_views: how many pictures of each are predicted.
    """
    size = _CPU_BATCH_SIZE if jax.default_backend() == "cpu" else _BATCH_SIZE
    size = max(size // num_views, 1) * jax.device_count()
    return [images[start : start + size] for start in range(0, len(images), size)]


def predict(apply: Callable[[jax.Array], jax.Array], views: jax.Array) -> jax.Array:
    """What a network takes images for, by the mean of its probabilities for views of them.

    Args:
      apply: from images `[batch, height, width, 1]` to logits, float32 `[batch, classes]`.
      views: `[views, batch, height, width, 1]`.

    Returns:
      Logits, float32 `[batch, classes]`; of several views, the logarithms of probabilities.
    """
    num_views, batch_size = views.shape[:2]
    logits = apply(views.reshape(-1, *views.shape[2:]))
    if num_views == 1:
        return logits
    log_probabilities = jax.nn.log_softmax(logits).reshape(num_views, batch_size, -1)
    return jax.nn.logsumexp(log_probabilities, axis=0) - math.log(num_views)


def evaluate(logits: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Counts, in float64 on the host.

    Args:
      logits: float `[n, classes]`.
      labels: int `[n]`.

    Returns:
      Loss and accuracy, and what each image was taken for.
    """
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    predictions = logits.argmax(axis=1)
    num_classes = logits.shape[1]
    confusion = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return Evaluation(
        loss=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        accuracy=float(np.mean(predictions == labels)),
        probabilities=np.exp(log_probabilities),
        predictions=predictions,
        misclassified=np.flatnonzero(predictions != labels),
        confusion=confusion.reshape(num_classes, num_classes),
    )

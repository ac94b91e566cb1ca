"""What a network gets right: exact counts over a whole split."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BATCH_SIZE = 2_000  # images at a time; a divisor of MNIST's 10,000, small beside a training step


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


def predict(apply: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Logits of a whole split, `BATCH_SIZE` images at a time; to be compiled.

    Args:
      apply: maps uint8 `[batch, height, width, 1]` to logits `[batch, classes]`, each image by
        itself, as a network does outside training.
      images: uint8 `[n, height, width, 1]`; any n.

    Returns:
      Logits `[n, classes]`.
    """
    return jnp.concatenate(
        [apply(images[start : start + BATCH_SIZE]) for start in range(0, len(images), BATCH_SIZE)]
    )


def evaluate(logits: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Counts, in float64 on the host.

    Args:
      logits: float `[n, classes]`.
      labels: int `[n]`.
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

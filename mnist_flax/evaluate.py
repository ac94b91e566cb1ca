"""Evaluates predictions: exact counts over a whole split, in NumPy."""

from typing import NamedTuple

import numpy as np
from scipy import special


class Evaluation(NamedTuple):
    """Results on a split of n images."""

    loss: float  # mean cross-entropy
    accuracy: float  # share of correct predictions, 0..1
    probabilities: np.ndarray  # float64 [n, classes], softmax
    predictions: np.ndarray  # int [n]
    misclassified: np.ndarray  # int [errors], indices into the split, ascending
    confusion: np.ndarray  # int [classes, classes], rows are true classes


def evaluate(logits: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Compares logits, float `[n, classes]`, with labels, int `[n]`; computes in float64."""
    log_probabilities = special.log_softmax(np.asarray(logits, np.float64), axis=1)
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

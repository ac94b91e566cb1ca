"""Chooses the test images for a page: those that tell the most, within limits."""

import collections

import numpy as np

from mnist_flax.evaluate import Evaluation

MAX_WRONG = 1_000  # the most misclassified images; each takes 1.1 kB with its probabilities
LEAST_SURE = 20  # recognised images per class with the lowest confidence
NUM_EXAMPLES = 20  # recognised images that the pad offers


def choose_wrong(test: Evaluation, labels: np.ndarray) -> np.ndarray:
    """Returns the indices of the misclassified images to show, int `[n]`.

    If there are more than `MAX_WRONG`, every kind of error (one class taken for another) gets the
    same number of places, unless it has fewer images, and the surest images of each kind are shown.
    """
    wrong = _by_confidence(test, test.misclassified)[::-1]
    kinds = labels[wrong] * len(test.confusion) + test.predictions[wrong]
    return wrong[np.argsort(_ranks(kinds), kind="stable")[:MAX_WRONG]]


def choose_right(test: Evaluation, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of recognised images: each class's least sure, and the first few."""
    right = np.flatnonzero(test.predictions == labels)
    least_sure = _by_confidence(test, right)
    return least_sure[_ranks(labels[least_sure]) < LEAST_SURE], right[:NUM_EXAMPLES]


def _by_confidence(test: Evaluation, indices: np.ndarray) -> np.ndarray:
    """Returns indices of images in another order: the least sure first."""
    return indices[np.argsort(test.probabilities[indices].max(axis=1), kind="stable")]


def _ranks(kinds: np.ndarray) -> np.ndarray:
    """Returns for each element how many of the same kind come before it."""
    seen: collections.Counter = collections.Counter()
    ranks = []
    for kind in kinds.tolist():
        ranks.append(seen[kind])
        seen[kind] += 1
    return np.array(ranks, int)

"""Chooses the test images for a page: those that tell the most, within limits."""

import numpy as np

from mnist_flax.evaluate import Evaluation

MAX_WRONG = 1_000  # the most misclassified images; each takes 1.1 kB with its probabilities
LEAST_SURE = 20  # recognised images per class with the lowest confidence
EXAMPLES = 2  # recognised images per class that the pad offers


def choose_wrong(test: Evaluation, labels: np.ndarray) -> np.ndarray:
    """Returns the indices of the misclassified images to show, int `[n]`.

    If there are more than `MAX_WRONG`, every kind of error (one class taken for another) gets the
    same number of places, unless it has fewer images, and the surest images of each kind are shown.
    """
    wrong = test.misclassified
    confidence = test.probabilities[wrong].max(axis=1)
    wrong = wrong[np.argsort(-confidence, kind="stable")]
    kinds = labels[wrong] * len(test.confusion) + test.predictions[wrong]
    rank = np.empty(len(wrong), int)  # within its kind
    for kind in np.unique(kinds):
        is_kind = kinds == kind
        rank[is_kind] = np.arange(is_kind.sum())
    return wrong[np.argsort(rank, kind="stable")[:MAX_WRONG]]


def choose_right(test: Evaluation, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of recognised images to show: each class's least sure, and examples.

    The examples, int `[m]`, are the first image of every class, then the second of every class.
    """
    least_sure, examples = [], []  # an example is (rank within its class, index)
    for label in range(len(test.confusion)):
        right = np.flatnonzero((test.predictions == labels) & (labels == label))
        confidence = test.probabilities[right, label]
        least_sure += right[np.argsort(confidence, kind="stable")[:LEAST_SURE]].tolist()
        examples += [(turn, int(index)) for turn, index in enumerate(right[:EXAMPLES])]
    examples.sort(key=lambda example: example[0])
    return np.array(least_sure, int), np.array([index for _, index in examples], int)

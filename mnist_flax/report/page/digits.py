"""Which test images a page holds: all that matter, as long as they are not too many."""

import numpy as np

from mnist_flax.evaluate import Evaluation

MAX_WRONG = 1_000  # misclassified images; with their probabilities each takes 1.1 kB
LEAST_SURE = 20  # of those that were recognised, of each class
EXAMPLES = 2  # of each class


def choose_wrong(test: Evaluation, labels: np.ndarray) -> np.ndarray:
    """Returns the misclassified images to show, int `[n]`, by index.

    Of more than `MAX_WRONG`, they are the surest of every kind of error (a class taken for
    another), as many of each kind as of any other that has so many.
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
    """Returns recognised images to show, by index: the least sure of each class, and examples.

    The examples, int `[m]`, are the first of each class, one class after another and over again.
    """
    least_sure, examples = [], []  # of the latter, with which of its class each is
    for label in range(len(test.confusion)):
        right = np.flatnonzero((test.predictions == labels) & (labels == label))
        confidence = test.probabilities[right, label]
        least_sure += right[np.argsort(confidence, kind="stable")[:LEAST_SURE]].tolist()
        examples += [(turn, int(index)) for turn, index in enumerate(right[:EXAMPLES])]
    examples.sort(key=lambda example: example[0])
    return np.array(least_sure, int), np.array([index for _, index in examples], int)

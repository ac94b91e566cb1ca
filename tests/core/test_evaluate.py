import numpy as np
import pytest

from mnist_flax import evaluate
from mnist_flax.run.summary import class_accuracies


def test_counts_by_hand():
    """There are four images and three classes; the logits are shifted log-probabilities."""
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.2, 0.3, 0.5]])
    labels = np.array([0, 1, 1, 2])
    result = evaluate.evaluate(np.log(probabilities) + 3, labels)
    np.testing.assert_allclose(result.probabilities, probabilities)
    assert result.loss == pytest.approx(-np.log([0.5, 0.8, 0.2, 0.5]).mean())
    assert result.accuracy == 0.75
    assert result.misclassified.tolist() == [2]
    assert result.predictions.tolist() == [0, 1, 0, 2]
    assert result.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert class_accuracies(result.confusion) == [1, 0.5, 1]


def test_a_class_without_images():
    result = evaluate.evaluate(np.eye(3)[[0, 0]], np.array([0, 0]))
    assert class_accuracies(result.confusion) == [1, None, None]


def test_huge_logits_do_not_overflow():
    result = evaluate.evaluate(np.array([[1e5, 0.0]], np.float32), np.array([1]))
    assert result.loss == pytest.approx(1e5)

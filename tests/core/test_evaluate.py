import numpy as np
import pytest

from mnist_flax import evaluate


def test_counts_by_hand():
    """Four images, three classes; the logits are logs of probabilities that sum to one."""
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.2, 0.3, 0.5]])
    labels = np.array([0, 1, 1, 2])
    result = evaluate.evaluate(np.log(probabilities) + 3, labels)
    np.testing.assert_allclose(result.probabilities, probabilities)
    assert result.loss == pytest.approx(-np.log([0.5, 0.8, 0.2, 0.5]).mean())
    assert result.accuracy == 0.75
    assert result.misclassified.tolist() == [2]
    assert result.predictions.tolist() == [0, 1, 0, 2]
    assert result.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert result.class_accuracies == [1, 0.5, 1]


def test_a_class_without_images():
    result = evaluate.evaluate(np.eye(3)[[0, 0]], np.array([0, 0]))
    assert result.class_accuracies == [1, None, None]


def test_huge_logits_do_not_overflow():
    result = evaluate.evaluate(np.array([[1e5, 0.0]], np.float32), np.array([1]))
    assert result.loss == pytest.approx(1e5)


@pytest.mark.parametrize("count", [1, 99, 100, 101, 450])
def test_batches_hold_every_image_in_its_place(count, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    images = np.arange(count).reshape(count, 1, 1, 1)
    batches = evaluate.split_batches(images)
    np.testing.assert_array_equal(np.concatenate(batches), images)
    assert max(map(len, batches)) <= 100


def test_an_accelerator_takes_larger_batches(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert list(map(len, evaluate.split_batches(np.zeros((10_000, 1, 1, 1))))) == [2_000] * 5


def test_views_count_by_their_probabilities():
    """Two views of one image: 0.8 and 0.2 of the first class are 0.5, whatever the logits' size."""
    probabilities = np.array([[0.8, 0.2], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5]], np.float32)
    views = np.arange(4.0, dtype=np.float32).reshape(2, 2, 1, 1, 1)  # [views, images, 1, 1, 1]

    def apply(images):
        return np.log(probabilities)[images[:, 0, 0, 0].astype(int)] + 5 * images[:, :, 0, 0]

    logits = evaluate.predict(apply, views)
    np.testing.assert_allclose(np.exp(logits), [[0.55, 0.45], [0.35, 0.65]], rtol=1e-5)


def test_one_view_is_the_network_itself():
    views = np.ones((1, 3, 2, 2, 1), np.float32)
    np.testing.assert_array_equal(evaluate.predict(lambda x: x[:, 0, :, 0], views), np.ones((3, 2)))


def test_views_make_batches_smaller(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    images = np.zeros((1_000, 1, 1, 1))
    assert list(map(len, evaluate.split_batches(images, 5))) == [400, 400, 200]
    assert list(map(len, evaluate.split_batches(images[:2], 3_000))) == [1, 1]

import jax
import numpy as np
import pytest

from mnist_flax.study import ensemble

LABELS = np.array([0, 1])
# Three networks on two images: right and sure; wrong and unsure; sure, but wrong about the first.
SURE, UNSURE, WRONG = ([[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.6, 0.4]], [[0.0, 1.0], [0.0, 1.0]])


def test_probabilities_are_averaged_not_votes():
    draws = ensemble.draw(jax.random.key(0), np.array([SURE, UNSURE, WRONG]), LABELS, 2)
    # sure + unsure is right about both images; the other pairs are wrong about the first.
    assert draws.is_all and draws.num_errors.tolist() == [0, 1, 1]
    everyone = ensemble.draw(jax.random.key(0), np.array([SURE, UNSURE, WRONG]), LABELS, 3)
    assert everyone.num_errors.tolist() == [1]


def test_single_networks_are_the_replicas():
    draws = ensemble.draw(jax.random.key(0), np.array([SURE, UNSURE, WRONG]), LABELS, 1)
    assert draws.num_errors.tolist() == [0, 2, 1]


def test_draws_are_of_different_networks():
    """Ensembles have 10 of 20 networks, half of which are right; too many to list them all."""
    right, wrong = [[1.0, 0.0]], [[0.0, 1.0]]
    probabilities = np.array([right] * 10 + [wrong] * 10)
    draws = ensemble.draw(jax.random.key(1), probabilities, np.array([0]), 10)
    assert not draws.is_all and len(draws.num_errors) == 1_000
    # By the hypergeometric distribution, 0.328 of ensembles have more than five wrong networks.
    assert draws.num_errors.mean() == pytest.approx(0.328, abs=0.05)
    again = ensemble.draw(jax.random.key(1), probabilities, np.array([0]), 10)
    np.testing.assert_array_equal(draws.num_errors, again.num_errors)


def test_sizes_lead_to_the_one_asked_for():
    assert ensemble.sizes(30) == [1, 2, 3, 5, 10, 20, 30]
    assert ensemble.sizes(4) == [1, 2, 3, 4]
    assert ensemble.sizes(1) == [1]

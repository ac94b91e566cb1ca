"""Replicas trained together give the same results as runs with their seeds, trained alone."""

import jax
import numpy as np
import pytest

from mnist_flax.evaluate import evaluate
from mnist_flax.runtime import devices
from mnist_flax.step import StepMetrics
from mnist_flax.study.replicas import Replicas
from mnist_flax.trainer import Trainer
from tests.runs import tiny
from tests.small import assert_close, ignore, small_dataset, train

SEEDS = [3, 8]
METRICS = StepMetrics(*np.random.default_rng(0).random((2, 2, 2)))  # of two steps and replicas


@pytest.fixture(scope="module")
def config():
    config = tiny()
    config.batch_size = 48
    config.optimizer.eps = 0.1  # Adam divides by a gradient's size: this limits rounding errors
    config.augment.interpolation = "bilinear"  # so that rounding cannot select another pixel
    config.optimizer.ema_decay = 0.5
    config.evaluation.num_views = 2
    return config


@pytest.fixture(scope="module")
def dataset(config):
    """A data set of two batches of one size, which needs only one program for the step."""
    return small_dataset(config, 96)


@pytest.fixture(scope="module")
def placed(dataset):
    return devices.place(dataset.train, dataset.eval_splits)


@pytest.fixture(scope="module")
def alone(config, dataset, placed):
    trainer = Trainer(config, dataset, placed)
    trainer.compile()
    return trainer


@pytest.fixture(scope="module")
def create(config, dataset, placed):
    """Returns a function that compiles `number` replicas, once per number."""
    compiled = {}

    def create(number):
        if number not in compiled:
            compiled[number] = Replicas(config, dataset, number, placed)
        return compiled[number]

    return create


@pytest.mark.parametrize("seeds", [SEEDS, SEEDS[:1]])
def test_each_is_as_its_seed_alone(create, alone, seeds):
    """Initialisation, orders, augmentation, statistics, averages and test-time views agree.

    One replica has a program of its own, without an axis for `vmap`.
    """
    together = create(len(seeds))
    states, metrics = train(together, together.create_state(np.array(seeds)), 2)
    logits = together.predict(states, "test")
    assert metrics.loss.shape == (4, len(seeds)) and logits.shape == (len(seeds), 50, 10)
    for index, seed in enumerate(seeds):
        state, of_one = train(alone, alone.create_state(seed), 2)
        np.testing.assert_allclose(metrics.loss[:, index], of_one.loss, rtol=1e-4)
        assert_close(jax.tree.map(lambda leaf, i=index: leaf[i], states), state, 1e-4)
        expected = alone.predict(state, "test")
        np.testing.assert_allclose(logits[index], expected, rtol=1e-3, atol=1e-4)
    assert not np.allclose(logits[0], logits[-1], atol=0.01) or len(seeds) == 1


def test_results_and_records_are_each_replicas_own(create, alone, dataset, monkeypatch):
    together = create(2)
    for trainer in (together, alone):  # as if the last batch were smaller
        monkeypatch.setattr(trainer, "batches", [(0, 48), (48, 34)])
    monkeypatch.setattr(together, "train_epoch", lambda state, *_: (state, METRICS, 3.0))
    states = together.create_state(np.array(SEEDS))
    _, records, results = together.train_and_evaluate(states, 1, ["test"], ignore)
    logits = together.predict(states, "test")
    for index, (record, result) in enumerate(zip(records, results, strict=True)):
        assert result["test"].loss == evaluate(logits[index], dataset.test.labels).loss
        assert record["test/loss"] == result["test"].loss
        loss = np.average(METRICS.loss[:, index], weights=[48, 34])
        assert record["train/loss"] == pytest.approx(loss)
        assert record["seconds"] == 1.5 and record["epoch"] == 1
        of_one = StepMetrics(*(values[:, index] for values in METRICS))
        by_run = alone.record(1, of_one, result, seconds=1.5)
        del by_run["images_per_second"]  # it would mislead if replicas share a program
        assert record == by_run
    assert together.train_and_evaluate(states, 1, [], ignore)[2] == [{}, {}]


def test_a_replica_that_diverges_leaves_the_others_alone(create):
    together = create(2)
    states = together.create_state(np.array([1, 2]))
    params = jax.tree.map(lambda leaf: leaf.at[0].set(np.nan), states.params)
    states, metrics = train(together, states.replace(params=params), 1)
    assert np.isnan(metrics.loss[:, 0]).all() and np.isfinite(metrics.loss[:, 1]).all()
    assert np.isfinite(together.predict(states, "test")[1]).all()

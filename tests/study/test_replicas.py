"""Replicas trained together give the same results as runs with their seeds, trained alone."""

import jax
import numpy as np
import pytest

from mnist_flax.errors import UserError
from mnist_flax.evaluate import evaluate
from mnist_flax.runtime import memory
from mnist_flax.step import StepMetrics
from mnist_flax.study.replicas import Pool, Replicas
from mnist_flax.trainer import Trainer
from tests.runs import tiny
from tests.small import assert_close, small_dataset, train

SEEDS = [3, 8]


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
    return Trainer.place(dataset)


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
            compiled[number].compile()
        return compiled[number]

    return create


def test_each_is_as_its_seed_alone(create, alone):
    """Initialisation, orders, augmentation, statistics, averages and test-time views agree."""
    together = create(2)
    states, metrics = train(together, together.create_states(SEEDS), 2)
    logits = together.predict(states, "test")
    assert metrics.loss.shape == metrics.accuracy.shape == (4, 2) and logits.shape == (2, 50, 10)
    for index, seed in enumerate(SEEDS):
        state, of_one = train(alone, alone.create_state(seed), 2)
        np.testing.assert_allclose(metrics.loss[:, index], of_one.loss, rtol=1e-4)
        assert_close(jax.tree.map(lambda leaf, i=index: leaf[i], states), state, 1e-4)
        expected = alone.predict(state, "test")
        np.testing.assert_allclose(logits[index], expected, rtol=1e-3, atol=1e-4)
    assert not np.allclose(logits[0], logits[1], atol=0.01)


def test_one_replica_is_its_run(create, alone):
    """They agree up to rounding, because one replica has its own program, used for every seed."""
    one = create(1)
    for seed in (7, 42):
        states, metrics = train(one, one.create_states([seed]), 1)
        state, of_run = train(alone, alone.create_state(seed), 1)
        np.testing.assert_allclose(metrics.loss[:, 0], of_run.loss, rtol=1e-5)
        logits = one.predict(states, "test")[0]
        np.testing.assert_allclose(logits, alone.predict(state, "test"), rtol=1e-5, atol=1e-6)


def test_results_and_records_are_each_replicas_own(create, alone, dataset, monkeypatch):
    together = create(2)
    states, metrics = train(together, together.create_states(SEEDS), 1)
    assert together.evaluate_each(states, []) == [{}, {}]
    results = together.evaluate_each(states, ["test"])
    logits = together.predict(states, "test")
    for result, of_one in zip(results, logits, strict=True):
        assert result["test"].loss == evaluate(of_one, dataset.test.labels).loss
    for trainer in (together, alone):  # as if the last batch were smaller
        monkeypatch.setattr(trainer, "batches", [(0, 48), (48, 34)])
    records = together.records(1, metrics, results, seconds=3.0)
    assert len(records) == 2
    for index, record in enumerate(records):
        loss = np.average(metrics.loss[:, index], weights=[48, 34])
        assert record["train/loss"] == pytest.approx(loss)
        assert record["test/loss"] == results[index]["test"].loss
        assert record["seconds"] == 1.5 and record["epoch"] == 1
        of_one = StepMetrics(*(values[:, index] for values in metrics))
        by_run = alone.record(1, of_one, results[index], seconds=1.5)
        del by_run["images_per_second"]  # it would mislead if replicas share a program
        assert record == by_run


def test_a_replica_that_diverges_leaves_the_others_alone(create):
    together = create(2)
    states = together.create_states([1, 2])
    params = jax.tree.map(lambda leaf: leaf.at[0].set(np.nan), states.params)
    states, metrics = train(together, states.replace(params=params), 1)
    assert np.isnan(metrics.loss[:, 0]).all() and np.isfinite(metrics.loss[:, 1]).all()
    assert np.isfinite(together.predict(states, "test")[1]).all()


def test_memory_grows_with_the_replicas(create, dataset):
    images = sum(array.nbytes for array in dataset.train)
    assert images < create(1).memory() < create(2).memory()


class TestPool:
    @pytest.fixture
    def lines(self):
        return []

    @pytest.fixture
    def pool(self, config, dataset, lines):
        other = config.copy_and_resolve_references()
        other.model.norm = "none"
        return Pool({"base": config, "no norm": other}, dataset, lines.append)

    def test_one_copy_of_the_data_serves_all_recipes(self, pool, lines, monkeypatch):
        copies, place = [], Trainer.place
        placing = staticmethod(lambda data: copies.append(place(data)) or copies[-1])
        monkeypatch.setattr(Trainer, "place", placing)
        base, other = pool.get("base", 1), pool.get("no norm", 1)
        assert len(copies) == 1
        assert base._placed is other._placed is copies[0]
        assert pool.get("base", 1) is base and base is not other
        states, _ = train(other, other.create_states([1]), 1)
        assert not jax.tree.leaves(states.batch_stats)
        assert lines == []

    @pytest.mark.parametrize("fails", [False, True])
    def test_as_many_as_fit_in_memory(self, pool, lines, monkeypatch, fails):
        """The program's memory decides, or XLA's refusal to compile it."""

        def compile_(replicas):
            if fails and replicas.num_replicas > 1:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

        monkeypatch.setattr(Replicas, "compile", compile_)
        monkeypatch.setattr(Replicas, "memory", lambda replicas: 100 * replicas.num_replicas)
        monkeypatch.setattr(memory, "free", lambda: 350)
        replicas = pool.get("base", 8)
        expected = 1 if fails else 3
        assert replicas.num_replicas == expected
        assert lines[-1] == f"base: training {expected} at a time; more do not fit in memory"
        said = len(lines)
        # The answer is kept; only for a smaller number is another program compiled, silently.
        assert pool.get("base", 8) is replicas
        assert pool.get("base", 1).num_replicas == 1
        assert len(lines) == said

    def test_a_recipe_that_does_not_fit_at_all_is_refused(self, pool, monkeypatch):
        def compile_(replicas):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

        monkeypatch.setattr(Replicas, "compile", compile_)
        with pytest.raises(UserError, match="base does not fit in the memory of"):
            pool.get("base", 2)

    def test_other_errors_of_the_compiler_are_not_hidden(self, pool, monkeypatch):
        def compile_(replicas):
            raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

        monkeypatch.setattr(Replicas, "compile", compile_)
        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            pool.get("base", 2)

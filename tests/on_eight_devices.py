"""Tests that need a process with eight devices; runtime/test_devices.py starts one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax import data, step
from mnist_flax.runtime import devices
from mnist_flax.study.replicas import Replicas
from mnist_flax.trainer import Trainer
from tests.runs import tiny
from tests.small import assert_close, create_state, numbers, small_dataset, train

NUM_DEVICES = 8


@pytest.fixture(scope="module")
def config():
    config = tiny()
    # Adam and nearest-neighbour interpolation would turn rounding into large differences: Adam
    # divides a gradient by its size, and a tiny shift can select another pixel.
    config.optimizer.eps = 0.1
    config.augment.interpolation = "bilinear"
    config.optimizer.ema_decay = 0.5
    config.label_smoothing = 0.1
    config.batch_size = 48
    return config


@pytest.fixture(scope="module")
def trainer(config):
    """A trainer whose last batch and test split are not multiples of eight."""
    trainer = Trainer(config, small_dataset(config, 48 + 30))
    trainer.compile()
    return trainer


@pytest.mark.parametrize(("batch_size", "parts"), [(64, 8), (54, 2), (12, 4), (11, 1)])
def test_as_many_devices_as_divide_a_batch_have_a_part(batch_size, parts):
    mesh = devices.create_mesh(batch_size)
    assert mesh.devices.shape == (parts, NUM_DEVICES // parts)
    rows = np.arange(batch_size * 3).reshape(batch_size, 3)
    placed = {}

    def double(batch):
        batch = devices.spread(batch)
        jax.debug.inspect_array_sharding(batch, callback=lambda s: placed.update(sharding=s))
        return 2 * batch

    program = devices.lower(double, rows, batch_size=batch_size).compile()
    result = program(devices.put(rows))
    np.testing.assert_array_equal(result, 2 * rows)
    assert result.sharding.is_fully_replicated
    assert placed["sharding"].shard_shape(rows.shape) == (batch_size // parts, 3)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((50, 4, 4, 1), np.uint8), ((50, 3), np.uint8), ((50,), np.int32)]
)
def test_arrays_lie_on_every_device(shape, dtype):
    """Every device holds each array whole; batches have one size, with zeros after the last row."""
    array = np.random.default_rng(0).integers(1, 200, shape).astype(dtype)
    placed = devices.place((array, array[::-1]), {"test": (array, array)})
    for ours, theirs in zip(placed.train, (array, array[::-1]), strict=True):
        assert len(ours.addressable_shards) == NUM_DEVICES
        for shard in ours.addressable_shards:
            np.testing.assert_array_equal(shard.data, theirs)
    (batch,) = placed.eval_batches["test"]
    assert batch.sharding.is_fully_replicated and batch.dtype == dtype
    assert len(batch) == NUM_DEVICES * (100 if jax.default_backend() == "cpu" else 2_000)
    np.testing.assert_array_equal(batch[:50], array)
    assert not np.any(batch[50:])


def test_epoch_is_that_of_one_device(config, trainer):
    """Augmentation, statistics, gradients and averages agree, also in a smaller last batch.

    48 images are divided into eight shares, 30 into two.
    """
    dataset = small_dataset(config, 48 + 30)
    normalize = functools.partial(data.normalize, mean=dataset.mean, std=dataset.std)
    state = trainer.create_state(5)
    order = np.asarray(step.shuffle(jnp.copy(state.key), 1, 78))
    state, metrics = train(trainer, state, 1)
    step_alone = functools.partial(step.train_step, config=config, normalize=normalize)
    alone = jax.jit(lambda: create_state(config, seed=5, steps_per_epoch=2))()
    for index, part in enumerate((order[:48], order[48:])):
        alone, of_step = jax.jit(step_alone)(alone, *(array[part] for array in dataset.train))
        np.testing.assert_allclose(metrics.loss[index], of_step.loss, rtol=1e-5)
        assert abs(metrics.accuracy[index] - of_step.accuracy) <= 1.01 / len(part)
    assert {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)} == {True}
    assert_close(state, alone, 1e-4)
    logits = trainer.predict(state, "test")
    variables, images = jax.device_get(alone.eval_variables), normalize(dataset.test.images)
    expected = state.apply_fn(variables, images, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_replicas", [4, 3])
def test_replicas_have_devices_of_their_own(config, trainer, num_replicas):
    """Four replicas have two devices each; three share all eight. The results are the same."""
    dataset = small_dataset(config, 48 + 30)
    placed = devices.place(dataset.train, dataset.eval_splits)
    replicas = Replicas(config, dataset, num_replicas, placed)
    seeds = list(range(num_replicas))
    states, metrics = train(replicas, replicas.create_state(np.array(seeds)), 1)
    kernel = states.params["classifier"]["kernel"]
    held = [shard.data.shape[0] for shard in kernel.addressable_shards]
    assert held == ([1] if num_replicas == 4 else [3]) * NUM_DEVICES
    logits = replicas.predict(states, "test")
    # NumPy takes the arrays apart, because XLA may wait forever if dozens of gathering programs run
    # at once on devices that are threads of one process.
    on_host = numbers(states)
    for index in seeds:
        state, of_one = train(trainer, trainer.create_state(index), 1)
        np.testing.assert_allclose(metrics.loss[:, index], of_one.loss, rtol=1e-4)
        assert_close([leaf[index] for leaf in on_host], state, 1e-4)
        expected = trainer.predict(state, "test")
        np.testing.assert_allclose(logits[index], expected, rtol=1e-3, atol=1e-4)

"""Replicas that are trained together are the runs of their seeds, each trained alone."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from tests.test_trainer import Counter, small_dataset

from mnist_flax.trainer import Trainer
from tests.runs import ROOT, environment


@pytest.fixture
def config(tiny_config):
    tiny_config.batch_size = 48
    tiny_config.optimizer.eps = 0.1  # Adam divides a gradient by its size: rounding would grow
    tiny_config.optimizer.ema_decay = 0.5
    tiny_config.evaluation.num_views = 2
    return tiny_config


def assert_close(mine, other):
    for ours, theirs in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        if not jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            scale = np.abs(np.asarray(theirs, np.float64)).max()
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale + 1e-7)


def test_each_is_as_its_seed_alone(config):
    """Initialisation, orders, augmentation, statistics, averages and test-time views."""
    dataset = small_dataset(config, 130)
    seeds = [3, 8]
    together = Trainer(config, dataset, seeds)
    losses = [together.train_epoch(epoch, Counter()).loss for epoch in (1, 2)]
    logits = together.predict("test")
    assert losses[0].shape == (3, 2) and logits.shape == (2, 50, 10)
    one = Trainer(config, dataset, [0])  # whose programs are a run's, as the next test shows
    for index, seed in enumerate(seeds):
        one.restart([seed])
        for epoch in (1, 2):
            loss = one.train_epoch(epoch, Counter()).loss
            np.testing.assert_allclose(losses[epoch - 1][:, index], loss[:, 0], rtol=1e-4)
        assert_close(
            jax.tree.map(lambda leaf, i=index: leaf[i], together.state),
            jax.tree.map(lambda leaf: leaf[0], one.state),
        )
        np.testing.assert_allclose(logits[index], one.predict("test")[0], rtol=1e-3, atol=1e-4)
    assert not np.allclose(logits[0], logits[1], atol=0.01)


def test_one_replica_is_its_run_and_starts_again(config):
    dataset = small_dataset(config, 130)
    one = Trainer(config, dataset, [7])
    one.train_epoch(1, Counter())
    one.restart([config.seed])
    alone = Trainer(config, dataset)
    ours, theirs = one.train_epoch(1, Counter()), alone.train_epoch(1, Counter())
    np.testing.assert_array_equal(ours.loss[:, 0], theirs.loss)
    np.testing.assert_allclose(one.predict("test")[0], alone.predict("test"), rtol=1e-6)


def test_a_replica_that_diverges_leaves_the_others_alone(config):
    dataset = small_dataset(config, 96)
    together = Trainer(config, dataset, [1, 2])
    params = jax.tree.map(lambda leaf: leaf.at[0].set(np.nan), together.state.params)
    together.state = together.state.replace(params=params)
    losses = together.train_epoch(1, Counter()).loss
    assert np.isnan(losses[:, 0]).all() and np.isfinite(losses[:, 1]).all()
    assert np.isfinite(together.predict("test")[1]).all()


def test_memory_grows_with_the_replicas(config):
    dataset = small_dataset(config, 96)
    sizes = []
    for seeds in ([1], [1, 2, 3]):
        trainer = Trainer(config, dataset, seeds)
        trainer.finish_compiling()
        sizes.append(trainer.memory)
    images = sum(array.nbytes for array in dataset.train)
    assert images < sizes[0] < sizes[1]


def test_on_devices_of_their_own():
    """Four replicas on eight devices, two to each, and on one device."""
    script = """
import json
from configs import default
from mnist_flax.trainer import Trainer
from tests.test_trainer import Counter, small_dataset

config = default.get_config()
config.dataset.source = "sample"
config.batch_size = 48
config.model.channels, config.model.kernel_sizes = ((4,), (8,)), ((5,), (3,))
config.optimizer.eps = 0.1
trainer = Trainer(config, small_dataset(config, 96), [1, 2, 3, 4])
losses = trainer.train_epoch(1, Counter()).loss
kernel = trainer.state.params["classifier"]["kernel"]
held = [shard.data.shape[0] for shard in kernel.addressable_shards]
print(json.dumps([losses.tolist(), trainer.predict("test").tolist(), held]))
"""
    found = {}
    for count in (8, 1):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(
                PYTHONPATH=str(ROOT),
                XLA_FLAGS=f"--xla_force_host_platform_device_count={count}",
            ),
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found[count] = json.loads(done.stdout)
    (losses, logits, held), (losses_of_one, logits_of_one, held_of_one) = found[8], found[1]
    assert held == [1] * 8 and held_of_one == [4]
    np.testing.assert_allclose(losses, losses_of_one, rtol=1e-4)
    np.testing.assert_allclose(logits, logits_of_one, rtol=1e-3, atol=1e-4)

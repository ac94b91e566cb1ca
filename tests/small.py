"""Small data sets and short trainings that tests share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import data, optimizer, step
from mnist_flax.step import StepMetrics, TrainState
from mnist_flax.trainer import Trainer

SIDE, NUM_CLASSES = 28, 10


def small_dataset(config: ConfigDict, num_train: int, num_test: int = 50) -> data.Dataset:
    """Returns a data set of `num_train` random training images and the first test images."""
    whole = data.load(config.dataset, config.seed)
    pick = np.random.default_rng(0).permutation(len(whole.train))[:num_train]
    return whole._replace(
        train=data.Split(whole.train.images[pick], whole.train.labels[pick]),
        test=data.Split(whole.test.images[:num_test], whole.test.labels[:num_test]),
    )


def create_state(
    config: ConfigDict, seed: jax.typing.ArrayLike = 0, steps_per_epoch: int = 1
) -> TrainState:
    """Returns a run's state before the first step; may be traced."""
    schedule = optimizer.create_schedule(config.optimizer, steps_per_epoch, config.num_epochs)
    return step.create_state(seed, config, (SIDE, SIDE, 1), NUM_CLASSES, schedule)


def normalize(images: Any) -> Any:
    return data.normalize(images, mean=0.1307, std=0.3081)


def ignore(images: int, metrics: StepMetrics | None) -> None:
    """An `on_step` that does nothing."""


def train(trainer: Trainer, state: TrainState, num_epochs: int) -> tuple[TrainState, StepMetrics]:
    """Trains from epoch 1; returns the state and the metrics of all steps."""
    metrics = []
    for epoch in range(1, num_epochs + 1):
        state, of_epoch, _ = trainer.train_epoch(state, epoch, ignore)
        metrics.append(of_epoch)
    return state, StepMetrics(*map(np.concatenate, zip(*metrics, strict=True)))


def numbers(tree: Any) -> Any:
    """Returns the leaves as NumPy arrays, without PRNG keys, which NumPy cannot hold."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if not is_key(leaf)]


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Asserts that no number differs by more than `tolerance` times its array's largest."""
    for mine, other in zip(numbers(ours), numbers(theirs), strict=True):
        scale = np.abs(other.astype(np.float64)).max(initial=0)
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * scale + 1e-7)

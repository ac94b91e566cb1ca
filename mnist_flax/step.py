"""The training state, and the step from one state to the next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from ml_collections import ConfigDict

from mnist_flax import augment, data, model, optimizer


class TrainState(train_state.TrainState):
    """Parameters, optimiser state and step, and beside them:

    Attributes:
      batch_stats: running statistics of batch normalisation; empty without it.
      key: PRNG key that, with the step and the epoch, drives shuffling and augmentation.
    """

    batch_stats: Any
    key: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied to."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class StepMetrics(NamedTuple):
    """Of one batch: mean cross-entropy and share of right predictions, float32 scalars."""

    loss: jax.Array
    accuracy: jax.Array


def create_state(config: ConfigDict, steps_per_epoch: int) -> TrainState:
    """Initialises network and optimiser from `config.seed`."""
    return create_initializer(config, steps_per_epoch)(jax.random.key(config.seed))


def create_initializer(
    config: ConfigDict, steps_per_epoch: int
) -> Callable[[jax.Array], TrainState]:
    """The compiled function from a PRNG key to the state before the first step."""
    network = model.create_model(config.model)
    schedule = optimizer.create_schedule(config.optimizer, steps_per_epoch)
    tx = optimizer.create_optimizer(config.optimizer, schedule)

    @jax.jit  # as one program: its many small operations take seconds to compile one by one
    def create(root: jax.Array) -> TrainState:
        init_key, key = jax.random.split(root)
        images = jnp.zeros((1, data.IMAGE_SIDE, data.IMAGE_SIDE, 1))
        variables = network.init(init_key, images, train=False)
        state = TrainState.create(
            apply_fn=network.apply,
            params=variables["params"],
            tx=tx,
            batch_stats=variables.get("batch_stats", {}),
            key=key,
        )
        # An array from the start, so that the first step's state has the type of all others.
        return state.replace(step=jnp.int32(0))

    return create


def shuffle(key: jax.Array, epoch: jax.Array, num_images: int) -> jax.Array:
    """The order of an epoch: a permutation of the training images, int32 `[num_images]`."""
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, 0), epoch)
    return jax.random.permutation(epoch_key, num_images)


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    start: jax.Array,
    *,
    batch_size: int,
    augment_config: ConfigDict,
    normalize: Callable[[jax.Array], jax.Array],
) -> tuple[TrainState, StepMetrics]:
    """One step on the images `order[start : start + batch_size]`.

    Args:
      state: before the step.
      images: uint8 `[n, height, width, 1]`, the whole training set.
      labels: int32 `[n]`.
      order: int32 `[n]`, the epoch's permutation.
      start: int32 scalar.
      batch_size: of this step; the only shape that differs between steps.
      augment_config: the group `augment` of a configuration.
      normalize: maps pixels in 0..255 to the network's input.

    Returns:
      The state after the step, and the metrics of the batch before it.
    """
    indices = jax.lax.dynamic_slice_in_dim(order, start, batch_size)
    key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
    inputs = normalize(augment.augment(key, images[indices], augment_config))
    targets = labels[indices]

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, updates = state.apply_fn(
            {**state.variables, "params": params}, inputs, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean(), (logits, updates.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == targets)
    state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    return state, StepMetrics(loss, accuracy)

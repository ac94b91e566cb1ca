"""The training state, and the step from one state to the next."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from jax import lax
from ml_collections import ConfigDict

from mnist_flax import augment, data, mesh, model, optimizer


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
    return create_initializer(config, steps_per_epoch)(np.uint32(config.seed))


def create_initializer(
    config: ConfigDict, steps_per_epoch: int
) -> Callable[[np.uint32], TrainState]:
    """The jitted function from a seed, uint32, to the state before the first step."""
    network = model.create_model(config.model, mesh.BATCH_AXIS)
    schedule = optimizer.create_schedule(config.optimizer, steps_per_epoch)
    tx = optimizer.create_optimizer(config.optimizer, schedule)

    # As one program: its many small operations take seconds to compile one by one.
    @functools.partial(jax.jit, out_shardings=mesh.replicated())
    def create(seed: jax.Array) -> TrainState:
        init_key, key = jax.random.split(jax.random.key(seed))
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
    """One step on the images `order[start : start + batch_size]`, on as many devices as there are.

    Args:
      state: before the step, replicated.
      images: uint8 `[n, height, width, 1]`, the whole training set, spread over the devices.
      labels: int32 `[n]`, likewise.
      order: int32, the epoch's permutation of the images.
      start: int32 scalar.
      batch_size: of this step; the only shape that differs between steps.
      augment_config: the group `augment` of a configuration.
      normalize: maps pixels in 0..255 to the network's input.

    Returns:
      The state after the step, and the metrics of the batch before it.
    """

    def on_each_device(
        state: TrainState, images: jax.Array, labels: jax.Array, order: jax.Array, start: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        indices = lax.dynamic_slice_in_dim(order, start, batch_size)
        first, size = mesh.share(batch_size)
        pixels, targets = (
            lax.dynamic_slice_in_dim(mesh.take(array, indices), first, size)
            for array in (images, labels)
        )
        key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
        inputs = normalize(augment.augment(key, pixels, augment_config, first, batch_size))

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, updates = state.apply_fn(
                {**state.variables, "params": params}, inputs, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return losses.sum() / batch_size, (logits, updates.get("batch_stats", {}))

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (logits, batch_stats)), grads = value_and_grad(state.params)
        accuracy = jnp.sum(jnp.argmax(logits, axis=-1) == targets) / batch_size
        grads, metrics = mesh.total((grads, StepMetrics(loss, accuracy)))
        return state.apply_gradients(grads=grads, batch_stats=batch_stats), metrics

    return jax.shard_map(
        on_each_device,
        mesh=mesh.create_mesh(batch_size),
        in_specs=(mesh.REPLICATED, mesh.SPREAD, mesh.SPREAD, mesh.REPLICATED, mesh.REPLICATED),
        out_specs=mesh.REPLICATED,
        check_vma=False,  # gradients are summed here, not by JAX
    )(state, images, labels, order, start)

"""The training state, and the step from one state to the next."""

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
      average: of the variables over the steps; empty without `optimizer.ema_decay`.
      key: PRNG key that, with the step and the epoch, drives shuffling and augmentation.
    """

    batch_stats: Any
    average: Any
    key: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied to while it trains."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, Any]:
        """What the network is applied to when it is evaluated."""
        return self.average or self.variables


class StepMetrics(NamedTuple):
    """Of one batch: mean cross-entropy and share of right predictions, float32 scalars."""

    loss: jax.Array
    accuracy: jax.Array


def create_state(config: ConfigDict, steps_per_epoch: int) -> TrainState:
    """Initialises network and optimiser from `config.seed`."""
    return create_initializer(config, steps_per_epoch)(np.uint32(config.seed))


def create_initializer(
    config: ConfigDict, steps_per_epoch: int, num_replicas: int | None = None
) -> Callable[[jax.typing.ArrayLike], TrainState]:
    """The jitted function from a seed, uint32, to the state before the first step.

    With replicas, from their seeds, `[num_replicas]`, to their states.
    """
    network = model.create_model(config.model, mesh.BATCH_AXIS)
    schedule = optimizer.create_schedule(config.optimizer, steps_per_epoch, config.num_epochs)
    tx = optimizer.create_optimizer(config.optimizer, schedule)

    def create(seed: jax.Array) -> TrainState:
        init_key, key = jax.random.split(jax.random.key(seed))
        images = jnp.zeros((1, data.IMAGE_SIDE, data.IMAGE_SIDE, 1))
        variables = {"batch_stats": {}} | network.init(init_key, images, train=False)
        state = TrainState.create(
            apply_fn=network.apply,
            params=variables["params"],
            tx=tx,
            batch_stats=variables["batch_stats"],
            average=variables if config.optimizer.ema_decay else {},
            key=key,
        )
        # An array from the start, so that the first step's state has the type of all others.
        return state.replace(step=jnp.int32(0))

    # As one program: its many small operations take seconds to compile one by one.
    return jax.jit(
        mesh.on_devices(create, (mesh.OWN,), mesh.OWN, num_replicas=num_replicas),
        out_shardings=mesh.sharding(mesh.OWN, num_replicas),
    )


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
    config: ConfigDict,
    normalize: Callable[[jax.Array], jax.Array],
    num_replicas: int | None = None,
) -> tuple[TrainState, StepMetrics]:
    """One step on the images `order[start : start + batch_size]`, on as many devices as there are.

    Args:
      state: before the step; replicas' states, like their order, with a leading axis.
      images: uint8 `[n, height, width, 1]`, the whole training set, spread over the devices.
      labels: int32 `[n]`, likewise.
      order: int32, the epoch's permutation of the images.
      start: int32 scalar.
      batch_size: of this step; the only shape that differs between steps.
      config: the whole configuration.
      normalize: maps pixels in 0..255 to the network's input.
      num_replicas: trained together, each with its own order; None: one run.

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
        inputs = normalize(augment.augment(key, pixels, config.augment, first, batch_size))

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, updates = state.apply_fn(
                {**state.variables, "params": params}, inputs, train=True, mutable=["batch_stats"]
            )
            losses = cross_entropy(logits, targets, config.label_smoothing)
            return losses.sum() / batch_size, (logits, updates.get("batch_stats", {}))

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (logits, batch_stats)), grads = value_and_grad(state.params)
        accuracy = jnp.sum(jnp.argmax(logits, axis=-1) == targets) / batch_size
        grads, metrics = mesh.total((grads, StepMetrics(loss, accuracy)))
        new = state.apply_gradients(grads=grads, batch_stats=batch_stats)
        return _average(new, config.optimizer.ema_decay), metrics

    return mesh.on_devices(
        on_each_device,
        (mesh.OWN, mesh.SPREAD, mesh.SPREAD, mesh.OWN, mesh.REPLICATED),
        mesh.OWN,
        batch_size,
        num_replicas,
    )(state, images, labels, order, start)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Softmax cross-entropy of each image, with smoothed targets.

    A target is 1 - smoothing for the true class, and smoothing / classes are added to every one
    (Szegedy et al., 2016, arXiv 1512.00567).

    Args:
      logits: float `[batch, classes]`.
      labels: int `[batch]`.
      smoothing: 0..1.

    Returns:
      Float `[batch]`.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not smoothing:
        return losses
    # That of equal targets for all classes.
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - smoothing) * losses + smoothing * uniform


def _average(state: TrainState, decay: float) -> TrainState:
    """Moves `average` towards the variables: an exponential mean, shorter over the first steps."""
    if not decay:
        return state
    # After n steps a mean of about the last n / 10, which leaves the initial weights behind.
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(decay, step / (step + 10))
    return state.replace(
        average=optax.incremental_update(state.variables, state.average, 1 - decay)
    )

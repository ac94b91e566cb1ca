"""The training state, the step from one state to the next, and prediction."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from jax import lax
from ml_collections import ConfigDict

from mnist_flax import augment, model, optimizer
from mnist_flax.streams import Stream

Normalize = Callable[[jax.Array], jax.Array]  # from pixels in 0..255 to the network's input


class TrainState(train_state.TrainState):
    """Extends Flax's state (step, parameters, optimiser) with everything else a run needs."""

    batch_stats: Any  # running statistics of batch normalisation; empty without it
    average: Any  # exponential moving average of the variables; empty without `optimizer.ema_decay`
    key: jax.Array  # seeds the shuffling (by epoch) and the augmentation (by step)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that the network trains with."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables that the network is evaluated with."""
        return self.average or self.variables


class StepMetrics(NamedTuple):
    """Results on one batch, float32 scalars; or of every batch of an epoch, `[steps]`."""

    loss: jax.Array  # mean cross-entropy
    accuracy: jax.Array  # share of correct predictions, 0..1


def create_state(
    seed: jax.typing.ArrayLike,
    config: ConfigDict,
    image_shape: tuple[int, ...],
    num_classes: int,
    schedule: optax.Schedule,
) -> TrainState:
    """Returns the state before the first step, for images of shape `(height, width, channels)`."""
    network = model.create_model(config.model, num_classes)
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = {"batch_stats": {}} | network.init(
        init_key, jnp.zeros((1, *image_shape)), train=False
    )
    state = TrainState.create(
        apply_fn=network.apply,
        params=variables["params"],
        tx=optimizer.create_optimizer(config.optimizer, schedule),
        batch_stats=variables["batch_stats"],
        average=variables if config.optimizer.ema_decay else {},
        key=key,
    )
    # An array, not an int, so that the first step's state has the same type as all later ones.
    return state.replace(step=jnp.int32(0))


def shuffle(key: jax.Array, epoch: jax.typing.ArrayLike, num_images: int) -> jax.Array:
    """Returns the order of the images in an epoch, a permutation, int32 `[num_images]`."""
    return jax.random.permutation(Stream.SHUFFLE.key(key, epoch), num_images)


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    config: ConfigDict,
    normalize: Normalize,
) -> tuple[TrainState, StepMetrics]:
    """Trains on one batch.

    Args:
      state: the current training state.
      images: uint8 `[batch, height, width, channels]`.
      labels: int32 `[batch]`.
      config: the whole configuration.
      normalize: maps pixels to the network's input.

    Returns:
      The new state, and this batch's loss and accuracy before the update.
    """
    key = Stream.AUGMENT.key(state.key, state.step)
    inputs = normalize(augment.augment(key, images, config.augment))

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = state.apply_fn(variables, inputs, train=True, mutable=["batch_stats"])
        one_hot = jax.nn.one_hot(labels, logits.shape[-1])
        targets = optax.smooth_labels(one_hot, config.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, (logits, updates.get("batch_stats", {}))

    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, batch_stats)), grads = value_and_grad(state.params)
    accuracy = jnp.mean(logits.argmax(axis=-1) == labels)
    state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    return _update_average(state, config.optimizer.ema_decay), StepMetrics(loss, accuracy)


def predict(
    state: TrainState, images: jax.Array, *, config: ConfigDict, normalize: Normalize
) -> jax.Array:
    """Returns the logits of uint8 images, float32 `[batch, classes]`.

    If `evaluation.num_views` is above 1, they are the logarithms of the probabilities averaged
    over the image and random maps of it.
    """

    def apply(images: jax.Array) -> jax.Array:
        return state.apply_fn(state.eval_variables, normalize(images), train=False)

    logits = apply(images)
    num_views = config.evaluation.num_views
    if num_views == 1:
        return logits

    def log_probabilities(view: augment.AffineParams) -> jax.Array:
        maps = jax.tree.map(lambda p: jnp.broadcast_to(p, (len(images), *p.shape)), view)
        mapped = augment.affine(images, maps, config.augment.interpolation)
        return jax.nn.log_softmax(apply(mapped))

    views = augment.sample_views(state.key, images.shape[1], config)
    # One after another, so that memory does not grow with the number of views.
    others = lax.map(log_probabilities, views)
    every = jnp.concatenate([jax.nn.log_softmax(logits)[None], others])
    return jax.nn.logsumexp(every, axis=0) - math.log(num_views)


def _update_average(state: TrainState, decay: float) -> TrainState:
    """Moves `average` towards the variables by `1 - decay`, and by more in the first steps."""
    if not decay:
        return state
    # At first it averages about the last tenth of the steps, so that the initial weights fade.
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(decay, step / (step + 10))
    average = optax.incremental_update(state.variables, state.average, 1 - decay)
    return state.replace(average=average)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from mnist_flax import data
from mnist_flax.step import create_state, cross_entropy, shuffle, train_step


def test_shuffle_is_a_new_permutation_every_epoch():
    orders = [np.asarray(shuffle(jax.random.key(0), epoch, 1_000)) for epoch in (1, 2, 1)]
    np.testing.assert_array_equal(np.sort(orders[0]), np.arange(1_000))
    assert not np.array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[0], orders[2])


def test_augmentation_differs_between_steps(tiny_config):
    """With one image for a training set, only augmentation can change what a step sees."""
    state = create_state(tiny_config, 1)
    images = jnp.asarray(data.load(tiny_config.dataset, 0).train.images[:1])
    seen = []

    def record(pixels):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), pixels)
        return data.normalize(pixels, 0.13, 0.31)

    step = functools.partial(train_step, batch_size=1, config=tiny_config, normalize=record)
    only = jnp.zeros(1, jnp.int32)
    for _ in range(3):
        state, _ = jax.jit(step)(state, images, only, only, 0)
    jax.effects_barrier()
    assert len({image.tobytes() for image in seen}) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_lowers_for_every_platform(dtype):
    """The default recipe, from whatever machine this is."""
    config = default.get_config()
    config.model.dtype = dtype
    state = jax.eval_shape(lambda: create_state(config, 30))
    state = state.replace(key=jax.eval_shape(lambda: jax.random.key(0)))
    shape = jax.ShapeDtypeStruct
    step = functools.partial(
        train_step,
        batch_size=config.batch_size,
        config=config,
        normalize=functools.partial(data.normalize, mean=0.1307, std=0.3081),
    )
    exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(
        state,
        shape((60_000, 28, 28, 1), jnp.uint8),
        shape((60_000,), jnp.int32),
        shape((60_000,), jnp.int32),
        shape((), jnp.int32),
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    module = exported.mlir_module()
    assert "stablehlo.convolution" in module
    assert ("bf16" in module) == (dtype == "bfloat16")


def test_label_smoothing_is_the_loss_of_smoothed_targets():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (5, 10)).astype(np.float32), np.array([3, 0, 9, 3, 1])
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.2)
    theirs = optax.softmax_cross_entropy(logits, targets)
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.2), theirs, rtol=1e-5)


def test_the_average_is_that_of_the_steps_variables(tiny_config):
    """Against the recurrence in the open: average += (1 - decay) (variables - average)."""
    tiny_config.optimizer.ema_decay = 0.2
    split = data.load(tiny_config.dataset, 0).train
    order = jnp.arange(64)
    state = create_state(tiny_config, 1)
    expected = jax.tree.map(np.asarray, state.variables)
    step = jax.jit(
        functools.partial(
            train_step,
            batch_size=64,
            config=tiny_config,
            normalize=functools.partial(data.normalize, mean=0.13, std=0.31),
        )
    )
    for count in range(1, 5):
        state, _ = step(state, split.images[:64], split.labels[:64], order, 0)
        decay = min(0.2, count / (count + 10))
        expected = jax.tree.map(
            lambda average, new, decay=decay: average + (1 - decay) * (np.asarray(new) - average),
            expected,
            state.variables,
        )
    assert "batch_stats" in expected
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        dict(state.evaluated),
        expected,
    )
    assert not np.allclose(
        state.params["classifier"]["kernel"],
        state.average["params"]["classifier"]["kernel"],
        atol=1e-6,
    )

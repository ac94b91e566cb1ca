import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mnist_flax import data
from mnist_flax.step import create_state, shuffle, train_step


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

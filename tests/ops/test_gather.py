import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_flax import augment
from mnist_flax.ops import gather


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([1, 2, 7, 12, 49, 126, 784]),
    channels=st.sampled_from([1, 3]),
)
def test_products_read_what_numpy_reads(seed, count, channels):
    """It reads the same bits, also from a prime number of pixels, and for every value of a byte."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (3, count, channels)).astype(np.uint8)
    index = rng.integers(0, count, (3, 300)).astype(np.int32)
    index[:, :2] = 0, count - 1
    found = gather.by_products(pixels, index)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.take_along_axis(pixels, index[..., None], axis=1))


def test_every_byte_is_exact():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    index = np.arange(256, dtype=np.int32)[None, ::-1]
    np.testing.assert_array_equal(gather.by_products(pixels, index)[0, :, 0], np.arange(256)[::-1])


@pytest.mark.parametrize("interpolation", augment.INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(64, 28, 28, 1), (8, 9, 14, 1), (8, 5, 5, 3)])
def test_augmentation_by_products_is_the_same(monkeypatch, shape, interpolation):
    """The images are the same bit for bit, turned by any angle and moved beyond the border."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, shape).astype(np.uint8)
    params = augment.AffineParams(
        jnp.float32(rng.uniform(-math.pi, math.pi, shape[0])),
        jnp.float32(rng.integers(-shape[1], shape[1] + 1, (shape[0], 2))),
        jnp.float32(rng.uniform(0.3, 3, shape[0])),
    )
    by_index = augment.affine(images, params, interpolation)
    monkeypatch.setattr(gather, "take_along_rows", gather.by_products)
    by_products = augment.affine(images, params, interpolation)
    assert by_products.dtype == by_index.dtype
    np.testing.assert_array_equal(by_products, by_index)


@pytest.mark.parametrize(
    ("platform", "dtype", "gathers"),
    [
        ("tpu", jnp.uint8, False),
        ("tpu", jnp.float32, True),
        ("cpu", jnp.uint8, True),
        ("cuda", jnp.uint8, True),
    ],
)
def test_only_tpus_multiply_and_only_bytes(platform, dtype, gathers):
    pixels, index = jnp.zeros((2, 784, 1), dtype), jnp.zeros((2, 784), jnp.int32)
    traced = jax.jit(gather.take_along_rows).trace(pixels, index)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.gather" in text) == gathers
    assert ("stablehlo.dot_general" in text) != gathers

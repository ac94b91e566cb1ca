"""The model's batch normalisation agrees with PyTorch's formulas, computed in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax.model import Layer, SimpleCNN

_ROUNDING = np.finfo(np.float32).eps


class Norm(SimpleCNN):
    """Only the normalisation of a `SimpleCNN`, without the network around it."""

    @nn.compact
    def __call__(self, x, train):
        return self._normalize(x, Layer("batch", "norm"), train)


def create_norm(dtype=jnp.float32):
    return Norm(10, ((3,),), ((1,),), norm="batch", dtype=dtype)


def plain(x, scale, bias):
    """The definition of batch normalisation, for JAX to differentiate."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    var = jnp.mean(jnp.square(x - mean), axes)
    return scale * (x - mean) / jnp.sqrt(var + 1e-5) + bias


# A single image, a batch of prime size, and inputs without height and width.
@pytest.mark.parametrize("shape", [(1, 6, 5, 3), (7, 4, 4, 3), (32, 3)])
@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_value_gradients_and_statistics_are_those_of_the_definition(shape, offset):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(offset, 2, shape), jnp.float32)
    scale, bias = (jnp.asarray(rng.normal(1, 1, 3), jnp.float32) for _ in range(2))
    weights = jnp.asarray(rng.normal(size=shape), jnp.float32)
    layer = create_norm()
    before = {"mean": jnp.array([0.5, 0, -1]), "var": jnp.array([1.0, 2, 3])}

    @jax.jit
    def ours(x, scale, bias):
        params = {"norm": {"scale": scale, "bias": bias}}
        variables = {"params": params, "batch_stats": {"norm": before}}
        y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(weights * y), (y, new["batch_stats"]["norm"])

    def theirs(x, scale, bias):
        y = plain(x, scale, bias)
        return jnp.sum(weights.astype(jnp.float64) * y), y

    (_, (y, new)), gradients = jax.value_and_grad(ours, (0, 1, 2), has_aux=True)(x, scale, bias)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a), jnp.float64) for a in (x, scale, bias)]
        (_, exact_y), exact_gradients = jax.value_and_grad(theirs, (0, 1, 2), has_aux=True)(*exact)
    channels = np.asarray(x, np.float64).reshape(-1, 3)
    # The variance is computed as E[x^2] - E[x]^2 in float32, which loses digits if the mean is
    # large. Allow for a few dozen roundings of sums and products.
    tolerance = 64 * _ROUNDING * (1 + (offset / 2) ** 2)
    for mine, exact in zip((y, *gradients), (exact_y, *exact_gradients), strict=True):
        np.testing.assert_allclose(mine, exact, rtol=0, atol=tolerance * np.abs(exact).max())
    mean = 0.9 * before["mean"] + 0.1 * channels.mean(axis=0)
    np.testing.assert_allclose(new["mean"], mean, rtol=tolerance, atol=tolerance)
    # PyTorch updates its running variance with the unbiased one: n / (n - 1) times the batch's.
    n = len(channels)
    of_pytorch = 0.9 * before["var"] + 0.1 * channels.var(axis=0, ddof=1)
    converted = 0.9 * before["var"] + (of_pytorch - 0.9 * before["var"]) * (n - 1) / n
    np.testing.assert_allclose(new["var"], converted, rtol=tolerance)


def test_evaluation_takes_the_running_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(5, 2, (4, 3, 3, 3)), jnp.float32)
    mean, var, scale, bias = (np.array([k, k + 1, k + 2.0]) for k in (4, 1, -1, 7))
    variables = {
        "params": {"norm": {"scale": scale, "bias": bias}},
        "batch_stats": {"norm": {"mean": mean, "var": var}},
    }
    y, new = create_norm().apply(variables, x, train=False, mutable=["batch_stats"])
    exact = (np.asarray(x, np.float64) - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_images_of_one_colour_stay_finite(value):
    """Their variance is 0, and rounding must not make it negative."""
    x = jnp.full((8, 4, 4, 3), value).at[0, 0, 0].add(value * 1e-6)
    layer = create_norm()
    variables = layer.init(jax.random.key(0), x, train=True)

    def loss(x):
        y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y**2), new

    (total, new), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    assert np.isfinite(total) and np.isfinite(gradient).all()
    assert (new["batch_stats"]["norm"]["var"] >= 0.9).all()


def test_bfloat16_is_normalised_with_float32_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (64, 4, 4, 2)), jnp.bfloat16)
    layer = create_norm(jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, train=True)
    y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    statistics = new["batch_stats"]["norm"]
    assert {leaf.dtype for leaf in statistics.values()} == {jnp.dtype("float32")}
    exact = np.asarray(x, np.float64).reshape(-1, 2)
    np.testing.assert_allclose(statistics["mean"], 0.1 * exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * exact.var(0), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float32).mean((0, 1, 2)), 0, atol=0.01)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_there_is_no_loop(platform):
    """The sums over a batch are a few reductions, which XLA can distribute and fuse."""
    layer, x = create_norm(), jnp.ones((8, 4, 4, 3))
    variables = layer.init(jax.random.key(0), x, train=True)

    def loss(x):
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])[0].sum()

    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=(platform,))(x)
    assert "stablehlo.while" not in exported.mlir_module()

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mnist_flax.batch_norm import BatchNorm


def plain(x, scale, bias):
    """The definition, differentiated by JAX."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    var = jnp.mean(jnp.square(x - mean), axes)
    return scale * (x - mean) / jnp.sqrt(var + 1e-5) + bias


# One image, a batch that nothing divides, and no height or width.
@pytest.mark.parametrize("shape", [(1, 6, 5, 3), (7, 4, 4, 3), (32, 3)])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_value_and_gradients_are_those_of_the_definition(shape, offset):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(offset, 2, shape), jnp.float32)
    scale, bias = (jnp.asarray(rng.normal(1, 1, 3), jnp.float32) for _ in range(2))
    weights = jnp.asarray(rng.normal(size=shape), jnp.float32)
    layer = BatchNorm()
    state = layer.init(jax.random.key(0), x, train=True)["batch_stats"]

    def ours(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": state}
        y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(weights * y), new["batch_stats"]

    def theirs(x, scale, bias):
        return jnp.sum(weights.astype(jnp.float64) * plain(x, scale, bias))

    (value, new), gradients = jax.value_and_grad(ours, (0, 1, 2), has_aux=True)(x, scale, bias)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a), jnp.float64) for a in (x, scale, bias)]
        expected, exact_gradients = jax.value_and_grad(theirs, (0, 1, 2))(*exact)
        variance = np.var(np.asarray(x, np.float64).reshape(-1, 3), axis=0, ddof=1)
    # An offset of 500 standard deviations costs float32 three of its seven digits.
    tolerance = 2e-5 if offset == 0 else 5e-3
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance * x.size**0.5)
    for mine, exact in zip(gradients, exact_gradients, strict=True):
        np.testing.assert_allclose(mine, exact, atol=tolerance * np.abs(exact).max())
    np.testing.assert_allclose(new["var"], 0.9 + 0.1 * variance, rtol=1e-3)


def test_bfloat16_is_normalised_with_float32_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (64, 4, 4, 2)), jnp.bfloat16)
    layer = BatchNorm()
    y, new = layer.init_with_output(jax.random.key(0), x, train=True)
    assert y.dtype == jnp.bfloat16
    y, new = layer.apply(new, x, train=True, mutable=["batch_stats"])
    assert new["batch_stats"]["mean"].dtype == jnp.float32
    exact = np.asarray(x, np.float64).reshape(-1, 2).mean(0)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * exact, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float32).mean((0, 1, 2)), 0, atol=0.01)


def test_elsewhere_than_on_a_cpu_there_is_no_loop():
    def loss(x):
        variables = {
            "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
            "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
        }
        return BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])[0].sum()

    x = jnp.ones((8, 4, 4, 3))
    for platform, loops in {"cpu": True, "cuda": False, "tpu": False}.items():
        exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=(platform,))(x)
        assert ("stablehlo.while" in exported.mlir_module()) == loops

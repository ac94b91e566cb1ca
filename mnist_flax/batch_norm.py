"""Batch normalisation as PyTorch defines it, in as few passes over the memory as it takes.

It can be differentiated in reverse mode only.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015, arXiv 1502.03167).

    y = scale * (x - mean) / sqrt(var + eps) + bias, a mean and variance a channel: of the batch
    while training (biased variance), else the running ones. Running statistics move by
    `momentum` towards the batch's, the variance as its unbiased estimate n / (n - 1) * var; that
    n / (n - 1) is where flax's own layer differs. Statistics are float32, y has x's type.
    """

    momentum: float = 0.1
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises float `[batch, ..., channels]`; `train` says by which statistics."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            factor = scale * lax.rsqrt(running_var.value + self.eps)
            return ((x - running_mean.value) * factor + bias).astype(x.dtype)
        y, mean, var = _normalize(x, scale, bias, self.eps)
        if not self.is_initializing():
            n = x.size // x.shape[-1]
            unbiased_var = var * (n / max(n - 1, 1))
            running_mean.value += self.momentum * (mean - running_mean.value)
            running_var.value += self.momentum * (unbiased_var - running_var.value)
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns y, and the batch's mean and biased variance, which are constants to a gradient."""
    return _forward(x, scale, bias, eps)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    n = x.size // x.shape[-1]
    # One pass for both sums; of differences from a value near the mean, for var's digits.
    near = jnp.mean(x[0].astype(jnp.float32), axis=range(x.ndim - 2))
    total, total_square = _sums(lambda x: (x - near, jnp.square(x - near)), x)
    mean = near + total / n
    var = jnp.maximum(total_square / n - jnp.square(total / n), 0)
    inverse_std = lax.rsqrt(var + eps)
    y = ((x - mean) * (scale * inverse_std) + bias).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, inverse_std)


def _backward(
    eps: float, residuals: tuple[jax.Array, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ioffe and Szegedy's gradients, section 3, gathered to two sums and one pass."""
    x, scale, mean, inverse_std = residuals
    dy = cotangents[0]
    n = x.size // x.shape[-1]
    dbias, product = _sums(lambda dy, x: (dy, dy * (x - mean)), dy, x)
    dscale = product * inverse_std
    normalized = (x - mean) * inverse_std
    dx = scale * inverse_std * (dy - dbias / n - normalized * (dscale / n))
    return dx.astype(x.dtype), dscale, dbias


_normalize.defvjp(_forward, _backward)


def _sums(terms: Callable[..., tuple[jax.Array, ...]], *arrays: jax.Array) -> list[jax.Array]:
    """Sums `terms(*arrays)` to a number a channel, in float32.

    XLA adds up a large array's channels at a fraction of a CPU's memory bandwidth, each sum by a
    pass of its own. Image by image, all sums take one pass, and it is the memory that limits it.
    """

    def image_by_image(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        def add(
            totals: tuple[jax.Array, ...], images: tuple[jax.Array, ...]
        ) -> tuple[tuple[jax.Array, ...], None]:
            images = [image.astype(jnp.float32) for image in images]
            return tuple(map(jnp.add, totals, terms(*images))), None

        first = [jax.ShapeDtypeStruct(a.shape[1:], jnp.float32) for a in arrays]
        zeros = tuple(jnp.zeros(t.shape) for t in jax.eval_shape(terms, *first))
        return lax.scan(add, zeros, arrays)[0]

    def at_once(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        arrays = [array.astype(jnp.float32) for array in arrays]
        return tuple(jnp.sum(term, axis=0) for term in terms(*arrays))

    totals = lax.platform_dependent(*arrays, cpu=image_by_image, default=at_once)
    return [jnp.sum(total, axis=range(total.ndim - 1)) for total in totals]

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

    Attributes:
      momentum: of the running statistics.
      eps: added to the variance.
      axis_name: the mesh axis over which the batch is spread, within `jax.shard_map`; None: it is
        on one device. The batch's statistics are those of all of it, while gradients of scale and
        bias are a device's part, to be summed with those of all other parameters.
    """

    momentum: float = 0.1
    eps: float = 1e-5
    axis_name: str | None = None

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
        y, mean, var = _normalize(x, scale, bias, self.eps, self.axis_name)
        if not self.is_initializing():
            n = _count(x, self.axis_name)
            unbiased_var = var * (n / max(n - 1, 1))
            running_mean.value += self.momentum * (mean - running_mean.value)
            running_var.value += self.momentum * (unbiased_var - running_var.value)
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns y, and the batch's mean and biased variance, which are constants to a gradient."""
    return _forward(x, scale, bias, eps, axis_name)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float, axis_name: str | None
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    n = _count(x, axis_name)
    # One pass for both sums; of differences from a value near the mean, for var's digits.
    near = jnp.mean(x[0].astype(jnp.float32), axis=range(x.ndim - 2))
    near = near if axis_name is None else lax.pmean(near, axis_name)
    total, total_square = _total(_sums(lambda x: (x - near, jnp.square(x - near)), x), axis_name)
    mean = near + total / n
    var = jnp.maximum(total_square / n - jnp.square(total / n), 0)
    inverse_std = lax.rsqrt(var + eps)
    y = ((x - mean) * (scale * inverse_std) + bias).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, inverse_std)


def _backward(
    eps: float,
    axis_name: str | None,
    residuals: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ioffe and Szegedy's gradients, section 3, gathered to two sums and one pass."""
    x, scale, mean, inverse_std = residuals
    dy = cotangents[0]
    n = _count(x, axis_name)
    dbias, product = _sums(lambda dy, x: (dy, dy * (x - mean)), dy, x)
    dscale = product * inverse_std
    total_dbias, total_dscale = _total([dbias, dscale], axis_name)
    normalized = (x - mean) * inverse_std
    dx = scale * inverse_std * (dy - total_dbias / n - normalized * (total_dscale / n))
    return dx.astype(x.dtype), dscale, dbias


_normalize.defvjp(_forward, _backward)


def _count(x: jax.Array, axis_name: str | None) -> int:
    """How many numbers of the batch a channel has, on all devices."""
    return x.size // x.shape[-1] * (1 if axis_name is None else lax.axis_size(axis_name))


def _total(parts: list[jax.Array], axis_name: str | None) -> list[jax.Array]:
    """The sum of the devices' parts."""
    return parts if axis_name is None else lax.psum(parts, axis_name)


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

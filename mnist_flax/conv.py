"""A convolution that CPUs do quickly too, to be handed to `nn.Conv`.

What it computes: `lax.conv_general_dilated`, to float rounding.

Why: on a CPU, two of XLA's passes have a quicker equivalent. The weight gradient is one matrix
product a chunk of images, of the image's patches along its rows with the output's gradient; chunks
keep the patches in the cache. A large kernel's forward pass without padding is quicker with
padding, cropped. For the original's second layer (256 images of 24x24, 5x5, 36 to 36 channels):

    milliseconds, median (range) of 5       lax                 here
    weight gradient                         1121 (981-1241)     167 (138-231)
    forward                                 468 (441-483)       196 (178-223)

on 2 cores of an AMD EPYC with AVX2, jax 0.10.2, both interleaved.

Where: on CPUs only. Elsewhere each pass is XLA's own, which serves GPUs and TPUs well. The choice
falls when a program is lowered, pass by pass, so that one program exported for several platforms
is right on each.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
# Images whose patches are made at a time, at most; 2 to 32 were about as fast.
_CHUNK = 8
# The kernel from which padding pays: 5x5 gains, 3x3 loses.
_LARGE = 4

_Strides = tuple[int, int]
_Padding = tuple[tuple[int, int], tuple[int, int]]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Convolves as `lax.conv_general_dilated`, which alone serves all but plain convolutions.

    Plain is: two dimensions, NHWC and HWIO, no dilation, no groups, default precision.

    Args:
      lhs: float `[batch, height, width, in]`.
      rhs: float `[kernel height, kernel width, in, out]`, of the same type.
      window_strides: two.
      padding: 'VALID', 'SAME', or (low, high) for both axes.
      **options: the others of `lax.conv_general_dilated`.

    Returns:
      Float `[batch, height', width', out]`, of the type of `lhs`.
    """
    strides = tuple(window_strides)
    if not _is_plain(lhs, rhs, options):
        return lax.conv_general_dilated(lhs, rhs, strides, padding, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    return _conv(lhs, rhs, strides, tuple(tuple(map(int, pair)) for pair in padding))


def _is_plain(lhs: jax.Array, rhs: jax.Array, options: dict[str, Any]) -> bool:
    if lhs.ndim != 4:
        return False
    given = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    dilations = (options.get("lhs_dilation"), options.get("rhs_dilation"))
    return (
        given == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and all(dilation is None or set(dilation) == {1} for dilation in dilations)
        and options.get("feature_group_count", 1) == 1
        and options.get("batch_group_count", 1) == 1
        and options.get("precision") is None
        and options.get("preferred_element_type") is None
    )


def _xla_conv(lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding) -> jax.Array:
    return lax.conv_general_dilated(lhs, rhs, strides, padding, dimension_numbers=_NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding) -> jax.Array:
    plain = functools.partial(_xla_conv, strides=strides, padding=padding)
    unpadded = all(pair == (0, 0) for pair in padding)
    if strides != (1, 1) or not unpadded or min(rhs.shape[:2]) < _LARGE:
        return plain(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=_cropped_conv, default=plain)


def _forward(
    lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(lhs, rhs, strides, padding), (lhs, rhs)


def _backward(
    strides: _Strides,
    padding: _Padding,
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    lhs, rhs = residuals
    plain = functools.partial(_xla_conv, strides=strides, padding=padding)
    (lhs_gradient,) = jax.vjp(lambda x: plain(x, rhs), lhs)[1](gradient)

    def xla_weight_gradient(lhs: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda w: plain(lhs, w), rhs)[1](gradient)[0]

    if strides != (1, 1):
        return lhs_gradient, xla_weight_gradient(lhs, gradient)
    products = functools.partial(_weight_gradient, kernel=rhs.shape[:2], padding=padding)
    rhs_gradient = lax.platform_dependent(lhs, gradient, cpu=products, default=xla_weight_gradient)
    return lhs_gradient, rhs_gradient


_conv.defvjp(_forward, _backward)


def _cropped_conv(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The convolution without padding, cut out of the one with 'SAME' padding."""
    (top, bottom), (left, right) = (((side - 1) // 2, side // 2) for side in rhs.shape[:2])
    padded = _xla_conv(lhs, rhs, (1, 1), ((top, bottom), (left, right)))
    return padded[:, top : padded.shape[1] - bottom, left : padded.shape[2] - right]


def _weight_gradient(
    lhs: jax.Array, gradient: jax.Array, kernel: tuple[int, int], padding: _Padding
) -> jax.Array:
    """The gradient of a stride-1 convolution by its kernel.

    d[i, j, c, o] = sum over images, r and q of lhs[r, q + j, c] * gradient[r - i, q, o]: for all
    (j, c) and (i, o) at once, one product of patches along the rows of the input with the output's
    gradient moved down by each i. Both are zero outside their picture.

    Args:
      lhs: float `[batch, height, width, in]`.
      gradient: float `[batch, height', width', out]`.
      kernel: height and width.
      padding: (low, high) for both axes.

    Returns:
      Of the type of `lhs`, `[kernel height, kernel width, in, out]`; summed in float32.
    """
    rows, columns = kernel
    batch, _, width, features = gradient.shape
    chunk = math.gcd(batch, _CHUNK)
    starts = (np.arange(width)[:, None] + np.arange(columns)).ravel()

    def add_chunk(total: jax.Array, chunks: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        images = jnp.pad(chunks[0], ((0, 0), *padding, (0, 0)))
        # A gather with constant indices: concatenated slices are slower on a CPU.
        patches = jnp.take(images, starts, axis=2, mode="clip")
        moved = [
            jnp.pad(chunks[1], ((0, 0), (i, rows - 1 - i), (0, 0), (0, 0))) for i in range(rows)
        ]
        product = lax.dot_general(
            patches.reshape(-1, columns * lhs.shape[-1]),
            jnp.concatenate(moved, axis=-1).reshape(-1, rows * features),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return total + product, None

    split = lambda x: x.reshape(-1, chunk, *x.shape[1:])  # noqa: E731
    zeros = jnp.zeros((columns * lhs.shape[-1], rows * features), jnp.float32)
    total, _ = lax.scan(add_chunk, zeros, (split(lhs), split(gradient)))
    total = total.reshape(columns, lhs.shape[-1], rows, features)
    return total.transpose(2, 0, 1, 3).astype(lhs.dtype)

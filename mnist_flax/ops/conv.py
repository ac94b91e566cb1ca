"""A convolution for `nn.Conv` that is fast on CPUs too.

It computes the same as `lax.conv_general_dilated`, up to float rounding, and can be differentiated
only in reverse mode.

Why it is faster. A stride-1 convolution uses Cook and Toom's minimal filtering along the rows
(Winograd's convolution, in one dimension; Lavin and Gray, 2015, arXiv 1509.09308): with a
kernel of `taps` rows, `tile` rows of output take `tile + taps - 1` products instead of
`tile * taps`, each of a constant combination of the input's rows and one of the kernel's. For 5x5
kernels and tiles of 4 that is 8 instead of 20. Each product is one of XLA's convolutions along the
columns; its gradient with respect to the kernel is a matrix product, where XLA would first
transpose both arrays. A convolution of one channel is a matrix product of patches, each covering a
few columns. If the stride is the kernel's size, as in every 1x1 convolution with stride 1, the
gradients are products of rows as they lie in memory.

Where. Only CPUs use it. Elsewhere each pass is XLA's own, which serves GPUs and TPUs well. The
choice is made for each pass when a program is lowered, so that a program exported for several
platforms does the right thing on each.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mnist_flax.ops import cook_toom

_NHWC = ("NHWC", "HWIO", "NHWC")
_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
_PLAIN = (("feature_group_count", 1), ("batch_group_count", 1))
# How many images at most are summed into a kernel gradient at a time: these stay in the cache.
_CHUNK = 16
# The fewest kernel rows for a tiled kernel gradient: XLA is as fast with 3x3, and compiles sooner.
_LARGE = 4
# How many columns are treated as one, for fewer and larger products: in kernel gradients, and in
# convolutions of one channel.
_COLUMNS = 2
_COLUMNS_OF_ONE = 4

_Strides = tuple[int, int]
_Padding = tuple[tuple[int, int], tuple[int, int]]
_Conv = Callable[..., jax.Array]  # takes (lhs, rhs, strides, padding)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Convolves like `lax.conv_general_dilated`, which it calls unless the convolution is plain.

    A plain convolution has floats of 32 bits or fewer, two dimensions, NHWC and HWIO, no dilation,
    no groups, default precision, no negative padding, and a batch size that is known.

    Args:
      lhs: float `[batch, height, width, in]`.
      rhs: float `[kernel height, kernel width, in, out]`.
      window_strides: vertical and horizontal.
      padding: 'VALID', 'SAME', or (low, high) for both axes.
      **options: the other arguments of `lax.conv_general_dilated`.

    Returns:
      Float `[batch, height', width', out]`, with the dtype of `lhs`.
    """
    strides = tuple(window_strides)
    if _is_plain(lhs, rhs, **options):
        pads: Any = padding
        if isinstance(padding, str):
            pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
        pads = tuple((int(low), int(high)) for low, high in pads)
        if min(itertools.chain(*pads)) >= 0:
            return _conv(lhs, rhs, strides, pads)
    return lax.conv_general_dilated(lhs, rhs, strides, padding, **options)


def _is_plain(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    dimension_numbers: Any = None,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    **others: Any,
) -> bool:
    if lhs.ndim != 4 or lhs.dtype != rhs.dtype or lhs.dtype not in _DTYPES:
        return False
    if not isinstance(lhs.shape[0], int):  # a program that is exported for any batch size
        return False
    given = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    return (
        given == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and all(not dilation or set(dilation) == {1} for dilation in (lhs_dilation, rhs_dilation))
        and all(value is None or (name, value) in _PLAIN for name, value in others.items())
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding) -> jax.Array:
    on_cpu = functools.partial(_on_cpu(rhs, strides, padding)[0], strides=strides, padding=padding)
    elsewhere = functools.partial(_xla_conv, strides=strides, padding=padding)
    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=elsewhere)


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
    def pull_back(convolve: _Conv, operand: int) -> Callable[..., jax.Array]:
        def pulled_back(lhs: jax.Array, rhs: jax.Array, gradient: jax.Array) -> jax.Array:
            if convolve is _tiled_conv and operand == 1:
                kernel = _tiled_kernel_gradient(_pad(lhs, padding), gradient, rhs.shape[:2])
                return kernel.astype(rhs.dtype)

            def linear(x: jax.Array) -> jax.Array:
                operands = (x, rhs) if operand == 0 else (lhs, x)
                return convolve(*operands, strides, padding)

            return jax.vjp(linear, (lhs, rhs)[operand])[1](gradient)[0]

        return pulled_back

    on_cpu = _on_cpu(residuals[1], strides, padding)[1:]
    return tuple(
        lax.platform_dependent(
            *residuals,
            gradient,
            cpu=pull_back(convolve, operand),
            default=pull_back(_xla_conv, operand),
        )
        for operand, convolve in enumerate(on_cpu)
    )


_conv.defvjp(_forward, _backward)


def _on_cpu(rhs: jax.Array, strides: _Strides, padding: _Padding) -> tuple[_Conv, _Conv, _Conv]:
    """Returns the functions for the convolution, its input gradient and its kernel gradient."""
    if strides == rhs.shape[:2] and not np.any(padding):
        return _xla_conv, _blocked_conv, _blocked_conv
    if strides == (1, 1) and rhs.shape[2] == 1:
        return _patches_conv, _xla_conv, _patches_conv
    if strides == (1, 1) and 2 <= rhs.shape[0] < len(cook_toom.POINTS):
        return _tiled_conv, _tiled_conv, _tiled_conv if rhs.shape[0] >= _LARGE else _xla_conv
    return _xla_conv, _xla_conv, _xla_conv


def _xla_conv(lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding) -> jax.Array:
    return lax.conv_general_dilated(lhs, rhs, strides, padding, dimension_numbers=_NHWC)


def _pad(images: jax.Array, padding: _Padding) -> jax.Array:
    return jnp.pad(images, ((0, 0), *padding, (0, 0)))


def _blocked_conv(
    lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding
) -> jax.Array:
    """Convolves with a stride equal to the kernel's size, so that each pixel is used once."""
    del padding  # none
    rows, columns = strides
    batch, height, width, features = lhs.shape
    height, width = height // rows, width // columns
    lhs = lhs[:, : height * rows, : width * columns]
    lhs = lhs.reshape(batch * height, rows, width * columns * features)
    products = [
        lhs[:, row].reshape(-1, columns * features) @ kernel.reshape(columns * features, -1)
        for row, kernel in enumerate(rhs)
    ]
    return sum(products).reshape(batch, height, width, rhs.shape[3])


def _patches_conv(
    lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding
) -> jax.Array:
    """Convolves one channel by multiplying patches, each for a few columns, with the kernel."""
    del strides  # one
    images = _pad(lhs, padding)
    rows, columns, _, features = rhs.shape
    batch, height, width, _ = images.shape
    height, width = height - rows + 1, width - columns + 1
    group = math.gcd(width, _COLUMNS_OF_ONE)
    first = np.add.outer(np.arange(height) * images.shape[2], np.arange(0, width, group))
    offset = np.add.outer(np.arange(rows) * images.shape[2], np.arange(columns + group - 1))
    pixels = images.reshape(batch, -1)
    patches = pixels.at[:, np.add.outer(first, offset)].get(mode="promise_in_bounds")
    shifted = [
        jnp.pad(rhs, ((0, 0), (column, group - 1 - column), (0, 0), (0, 0)))
        for column in range(group)
    ]
    kernels = jnp.stack(shifted, axis=3).reshape(-1, group * features)
    return (patches.reshape(-1, len(kernels)) @ kernels).reshape(batch, height, width, features)


def _tiled_conv(lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding) -> jax.Array:
    """Convolves with Cook and Toom's algorithm along the rows, in float32."""
    lhs, taps = _pad(lhs, padding), rhs.shape[0]
    height = lhs.shape[1] - taps + 1
    tile, tiles = cook_toom.tiling(height, taps)
    of_input, of_kernel, of_output = cook_toom.constants(tile, taps)
    kernels = jnp.einsum("kt,tjco->kjco", of_kernel, rhs.astype(jnp.float32))
    products = [
        _xla_conv(rows.reshape(-1, 1, *lhs.shape[2:]), kernel[None], strides, ((0, 0), (0, 0)))
        for rows, kernel in zip(_input_rows(lhs, of_input, tile, tiles), kernels, strict=True)
    ]
    rows = [row.reshape(len(lhs), tiles, *row.shape[2:]) for row in _combine(of_output, products)]
    stacked = jnp.stack(rows, axis=2)
    stacked = stacked.reshape(len(lhs), tiles * tile, *stacked.shape[3:])
    return stacked[:, :height].astype(lhs.dtype)


def _tiled_kernel_gradient(
    lhs: jax.Array, gradient: jax.Array, kernel: tuple[int, int]
) -> jax.Array:
    """Returns the kernel gradient of `_tiled_conv`, float32, given the output's gradient.

    For each pair of combined rows, one of the input and one of the output's gradient, it multiplies
    each column of the former with the column `j` before it of the latter. `_COLUMNS` columns are
    treated as one with that many times the channels; a few of these products are discarded.
    """
    taps, columns = kernel
    tile, tiles = cook_toom.tiling(gradient.shape[1], taps)
    of_input, of_kernel, of_output = cook_toom.constants(tile, taps)
    groups = -(-gradient.shape[2] // _COLUMNS)
    shifts = (columns + _COLUMNS - 2) // _COLUMNS + 1
    features = (_COLUMNS * lhs.shape[3], _COLUMNS * gradient.shape[3])

    def add_chunk(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        lhs, gradient = (
            _pad(images, ((0, 0), (0, size * _COLUMNS - images.shape[2])))  # with columns of zeros
            for images, size in zip(chunk, (groups + shifts - 1, groups), strict=True)
        )
        inputs = _input_rows(lhs, of_input, tile, tiles)
        outputs = _combine(of_output.T, _tile_rows(gradient, tile, tile, tiles))
        return total + jnp.stack(list(map(products, inputs, outputs))), None

    def products(rows: jax.Array, gradient: jax.Array) -> jax.Array:
        gradient = gradient.reshape(-1, features[1])
        starts = [shift * features[0] for shift in range(shifts)]
        shifted = [rows[..., start : start + groups * features[0]] for start in starts]
        return jnp.stack([x.reshape(-1, features[0]).T @ gradient for x in shifted])

    size = math.gcd(len(lhs), _CHUNK)
    chunks = tuple(x.reshape(-1, size, *x.shape[1:]) for x in (lhs, gradient))
    zeros = jnp.zeros((len(of_kernel), shifts, *features))
    total, _ = lax.scan(add_chunk, zeros, chunks)
    # Entry (s, a, b) is for input column s * _COLUMNS + a and output column b: j apart.
    total = total.reshape(len(total), shifts * _COLUMNS, lhs.shape[3], _COLUMNS, gradient.shape[3])
    kernels = sum(total[:, b : b + columns, :, b] for b in range(_COLUMNS))
    return jnp.einsum("kt,kjco->tjco", of_kernel, kernels)


def _input_rows(lhs: jax.Array, of_input: np.ndarray, tile: int, tiles: int) -> list[jax.Array]:
    """Returns each combination of every tile's rows, float32 `[batch, tiles, width * in]`."""
    return _combine(of_input, _tile_rows(lhs, len(of_input), tile, tiles))


def _tile_rows(images: jax.Array, count: int, tile: int, tiles: int) -> list[jax.Array]:
    """Returns the first, second, ... row of every tile, float32 `[batch, tiles, width * channels]`.

    Rows are flat, so that neighbouring columns form one slice.
    """
    batch, height, *row = images.shape
    images = images.reshape(batch, height, math.prod(row)).astype(jnp.float32)
    images = jnp.pad(images, ((0, 0), (0, (tiles - 1) * tile + count - height), (0, 0)))
    last = (tiles - 1) * tile + 1
    return [lax.slice_in_dim(images, row, row + last, tile, axis=1) for row in range(count)]


def _combine(coefficients: np.ndarray, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the linear combinations of `terms` with each row of `coefficients`."""
    return [
        functools.reduce(
            jnp.add, (c * term for c, term in zip(row.tolist(), terms, strict=True) if c)
        )
        for row in coefficients
    ]

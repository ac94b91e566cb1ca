"""A convolution that CPUs do quickly too, to be handed to `nn.Conv`.

What it computes: `lax.conv_general_dilated`, to float rounding.

Why it is faster. A stride-1 convolution is done by Cook and Toom's minimal filtering along the rows
(Winograd's convolution, in one dimension; Lavin and Gray, 2015, arXiv 1509.09308): `tile` rows of
output from kernels of `taps` rows take `tile + taps - 1` products in place of `tile * taps`, of
constant combinations of the input's rows with constant combinations of the kernel's. For 5x5
kernels and tiles of 4 that is 8 in place of 20. Each product is a convolution along the columns,
XLA's own; its gradient by the kernel is a matrix product, where XLA would transpose both pictures
first. A convolution whose stride is its kernel's size, 1x1 included, is a matrix product.

Where: on CPUs only. Elsewhere each pass is XLA's own, which serves GPUs and TPUs well. The choice
falls when a program is lowered, pass by pass, so that one program exported for several platforms
is right on each.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
# Where Cook and Toom's polynomials are evaluated. All powers of two or 0, so that the constants are
# exact; more of them would save more products and cost float32 its digits.
_POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2)
# Images whose kernel gradient is summed at a time, at most: what they need stays in the cache.
_CHUNK = 16
# The kernel's rows from which its gradient gains: 5x5 takes less time than with XLA, 3x3 more.
_LARGE = 4
# Columns taken as one in the kernel gradient: fewer, larger products.
_COLUMNS = 2

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding) -> jax.Array:
    on_cpu, elsewhere = (
        functools.partial(convolve, strides=strides, padding=padding)
        for convolve in (_tiled_conv if _is_tiled(rhs, strides) else _xla_conv, _xla_conv)
    )
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
    def pull_back(convolve: Callable[..., jax.Array], operand: int) -> Callable[..., jax.Array]:
        def pulled_back(lhs: jax.Array, rhs: jax.Array, gradient: jax.Array) -> jax.Array:
            def linear(x: jax.Array) -> jax.Array:
                operands = (x, rhs) if operand == 0 else (lhs, x)
                return convolve(*operands, strides, padding)

            return jax.vjp(linear, (lhs, rhs)[operand])[1](gradient)[0]

        return pulled_back

    def kernel_gradient(lhs: jax.Array, rhs: jax.Array, gradient: jax.Array) -> jax.Array:
        return _kernel_gradient(_pad(lhs, padding), gradient, rhs.shape[:2]).astype(rhs.dtype)

    rhs = residuals[1]
    on_cpu = elsewhere = pull_back(_xla_conv, 0), pull_back(_xla_conv, 1)
    if strides == rhs.shape[:2] and not np.any(padding):
        on_cpu = pull_back(_blocked_conv, 0), pull_back(_blocked_conv, 1)
    elif _is_tiled(rhs, strides):
        large = rhs.shape[0] >= _LARGE
        on_cpu = pull_back(_tiled_conv, 0), kernel_gradient if large else elsewhere[1]
    return tuple(
        lax.platform_dependent(*residuals, gradient, cpu=cpu, default=default)
        for cpu, default in zip(on_cpu, elsewhere, strict=True)
    )


_conv.defvjp(_forward, _backward)


def _xla_conv(lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding) -> jax.Array:
    return lax.conv_general_dilated(lhs, rhs, strides, padding, dimension_numbers=_NHWC)


def _is_tiled(rhs: jax.Array, strides: _Strides) -> bool:
    # Of one channel the combinations cost as much as the products that they save.
    return strides == (1, 1) and 2 <= rhs.shape[0] < len(_POINTS) and rhs.shape[2] > 1


def _pad(images: jax.Array, padding: _Padding) -> jax.Array:
    return jnp.pad(images, ((0, 0), *padding, (0, 0)))


def _blocked_conv(
    lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding
) -> jax.Array:
    """A convolution whose stride is its kernel's size: each block of pixels meets it once."""
    del padding  # none
    rows, columns = strides
    features = lhs.shape[-1]
    batch, height, width, _ = lhs.shape
    height, width = height // rows, width // columns
    blocks = lhs[:, : height * rows, : width * columns]
    blocks = blocks.reshape(batch, height, rows, width, columns, features).swapaxes(2, 3)
    products = blocks.reshape(-1, rows * columns * features) @ rhs.reshape(-1, rhs.shape[-1])
    return products.reshape(batch, height, width, -1)


def _tiled_conv(lhs: jax.Array, rhs: jax.Array, strides: _Strides, padding: _Padding) -> jax.Array:
    """Cook and Toom's algorithm along the rows, computed in float32."""
    lhs, taps = _pad(lhs, padding), rhs.shape[0]
    height = lhs.shape[1] - taps + 1
    tile, tiles = _tiling(height, taps)
    of_input, of_kernel, of_output = _cook_toom(tile, taps)
    kernels = jnp.einsum("kt,tjco->kjco", of_kernel, rhs.astype(jnp.float32))
    products = [
        _xla_conv(rows.reshape(-1, 1, *rows.shape[2:]), kernel[None], strides, ((0, 0), (0, 0)))
        for rows, kernel in zip(_input_rows(lhs, of_input, tile, tiles), kernels, strict=True)
    ]
    rows = [row.reshape(-1, tiles, *row.shape[2:]) for row in _combine(of_output, products)]
    stacked = jnp.stack(rows, axis=2)
    return stacked.reshape(-1, tiles * tile, *stacked.shape[3:])[:, :height].astype(lhs.dtype)


def _kernel_gradient(lhs: jax.Array, gradient: jax.Array, kernel: tuple[int, int]) -> jax.Array:
    """The gradient of `_tiled_conv` by its kernel.

    Of each pair of combined rows, the input's and the output's gradient, it takes the product of
    every column of the one with the column `j` before it of the other. `_COLUMNS` columns are
    taken as one with as many times the channels, which makes fewer and larger products, a few of
    which are discarded.

    Args:
      lhs: float `[batch, height, width, in]`.
      gradient: float `[batch, height - kernel height + 1, width - kernel width + 1, out]`.
      kernel: height and width.

    Returns:
      float32 `[kernel height, kernel width, in, out]`.
    """
    taps, columns = kernel
    tile, tiles = _tiling(gradient.shape[1], taps)
    of_input, of_kernel, of_output = _cook_toom(tile, taps)
    groups = -(-gradient.shape[2] // _COLUMNS)
    shifts = (columns + _COLUMNS - 2) // _COLUMNS + 1

    def add_chunk(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        inputs = _input_rows(chunk[0], of_input, tile, tiles)
        outputs = _combine(of_output.T, _tile_rows(chunk[1], tile, tile, tiles))
        pairs = zip(inputs, outputs, strict=True)
        return total + jnp.stack([product(*pair) for pair in pairs]), None

    def product(rows: jax.Array, gradient: jax.Array) -> jax.Array:
        rows, gradient = group(rows, groups + shifts - 1), group(gradient, groups)
        flat = gradient.reshape(-1, gradient.shape[-1])
        shifted = [rows[:, s : s + groups].reshape(-1, rows.shape[-1]) for s in range(shifts)]
        return jnp.stack([x.T @ flat for x in shifted])

    def group(rows: jax.Array, size: int) -> jax.Array:
        """Takes columns together: `[rows, size, _COLUMNS * channels]`, cut or filled with 0."""
        missing = size * _COLUMNS - rows.shape[2]
        rows = lax.pad(rows, np.float32(0), [(0, 0, 0), (0, 0, 0), (0, missing, 0), (0, 0, 0)])
        return rows.reshape(-1, size, _COLUMNS * rows.shape[-1])

    size = math.gcd(len(lhs), _CHUNK)
    chunks = [x.reshape(-1, size, *x.shape[1:]) for x in (lhs, gradient)]
    features = (lhs.shape[-1], gradient.shape[-1])
    zeros = jnp.zeros((len(of_kernel), shifts, *(_COLUMNS * size for size in features)))
    total, _ = lax.scan(add_chunk, zeros, tuple(chunks))
    # Entry (s, a, b) is of input column s * _COLUMNS + a and output column b: j apart.
    total = total.reshape(-1, shifts * _COLUMNS, features[0], _COLUMNS, features[1])
    kernels = sum(total[:, b : b + columns, :, b] for b in range(_COLUMNS))
    return jnp.einsum("kt,kjco->tjco", of_kernel, kernels)


def _tiling(height: int, taps: int) -> tuple[int, int]:
    """The tile's rows and the number of tiles that take the fewest products."""
    largest = len(_POINTS) + 2 - taps  # as many products as points, infinity included
    tiles = {tile: -(-height // tile) for tile in range(1, largest + 1)}
    return min(tiles.items(), key=lambda item: item[1] * (item[0] + taps - 1))


def _cook_toom(tile: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The constants of Cook and Toom's algorithm for `tile` outputs of `taps` taps.

    y[i] = sum over t of x[i + t] * w[t] is `output @ ((kernel @ w) * (input @ x))`: products of
    polynomials are products of their values, here at the first points and at infinity. (Lavin and
    Gray's B^T, G and A^T.)

    Returns:
      `input` float32 `[products, products]`, `kernel` `[products, taps]`, `output`
      `[tile, products]`; products = tile + taps - 1.
    """
    points = np.array(_POINTS[: tile + taps - 2], float)
    others = [np.delete(points, k) for k in range(len(points))]
    powers = points[:, None] ** np.arange(max(tile, taps))
    lagrange = np.array([np.prod(p - other) for p, other in zip(points, others, strict=True)])
    at_infinity = functools.partial(np.eye, 1)  # the leading coefficient
    polynomials = [np.atleast_1d(np.poly(roots))[::-1] for roots in [*others, points]]
    of_input = [np.append(polynomial, 0) for polynomial in polynomials[:-1]] + polynomials[-1:]
    of_kernel = [*(powers[:, :taps] / lagrange[:, None]), *at_infinity(taps, taps - 1)]
    of_output = [*powers[:, :tile], *at_infinity(tile, tile - 1)]
    of_input, of_kernel, of_output = (
        np.array(rows, np.float32) for rows in (of_input, of_kernel, of_output)
    )
    return of_input, of_kernel, of_output.T


def _input_rows(lhs: jax.Array, of_input: np.ndarray, tile: int, tiles: int) -> list[jax.Array]:
    """Every tile's combined rows, of each combination float32 `[batch, tiles, width, in]`."""
    return _combine(of_input, _tile_rows(lhs, len(of_input), tile, tiles))


def _tile_rows(images: jax.Array, count: int, tile: int, tiles: int) -> list[jax.Array]:
    """The first, second, ... row of every tile, float32 `[batch, tiles, width, channels]`."""
    missing = (tiles - 1) * tile + count - images.shape[1]
    images = jnp.pad(images, ((0, 0), (0, missing), (0, 0), (0, 0))).astype(jnp.float32)
    last = (tiles - 1) * tile + 1
    return [lax.slice_in_dim(images, row, row + last, tile, axis=1) for row in range(count)]


def _combine(coefficients: np.ndarray, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """The combinations of `terms` that the rows of `coefficients` tell."""
    return [
        functools.reduce(
            jnp.add, (c * term for c, term in zip(row.tolist(), terms, strict=True) if c)
        )
        for row in coefficients
    ]

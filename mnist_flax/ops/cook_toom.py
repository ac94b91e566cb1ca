"""The constants of Cook and Toom's algorithm for short convolutions."""

import functools

import numpy as np

# Where Cook and Toom's polynomials are evaluated. All are 0 or powers of two, so that the constants
# of input and output are exact. More points would save more products, but cost float32 precision.
POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2)


def tiling(height: int, taps: int) -> tuple[int, int]:
    """Returns the rows of a tile and the number of tiles that take the fewest products."""
    largest = len(POINTS) + 2 - taps  # as many products as points, infinity included
    tiles = {tile: -(-height // tile) for tile in range(1, largest + 1)}
    return min(tiles.items(), key=lambda item: item[1] * (item[0] + taps - 1))


def constants(tile: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the constants of the algorithm for `tile` outputs of `taps` taps.

    y[i] = sum over t of x[i + t] * w[t] is `output @ ((kernel @ w) * (input @ x))`: a product
    of polynomials is given by the products of their values, here at the first points and at
    infinity. The three matrices are Lavin and Gray's B^T, G and A^T.

    Returns:
      `input` float32 `[products, products]`, `kernel` `[products, taps]`, `output`
      `[tile, products]`; products = tile + taps - 1.
    """
    points = np.array(POINTS[: tile + taps - 2], float)
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

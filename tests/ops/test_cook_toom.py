import numpy as np
import pytest

from mnist_flax.ops import cook_toom


@pytest.mark.parametrize(
    "tile, taps", [(tile, taps) for taps in range(2, 8) for tile in range(1, 10 - taps)]
)
def test_constants_are_those_of_an_exact_algorithm(tile, taps):
    """For integers, which need no rounding, the algorithm gives the correlation as defined."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-9, 10, size) for size in (tile + taps - 1, taps))
    of_input, of_kernel, of_output = (
        matrix.astype(float) for matrix in cook_toom.constants(tile, taps)
    )
    result = of_output @ ((of_kernel @ w) * (of_input @ x))
    expected = [sum(x[i + t] * w[t] for t in range(taps)) for i in range(tile)]
    # The kernel's constants are thirds and fifths, rounded to float32.
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_tiles_take_the_fewest_products():
    """For 5x5 kernels on the original's rows, a tile takes 8 products instead of 20."""
    assert [cook_toom.tiling(rows, 5) for rows in (20, 24)] == [(4, 5), (4, 6)]

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from mnist_flax.ops import conv

NHWC = ("NHWC", "HWIO", "NHWC")


@st.composite
def convolutions(draw):
    """Draws the shapes and settings of a convolution with a non-empty output."""
    kernel = draw(st.tuples(*[st.integers(1, 7)] * 2))
    padding = draw(
        st.one_of(
            st.sampled_from(["VALID", "SAME"]),
            st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
        )
    )
    return {
        "batch": draw(st.integers(1, 20)),
        "size": tuple(side + draw(st.integers(0, 5)) for side in kernel),
        "kernel": kernel,
        "channels": (draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        "strides": draw(st.sampled_from([(1, 1), (1, 1), (1, 2), (3, 1), kernel])),
        "padding": padding,
        "dtype": draw(st.sampled_from(["float32", "bfloat16"])),
    }


def value_and_gradients(convolve, lhs, rhs, cotangent, case):
    convolve = functools.partial(
        convolve,
        window_strides=case["strides"],
        padding=case["padding"],
        dimension_numbers=NHWC,
    )
    shape = jax.eval_shape(convolve, lhs, rhs).shape

    @jax.jit
    def value_and_pullback(lhs, rhs, cotangent):
        value, pullback = jax.vjp(convolve, lhs, rhs)
        return value, *pullback(cotangent)

    return value_and_pullback(lhs, rhs, cotangent(shape))


# There are few examples, because each has new shapes and is compiled.
@settings(max_examples=15, deadline=None, derandomize=True)
@given(convolutions(), st.integers(0, 2**16))
def test_agrees_with_lax(case, seed):
    check_against_lax(case, seed)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(convolutions(), st.integers(0, 2**16))
def test_agrees_with_lax_for_many_shapes(case, seed):
    check_against_lax(case, seed)


# The original's convolutions: 5x5 with one input channel, with and without padding; 5x5 from 24x24
# and, padded, to 24x24; 3x3 to sides that are and are not multiples of 4; 2x2 with stride 2; 1x1.
# Also a batch that is no multiple of a chunk, and a width that is no multiple of a column group.
@pytest.mark.parametrize(
    "batch, side, features, kernel, strides, padding",
    [
        (7, 28, 1, 5, 1, "VALID"),
        (7, 28, 1, 5, 1, "SAME"),
        (7, 9, 1, 3, 1, "VALID"),
        (16, 24, 3, 5, 1, "VALID"),
        (7, 24, 3, 5, 1, "SAME"),
        (16, 10, 3, 3, 1, "VALID"),
        (16, 8, 3, 3, 1, "SAME"),
        (16, 9, 3, 2, 2, "VALID"),
        (16, 3, 3, 1, 1, "VALID"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_agrees_with_lax_where_the_network_uses_it(
    batch, side, features, kernel, strides, padding, dtype
):
    case = {
        "batch": batch,
        "size": (side, side),
        "kernel": (kernel, kernel),
        "channels": (features, 5),
        "strides": (strides, strides),
        "padding": padding,
        "dtype": dtype,
    }
    check_against_lax(case, seed=0)


def check_against_lax(case, seed):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), case["dtype"])  # noqa: E731
    lhs = draw((case["batch"], *case["size"], case["channels"][0]))
    rhs = draw((*case["kernel"], *case["channels"]))
    values = {}
    cotangent = functools.cache(draw)
    ours = value_and_gradients(conv.conv_general_dilated, lhs, rhs, cotangent, case)
    exact = value_and_gradients(
        lax.conv_general_dilated,
        lhs.astype(jnp.float32),
        rhs.astype(jnp.float32),
        lambda shape: cotangent(shape).astype(jnp.float32),
        case,
    )
    tolerance = {"float32": 1e-5, "bfloat16": 0.02}[case["dtype"]]
    for name, mine, theirs in zip(("value", "lhs", "rhs"), ours, exact, strict=True):
        assert mine.dtype == case["dtype"]
        scale = max(float(jnp.abs(theirs).max()), 1.0)
        values[name] = float(jnp.abs(mine.astype(jnp.float32) - theirs).max()) / scale
    assert max(values.values()) < tolerance, values


@pytest.mark.parametrize(
    "options",
    [
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 2)},
        {"feature_group_count": 2},
        {"precision": lax.Precision.HIGHEST},
        {"padding": [(-1, 1), (1, 1)]},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_others_are_left_to_lax(options):
    lhs = jnp.arange(2.0 * 6 * 6 * 6).reshape(2, 6, 6, 6)
    rhs = jnp.ones((6, 6, 3, 3)) if "dimension_numbers" in options else jnp.ones((3, 3, 6, 4))
    if "feature_group_count" in options:
        rhs = rhs[:, :, :3]
    arguments = {"window_strides": (1, 1), "padding": [(1, 1)] * 2, "dimension_numbers": NHWC}
    arguments |= options
    convolve = functools.partial(conv.conv_general_dilated, **arguments)
    assert "custom_vjp" not in str(jax.make_jaxpr(convolve)(lhs, rhs))
    ours = convolve(lhs, rhs)
    np.testing.assert_array_equal(ours, lax.conv_general_dilated(lhs, rhs, **arguments))


def test_only_cpus_are_served_otherwise():
    """For GPUs and TPUs, the program is the same as with lax; only for CPUs is it different."""
    lhs, rhs = jnp.ones((16, 12, 12, 3)), jnp.ones((5, 5, 3, 4))

    def gradients(convolve):
        def loss(lhs, rhs):
            return convolve(lhs, rhs, (1, 1), "VALID", dimension_numbers=NHWC).sum()

        return jax.jit(jax.grad(loss, (0, 1)))

    def operations(convolve, platform):
        exported = jax.export.export(gradients(convolve), platforms=(platform,))(lhs, rhs)
        module = exported.mlir_module()
        return [module.count(f"stablehlo.{op}") for op in ("convolution", "dot_general", "while")]

    for platform in ("cuda", "tpu"):
        assert operations(conv.conv_general_dilated, platform) == operations(
            lax.conv_general_dilated, platform
        )
    ours = operations(conv.conv_general_dilated, "cpu")
    assert ours != operations(lax.conv_general_dilated, "cpu")
    assert ours[0] == 8  # the gradient of the input: 8 products for a tile of 4 rows


def test_one_program_for_several_platforms():
    """A program exported for three platforms at once gives the right results on this one."""
    rng = np.random.default_rng(0)
    lhs = jnp.asarray(rng.normal(size=(8, 12, 12, 3)), jnp.float32)
    rhs = jnp.asarray(rng.normal(size=(5, 5, 3, 4)), jnp.float32)

    def gradients(convolve):
        def loss(lhs, rhs):
            return jnp.sum(convolve(lhs, rhs, (1, 1), "VALID", dimension_numbers=NHWC) ** 2)

        return jax.jit(jax.value_and_grad(loss, (0, 1)))

    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(gradients(conv.conv_general_dilated), platforms=platforms)(
        lhs, rhs
    )
    ours, exact = exported.call(lhs, rhs), gradients(lax.conv_general_dilated)(lhs, rhs)
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_works_under_vmap():
    """Replicas are trained together under `vmap`."""
    rng = np.random.default_rng(0)
    lhs = jnp.asarray(rng.normal(size=(3, 4, 8, 8, 2)), jnp.float32)
    rhs = jnp.asarray(rng.normal(size=(3, 5, 5, 2, 3)), jnp.float32)

    @jax.jit
    def gradients(lhs, rhs):
        def loss(lhs, rhs):
            return jnp.sum(
                conv.conv_general_dilated(lhs, rhs, (1, 1), "VALID", dimension_numbers=NHWC) ** 2
            )

        return jax.grad(loss, (0, 1))(lhs, rhs)

    together = jax.jit(jax.vmap(gradients))(lhs, rhs)
    for index in range(3):
        for mine, alone in zip(together, gradients(lhs[index], rhs[index]), strict=True):
            np.testing.assert_allclose(mine[index], alone, rtol=1e-4, atol=1e-4)

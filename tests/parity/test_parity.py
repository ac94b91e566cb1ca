"""Compares the network, gradients, optimiser steps, initial weights and sizes with PyTorch's.

The reference was computed in float64 and is stored as float32. These tests compute everything
twice:

- in float64, to show that the formulas are the same, whatever the versions of JAX and XLA. The
  tolerance covers only the rounding of the reference and of the logits to float32;
- in float32, as in training, with the convolution for CPUs. The tolerance allows for sums of some
  hundred products in each of eight layers.
"""

import functools
import math
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import default
from mnist_flax.model import SimpleCNN, create_model
from mnist_flax.optimizer import create_optimizer, create_schedule
from tests.parity.reference import (
    ONE_FACTOR_CHANGED,
    ORIGINAL,
    SMALL_CHANNELS,
    VARIANTS,
    Tree,
    arrays,
    load_variables,
    section,
    to_flax,
)

STRONG = {"weight_decay": 0.2, "learning_rate_decay": 0.5, "eps": 0.01}
# The changes to the default optimiser, by run of the reference.
STEP_RUNS = {"adam": {}, "adam_strong": STRONG, "adamw_strong": STRONG | {"decoupled": True}}
EPS = float(np.finfo(np.float32).eps)
# The largest allowed error as a share of an array's largest number, by type.
TOLERANCES = {"float64": 16 * EPS, "float32": 512 * EPS}


@pytest.fixture(autouse=True, scope="module")
def _full_precision() -> Iterator[None]:
    """Makes accelerators multiply float32 in full precision."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(params=TOLERANCES)
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: str, dtype: str) -> None:
    """Every variant computes PyTorch's logits, in training mode and in evaluation mode."""
    model, variables = _small_model(variant, dtype), load_variables(variant, dtype)
    images, _ = _batch(0, 8, dtype)
    for mode in ("train", "eval"):
        # Without `jit`, each operation is compiled only once for all variants.
        logits, _ = model.apply(variables, images, train=mode == "train", mutable=["batch_stats"])
        expected = arrays()[f"logits/{mode}/{variant}"]
        _assert_close({mode: logits}, {mode: expected}, TOLERANCES[dtype])


@pytest.mark.parametrize("variant", ONE_FACTOR_CHANGED)
def test_gradients_and_statistics(variant: str, dtype: str) -> None:
    """Variants that differ from the original by one factor agree after a backward pass."""
    model, variables = _small_model(variant, dtype), load_variables(variant, dtype)
    _, gradients, batch_stats = _loss_gradients_and_statistics(
        model, variables, *_batch(0, 8, dtype)
    )
    batch_stats = _as_pytorchs(batch_stats, variables["batch_stats"], _counts(model, 8))
    expected_gradients = to_flax(section(f"gradients/{variant}"))["params"]
    expected_batch_stats = to_flax(section(f"statistics/{variant}"))["batch_stats"]
    # Batch norm directly after a convolution cancels its bias. The gradients of such a bias are
    # 0 up to the rounding of numbers as large as the other gradients.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradients))
    tolerance = TOLERANCES[dtype]
    _assert_close(gradients, expected_gradients, tolerance, atol=tolerance * largest)
    _assert_close(batch_stats, expected_batch_stats, tolerance)


@pytest.mark.parametrize("run", STEP_RUNS)
def test_five_steps_across_an_epoch(run: str, dtype: str) -> None:
    """Losses, parameters and statistics agree; the learning rate decays after three steps."""
    losses, variables = _train(STEP_RUNS[run], dtype)
    expected_losses = arrays()[f"steps/{run}/losses"]
    _assert_close({"loss": losses}, {"loss": expected_losses}, TOLERANCES[dtype])
    expected = to_flax(section(f"steps/{run}/final"))
    if run == "adam":
        variables, expected = map(_without_idle_biases, (variables, expected))
    _assert_close(variables, expected, TOLERANCES[dtype])


def test_initial_weights_are_distributed_as_pytorchs() -> None:
    """The quantiles of each layer's weights and biases agree."""
    init = jax.jit(functools.partial(_init, create_model(default.get_config().model, 10)))
    draws = [init(jax.random.key(seed))["params"] for seed in range(32)]
    expected = to_flax(section("init"))["params"]
    for name, quantiles in traverse_util.flatten_dict(expected, sep="/").items():
        layer, kind = name.split("/")
        values = np.concatenate([np.ravel(draw[layer][kind]) for draw in draws])
        # The Kolmogorov-Smirnov bound for a reference of 20,000 draws, which chance exceeds once in
        # 100,000 layers. It is at most 14 % of the range.
        tolerance = 2.5 * math.sqrt(1 / values.size + 1 / 20_000) * np.ptp(quantiles)
        actual = np.quantile(values, np.linspace(0, 1, quantiles.size))
        assert np.abs(actual - quantiles).max() <= tolerance, name


def test_parameter_counts() -> None:
    """The original has 235,546; variants with other norms or layers have PyTorch's number too."""
    counts = section("counts")
    assert counts["batch-strided-VALID"] == 235_546
    for variant, expected in counts.items():
        config = default.get_config().model
        config.norm, config.downsample, config.padding = variant.split("-")
        init = functools.partial(_init, create_model(config, 10))
        shapes = jax.eval_shape(init, jax.random.key(0))
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
        assert count == expected, variant


def _batch(start: int, stop: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs, `[batch, 27, 27, 1]`, and labels, int32 `[batch]`."""
    pixels = arrays()["images"][start:stop, ..., np.newaxis]
    images = (pixels / 255 - 0.1307) / 0.3081
    return images.astype(dtype), arrays()["labels"][start:stop]


def _small_model(variant: str, dtype: str) -> SimpleCNN:
    config = default.get_config().model
    config.update(SMALL_CHANNELS)
    config.norm, config.norm_position, config.downsample, config.padding = variant.split("-")
    return create_model(config, 10).clone(dtype=jnp.dtype(dtype))


def _counts(model: SimpleCNN, batch_size: int) -> dict[str, int]:
    """Returns how many numbers per channel each norm averages over, by the norm's name."""
    images = jax.ShapeDtypeStruct((batch_size, 27, 27, 1), model.dtype)
    options = {"train": False, "capture_intermediates": True, "mutable": True}
    init = functools.partial(model.init_with_output, **options)
    _, variables = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), images)
    return {
        name: math.prod(outputs["__call__"][0].shape[:-1])
        for name, outputs in variables["intermediates"].items()
        if name.startswith("norm")
    }


def _as_pytorchs(after: Tree, before: Tree, counts: dict[str, int]) -> Tree:
    """Converts the running variances after a step to PyTorch's.

    PyTorch multiplies the batch's variance over n numbers by n / (n - 1).
    """
    return {
        name: statistics
        | {
            "var": 0.9 * before[name]["var"]
            + (statistics["var"] - 0.9 * before[name]["var"]) * counts[name] / (counts[name] - 1)
        }
        for name, statistics in after.items()
    }


def _init(model: SimpleCNN, key: jax.Array) -> Tree:
    return model.init(key, jnp.zeros((1, 28, 28, 1)), train=False)


@functools.partial(jax.jit, static_argnums=0)
def _loss_gradients_and_statistics(
    model: SimpleCNN, variables: Tree, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Tree, Tree]:
    """Returns the mean cross-entropy in training mode, its gradients and the new statistics."""

    def loss_and_statistics(params: Tree) -> tuple[jax.Array, Tree]:
        logits, updates = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updates.get("batch_stats", {})

    (loss, batch_stats), gradients = jax.value_and_grad(loss_and_statistics, has_aux=True)(
        variables["params"]
    )
    return loss, gradients, batch_stats


def _train(changes: dict[str, float | bool], dtype: str) -> tuple[np.ndarray, Tree]:
    """Runs five steps of the original variant; batches of 8, 8 and 4 images make an epoch.

    Returns:
      The loss before each step, and the variables after the last step.
    """
    config = default.get_config().optimizer
    config.update(changes)
    optimizer = create_optimizer(config, create_schedule(config, steps_per_epoch=3, num_epochs=20))
    update = jax.jit(optimizer.update)
    original = "-".join(ORIGINAL)
    model, variables = _small_model(original, dtype), load_variables(original, dtype)
    state = optimizer.init(variables["params"])
    losses = []
    for start, stop in ((0, 8), (8, 16), (16, 20), (0, 8), (8, 16)):
        loss, gradients, batch_stats = _loss_gradients_and_statistics(
            model, variables, *_batch(start, stop, dtype)
        )
        counts = _counts(model, stop - start)
        batch_stats = _as_pytorchs(batch_stats, variables["batch_stats"], counts)
        updates, state = update(gradients, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        variables = {"params": params, "batch_stats": batch_stats}
        losses.append(loss)
    return np.array(losses), variables


def _without_idle_biases(variables: Tree) -> Tree:
    """Leaves out the convolutions' biases, which batch norm cancels, and the running means.

    The biases' gradients are rounding errors, which Adam turns into whole steps unless weight decay
    or epsilon is larger than in the original. Apart from the biases, this changes only the means.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    idle = re.compile(r"params/(conv|downsample).*/bias|batch_stats/.*/mean")
    return {name: array for name, array in flat.items() if not idle.fullmatch(name)}


def _assert_close(actual: Tree, expected: Tree, rtol: float, atol: float = 0.0) -> None:
    """Asserts for each array that no error exceeds atol + rtol * the array's largest number."""
    actual = traverse_util.flatten_dict(actual, sep="/")
    expected = traverse_util.flatten_dict(expected, sep="/")
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].shape == array.shape, name
        error = np.abs(actual[name] - array).max()
        assert error <= atol + rtol * np.abs(array).max(), name

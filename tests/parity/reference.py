"""PyTorch's results, which make_reference.py wrote to reference.npz; it describes each array."""

import functools
import itertools
import pathlib
from typing import Any

import jax
import numpy as np

ORIGINAL = ("batch", "before", "strided", "VALID")
VARIANTS = [
    "-".join(factors)
    for factors in itertools.product(
        ("batch", "layer", "group", "none"),
        ("before", "after"),
        ("strided", "max", "avg"),
        ("VALID", "SAME"),
    )
]
ONE_FACTOR_CHANGED = [
    variant
    for variant in VARIANTS
    if sum(a != b for a, b in zip(variant.split("-"), ORIGINAL, strict=True)) <= 1
]
SMALL_CHANNELS = {"channels": ((4, 4), (4, 6), (8,)), "num_groups": 2}

Tree = dict[str, Any]


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    """Returns all arrays by name."""
    path = pathlib.Path(__file__).parent / "reference.npz"
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def section(prefix: str) -> dict[str, np.ndarray]:
    """Returns the reference's arrays below `prefix`, by the rest of their names."""
    prefix += "/"
    return {
        name.removeprefix(prefix): array
        for name, array in arrays().items()
        if name.startswith(prefix)
    }


def to_flax(state: dict[str, np.ndarray]) -> Tree:
    """Converts PyTorch's arrays, named 'layer.name' with channels first, to Flax's variables."""
    variables = {"params": {}, "batch_stats": {}}
    for name, array in state.items():
        layer, kind = name.split(".")
        if kind.startswith("running_"):
            collection, leaf = "batch_stats", kind.removeprefix("running_")
        else:
            weight = "scale" if layer.startswith("norm") else "kernel"
            collection, leaf = "params", weight if kind == "weight" else kind
        if array.ndim == 4:  # a convolution: O, I, H, W
            array = array.transpose(2, 3, 1, 0)
        elif array.ndim == 3:  # a layer norm: C, H, W
            array = array.transpose(1, 2, 0)
        variables[collection].setdefault(layer, {})[leaf] = array
    return variables


def load_variables(variant: str, dtype: str) -> Tree:
    """Returns those of the reference's weights that `variant` has."""
    norm, _, downsample, padding = variant.split("-")
    state = section("weights/conv")
    if downsample != "strided":
        state = {name: array for name, array in state.items() if "downsample" not in name}
    if norm == "layer":
        state |= section(f"weights/layer-{padding}")
    elif norm != "none":
        state |= section("weights/channel")
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), to_flax(state))
    return variables if norm == "batch" else variables | {"batch_stats": {}}

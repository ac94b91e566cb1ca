"""Applies a network to a batch that is spread over CPU devices: each takes its own part.

XLA can partition the network by itself, and does so on GPUs and TPUs. On CPUs it would gather the
batch for the convolutions of `ops.conv`, and Gloo, which sums between processes, takes the arrays
of an all-reduce one after another. A step of `configs/quick.py` sums 43 arrays that way and 13 this
way: two for each batch norm, and one each for all gradients, the loss and the accuracy.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from mnist_flax.runtime.devices import BATCH_AXIS


def axis_name() -> str | None:
    """Returns the axis that the batch is split along inside `apply`; None if it is not split."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return BATCH_AXIS if BATCH_AXIS in manual else None


def apply(
    function: Callable[..., Any], variables: dict[str, Any], x: jax.Array, **options: Any
) -> Any:
    """Returns `function(variables, x, **options)`, the `apply` of a network.

    Args:
      function: each of several devices calls it with its part of the batch; it must sum over
        `axis_name()` whatever concerns the whole batch, except for gradients.
      variables: the network's variables.
      x: `[batch, ...]`.
      **options: with `mutable`, the result is rows of the batch and the updated variables, else
        only rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = dict(mesh.shape).get(BATCH_AXIS, 1)
    if parts == 1 or axis_name() or mesh.abstract_device.device_kind != "cpu":
        return function(variables, x, **options)
    # As one array, the parameters have a single gradient to sum over the devices.
    flat, unravel = ravel_pytree(variables["params"])
    others = {name: tree for name, tree in variables.items() if name != "params"}

    def on_each(flat: jax.Array, others: dict[str, Any], x: jax.Array) -> Any:
        return function({"params": unravel(flat), **others}, x, **options)

    rows, whole = PartitionSpec(BATCH_AXIS), PartitionSpec()
    return jax.shard_map(
        on_each,
        in_specs=(whole, whole, rows),
        out_specs=(rows, whole) if "mutable" in options else rows,
        check_vma=False,
    )(flat, others, x)

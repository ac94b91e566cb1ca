"""The devices of a run, on all its hosts: what lies where on them, and how they share a batch.

Training is data-parallel. Every device holds the whole state, its share of the images, and
computes on its share of each batch; sums over the batch are sums over the devices. So a run's
results do not depend on the number of devices, but for the rounding of these sums.

Replicas are runs that differ by their seed and are trained together. Their states have a leading
axis, `[replicas, ...]`, which is spread over as many devices as divide it; where that leaves
several devices to each, these share its batches.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXIS = "batch"  # along it, devices have different parts of a batch
_COPY_AXIS = "copy"  # along it, the same part
_REPLICA_AXIS = "replica"  # along it, replicas of their own
_ALL = (BATCH_AXIS, _COPY_AXIS)

REPLICATED = PartitionSpec()
SPREAD = PartitionSpec(_ALL)  # rows over all devices of a replica, in equal parts
OWN = PartitionSpec(_REPLICA_AXIS)  # one a replica
OWN_SPREAD = PartitionSpec(_REPLICA_AXIS, _ALL)  # rows of each replica
_WORD = 4  # bytes of a uint32


def create_mesh(batch_size: int, num_replicas: int | None = None) -> Mesh:
    """A mesh over all devices on which `batch_size` images are in equal parts.

    As many devices as divide the batch have a part of their own, and the others do the same work
    again: the last, smaller batch of an epoch takes what size it has.

    Args:
      batch_size: of a step.
      num_replicas: trained together; None: one run, without the replicas' axis.
    """
    devices = np.array(jax.devices())
    groups = math.gcd(num_replicas or 1, devices.size)
    parts = math.gcd(batch_size, devices.size // groups)
    return Mesh(devices.reshape(groups, parts, -1), (_REPLICA_AXIS, *_ALL))


def sharding(spec: PartitionSpec, num_replicas: int | None = None) -> NamedSharding:
    """Where the arrays of a run lie, or those of replicas."""
    return NamedSharding(create_mesh(0, num_replicas), _of_one(spec, num_replicas))


def on_devices(
    function: Callable[..., Any],
    in_specs: tuple[PartitionSpec, ...],
    out_specs: PartitionSpec,
    batch_size: int = 0,
    num_replicas: int | None = None,
) -> Callable[..., Any]:
    """`function` of one run, on each device, for one run or for replicas.

    Args:
      function: may use this module's functions for what is within `jax.shard_map`.
      in_specs: of each argument; `OWN` and `OWN_SPREAD` have the replicas' axis, if there are any.
      out_specs: of the result; with that axis.
      batch_size: of the images that it shares.
      num_replicas: as of `create_mesh`.
    """
    mesh = create_mesh(batch_size, num_replicas)
    if num_replicas is not None:
        has_axis = [_is_own(spec) for spec in in_specs]
        replicas_here = num_replicas // mesh.shape[_REPLICA_AXIS]
        function = (
            _vectorize(function, has_axis) if replicas_here > 1 else _on_one(function, has_axis)
        )
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(_of_one(spec, num_replicas) for spec in in_specs),
        out_specs=_of_one(out_specs, num_replicas),
        check_vma=False,  # gradients are summed by `total`, not by JAX
    )


def spread(array: np.ndarray, num_replicas: int | None = None) -> jax.Array:
    """Puts an array's rows on all devices, in equal parts; rows of 0 fill up the last.

    Each process puts there what its own devices hold, and no more.
    """
    rows = -(-len(array) // jax.device_count()) * jax.device_count()
    padding = [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1)
    padded = np.pad(array, padding) if rows > len(array) else array
    return jax.make_array_from_callback(
        padded.shape, sharding(SPREAD, num_replicas), padded.__getitem__
    )


def take(shard: jax.Array, indices: jax.Array) -> jax.Array:
    """Rows of a spread array, on every device; within `on_devices`.

    Args:
      shard: `[rows / devices, ...]`, what this device holds.
      indices: int `[n]`, of the whole array.

    Returns:
      `[n, ...]`
    """
    first = lax.axis_index(_ALL) * len(shard)
    rows = shard.at[indices - first].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    # One device has the row and the others 0, so that the sum is it. Bytes are summed four at a
    # time, for not every device sums bytes.
    if rows.dtype != jnp.uint8 or math.prod(rows.shape[1:]) % _WORD:
        return lax.psum(rows, _ALL)
    words = lax.bitcast_convert_type(rows.reshape(len(rows), -1, _WORD), jnp.uint32)
    return lax.bitcast_convert_type(lax.psum(words, _ALL), jnp.uint8).reshape(rows.shape)


def share(batch_size: int) -> tuple[jax.Array, int]:
    """Which rows of a batch are this device's: the first and how many; in `on_devices`."""
    size = batch_size // lax.axis_size(BATCH_AXIS)
    return lax.axis_index(BATCH_AXIS) * size, size


def total(parts: Any) -> Any:
    """The sum of the devices' shares of a batch, of each array; within `on_devices`."""
    return lax.psum(parts, BATCH_AXIS)


def _vectorize(function: Callable[..., Any], has_axis: Sequence[bool]) -> Callable[..., Any]:
    return jax.vmap(function, in_axes=[0 if has else None for has in has_axis])


def _on_one(function: Callable[..., Any], has_axis: Sequence[bool]) -> Callable[..., Any]:
    """As `_vectorize`, over an axis of one: a CPU's convolutions are slower where there is one."""

    def on_one(*args: Any) -> Any:
        args = [
            jax.tree.map(lambda leaf: leaf[0], arg) if has else arg
            for arg, has in zip(args, has_axis, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*args))

    return on_one


def _is_own(spec: PartitionSpec) -> bool:
    return len(spec) > 0 and spec[0] == _REPLICA_AXIS


def _of_one(spec: PartitionSpec, num_replicas: int | None) -> PartitionSpec:
    """The same, without the replicas' axis if there is none."""
    return PartitionSpec(*spec[1:]) if num_replicas is None and _is_own(spec) else spec

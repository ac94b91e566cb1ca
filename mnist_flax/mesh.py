"""The devices of a run, on all its hosts: what lies where on them, and how they share a batch.

Training is data-parallel. Every device holds the whole state, its share of the images, and
computes on its share of each batch; sums over the batch are sums over the devices. So a run's
results do not depend on the number of devices, but for the rounding of these sums.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXIS = "batch"  # along it, devices have different parts of a batch
_COPY_AXIS = "copy"  # along it, the same part
_ALL = (BATCH_AXIS, _COPY_AXIS)

REPLICATED = PartitionSpec()
SPREAD = PartitionSpec(_ALL)  # rows over all devices, in equal parts
_WORD = 4  # bytes of a uint32


def create_mesh(batch_size: int) -> Mesh:
    """A mesh over all devices on which `batch_size` images are in equal parts.

    As many devices as divide the batch have a part of their own, and the others do the same work
    again: the last, smaller batch of an epoch takes what size it has.
    """
    devices = np.array(jax.devices())
    parts = math.gcd(batch_size, devices.size)
    return Mesh(devices.reshape(parts, -1), _ALL)


def replicated() -> NamedSharding:
    """The sharding of what every device holds."""
    return NamedSharding(create_mesh(0), REPLICATED)


def spread(array: np.ndarray) -> jax.Array:
    """Puts an array's rows on all devices, in equal parts; rows of 0 fill up the last.

    Each process puts there what its own devices hold, and no more.
    """
    rows = -(-len(array) // jax.device_count()) * jax.device_count()
    padding = [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1)
    padded = np.pad(array, padding) if rows > len(array) else array
    return jax.make_array_from_callback(
        padded.shape, NamedSharding(create_mesh(0), SPREAD), padded.__getitem__
    )


def take(shard: jax.Array, indices: jax.Array) -> jax.Array:
    """Rows of a spread array, on every device; within `jax.shard_map`.

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
    """Which rows of a batch are this device's: the first and how many; in `jax.shard_map`."""
    size = batch_size // lax.axis_size(BATCH_AXIS)
    return lax.axis_index(BATCH_AXIS) * size, size


def total(parts: Any) -> Any:
    """The sum of the devices' shares of a batch, of each array; within `jax.shard_map`."""
    return lax.psum(parts, BATCH_AXIS)

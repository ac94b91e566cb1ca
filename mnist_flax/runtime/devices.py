"""The devices of a run, on all its hosts, and the arrays that lie on them.

Training is data-parallel: the state and the images lie on every device, and each device computes
its part of every batch. Programs work on JAX's global arrays, so the results do not depend on
the number of devices, except for the rounding of sums.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_flax.errors import refused
from mnist_flax.runtime.compilation import compiler_options

BATCH_AXIS = "batch"  # along this axis, devices have different parts of a batch
_COPY_AXIS = "copy"  # along this one, they have the same part

# Images that a device predicts at a time. A CPU's caches hold what it computes for 100, which made
# evaluation a third faster than with 2,000.
_CPU_PREDICTED, _PREDICTED = 100, 2_000


def create_mesh(batch_size: int) -> Mesh:
    """Returns a mesh of all devices that spreads `batch_size` images over them in equal parts.

    The number of parts is the greatest common divisor of the images and the devices; the other
    devices repeat a part. So the last, smaller batch of an epoch may have any size.
    """
    parts = math.gcd(batch_size, jax.device_count())
    return Mesh(np.array(jax.devices()).reshape(parts, -1), (BATCH_AXIS, _COPY_AXIS))


def check_batch_size(batch_size: int, num_images: int) -> None:
    """Raises a `UserError` unless the images fill a batch, and the devices divide it evenly."""
    count = jax.device_count()
    if batch_size > num_images:
        allowed = f"at most the {num_images:,} training images"
        raise refused("config.batch_size", batch_size, allowed)
    if batch_size % count:
        raise refused("config.batch_size", batch_size, f"a multiple of the {count} devices")


def replicated() -> NamedSharding:
    """Returns the sharding of an array that lies on every device."""
    return NamedSharding(create_mesh(1), PartitionSpec())


class Placed(NamedTuple):
    """A data set that lies on every device."""

    train: tuple[jax.Array, ...]  # images and labels
    eval_batches: dict[str, list[jax.Array]]  # images by split, in batches of equal size


def place(train: Iterable[np.ndarray], eval_splits: Mapping[str, Sequence[np.ndarray]]) -> Placed:
    """Puts a data set on every device.

    Args:
      train: images and labels.
      eval_splits: images and labels by split; only the images are placed, and blank ones fill up
        the last batch.
    """
    size = predicted_at_a_time() * jax.device_count()
    batches = {name: _batches(split[0], size) for name, split in eval_splits.items()}
    return Placed(tuple(map(put, train)), batches)


def predicted_at_a_time() -> int:
    """Returns how many images a device predicts at a time."""
    return _CPU_PREDICTED if jax.default_backend() == "cpu" else _PREDICTED


def put(array: np.ndarray) -> jax.Array:
    """Puts an array, which every process must have, on every device."""
    return jax.make_array_from_callback(array.shape, replicated(), array.__getitem__)


def _batches(array: np.ndarray, size: int) -> list[jax.Array]:
    padded = np.pad(array, [(0, -len(array) % size), *[(0, 0)] * (array.ndim - 1)])
    return [put(batch) for batch in np.split(padded, len(padded) // size)]


def lower(
    function: Callable, *args: Any, batch_size: int = 1, **options: Any
) -> jax.stages.Lowered:
    """Lowers a function of global arrays for all devices.

    Args:
      function: may call `spread` on a batch.
      *args: example arguments; all of them, and the results, lie on every device.
      batch_size: the size of the batch that the devices share.
      **options: options of `jax.jit`.
    """
    mesh = create_mesh(batch_size)
    everywhere = NamedSharding(mesh, PartitionSpec())
    options |= {"in_shardings": everywhere, "out_shardings": everywhere}
    with jax.set_mesh(mesh):
        lowerable = jax.jit(function, compiler_options=compiler_options(), **options)
        return lowerable.lower(*map(shapes, args))


def shapes(tree: Any) -> Any:
    """Returns only the shapes and dtypes of arrays, without their mesh."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf))

    return jax.tree.map(shape, tree)


def spread(batch: jax.Array) -> jax.Array:
    """Spreads rows over the batch axis of the current mesh, inside `jax.jit`."""
    if BATCH_AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(BATCH_AXIS))


def describe() -> str:
    """Returns a line that names the devices."""
    devices = jax.devices()
    count = f"{len(devices)} " if len(devices) > 1 else ""
    hosts = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"Device{'s' if count else ''}: {count}{devices[0].device_kind}{hosts}"

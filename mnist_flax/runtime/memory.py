"""The memory of a device, and the error when there is not enough."""

import pathlib

import jax
import psutil

from mnist_flax.errors import UserError

_CONTAINER = pathlib.Path("/sys/fs/cgroup")  # the files of a container, seen from inside, on Linux


def free() -> int:
    """Returns the bytes of a device's memory that are free for this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    # CPU devices, including virtual ones, share the machine's memory.
    shared = psutil.virtual_memory().available // jax.local_device_count()
    if "bytes_limit" not in stats:
        total, used = _machine()
        return min(shared, (total - used) // jax.local_device_count())
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def check(needed: int) -> None:
    """Raises MemoryError if a device has too few bytes in all: Linux would kill the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    most = stats.get("bytes_limit", _machine()[0])
    if needed > most:
        raise MemoryError(f"{needed / 1e9:,.1f} GB are needed, but a device has {most / 1e9:,.1f}")


def is_exhausted(error: BaseException | None) -> bool:
    """Whether an error says that there is not enough memory."""
    is_xla = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return is_xla or isinstance(error, MemoryError)


def exhausted(error: BaseException | None) -> UserError | None:
    """Returns the error to raise if `error` is due to a lack of memory; otherwise None."""
    if not is_exhausted(error):
        return None
    reason = (str(error).splitlines() or ["Out of memory"])[0].removeprefix("RESOURCE_EXHAUSTED: ")
    return UserError(
        f"the program does not fit in the memory of the device ({reason.rstrip('.')}); "
        "lower config.batch_size, or narrow config.model.channels"
    )


def _machine() -> tuple[int, int]:
    """Returns the machine's memory in bytes, and 0; in a container, its limit and its usage."""
    total = psutil.virtual_memory().total
    limit = _of_container("memory.max")
    if limit is None:
        return total, 0
    return min(total, limit), min(total, limit, _of_container("memory.current") or 0)


def _of_container(name: str) -> int | None:
    """Returns the number in a file of the container; None if it is missing or says 'max'."""
    try:
        return int((_CONTAINER / name).read_text())
    except (OSError, ValueError):
        return None

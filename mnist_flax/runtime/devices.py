"""What JAX and XLA run on, and what they are told before a program is compiled."""

import functools
import os

import jax
import psutil

# XLA may hand operations on a CPU to YNNPACK. Its matrix products and reductions are quick (a step
# of the default recipe took a tenth longer without the former), its convolutions took two to twelve
# times as long as XLA's own (the original's layers; jax 0.10.2, 2 cores of an AMD EPYC with AVX2).
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}


def use_compilation_cache() -> None:
    """Keeps compiled programs in `~/.cache/mnist_flax`, if no other place has been set."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "mnist_flax", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@functools.cache
def compiler_options() -> dict[str, str]:
    """Options for `jax.jit` or `compile` on the default backend, those that this XLA knows."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS)()
    except jax.errors.JaxRuntimeError:  # XLA's flags come and go between versions
        return {}
    return _CPU_OPTIONS


def describe_devices() -> str:
    """A line on what computes."""
    devices = jax.devices()
    count = f"{len(devices)} " if len(devices) > 1 else ""
    hosts = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"Device{'s' if count else ''}: {count}{devices[0].device_kind}{hosts}"


def memory() -> int:
    """Bytes of a device's memory that are free for this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    # CPUs, virtual ones too, share the machine's.
    shared = psutil.virtual_memory().available // jax.local_device_count()
    if "bytes_limit" not in stats:
        return shared
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)

"""How XLA compiles: for which devices, with which options, and where it keeps programs."""

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from mnist_flax.errors import UserError
from mnist_flax.runtime import process
from mnist_flax.runtime.background import lower_priority

# XLA may hand operations on a CPU to YNNPACK. Its matrix products and reductions are fast (a step
# of the default recipe took a tenth longer without the former), but its convolutions took 2 to 12
# times as long as XLA's own (the original's layers; jax 0.10.2, 2 cores of an AMD EPYC with AVX2).
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}

_CACHE_BYTES = 10**9
_OF_CPU = ("model name", "flags", "Features")  # the fields that compiled programs depend on


def set_up() -> None:
    """Finds the devices, and keeps compiled programs in `~/.cache/mnist_flax`.

    Each kind of machine has its own folder there, since machines may share a home, and the least
    recently used programs in all of them are removed. A cache that is set already is left alone.

    Raises:
      UserError: JAX cannot do what an environment variable asks for, or sees other processes that
        this one has not joined.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: CUDA is not installed
        reason = (str(error).splitlines() or ["it is not installed"])[0]
        asked = f"JAX_PLATFORMS={jax.config.jax_platforms or ''}"
        raise UserError(
            f"JAX cannot use the devices that {asked} asks for: {reason}; install JAX for them, or "
            "unset it"
        ) from None
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise UserError(f"JAX sees {jax.process_count()} processes; start each with --distributed")
    if jax.config.jax_disable_jit:
        raise UserError("JAX_DISABLE_JIT is set, but everything here is compiled; unset it")
    if jax.config.jax_compilation_cache_dir is None:
        _use_cache(pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser())


def _use_cache(caches: pathlib.Path) -> None:
    cache = caches / "mnist_flax" / "jax"
    mine = cache / _machine()
    with contextlib.suppress(OSError):  # it is only a cache
        mine.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(mine))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        _prune(cache, _CACHE_BYTES)  # last: it fails if another process prunes at the same time


def _machine() -> str:
    """Returns a name for all machines whose CPUs have the same instructions for programs to use."""
    about = [platform.machine(), platform.processor()]
    about += sorted({value for name, value in process.cpu_fields() if name in _OF_CPU})
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]


def _prune(cache: pathlib.Path, most: int) -> None:
    """Removes the least recently used files until the others take at most `most` bytes.

    JAX's own limit needs file locks, which not every home has, and fails for good once a process
    is killed while writing.
    """
    entries = [(path.stat(), path) for path in cache.rglob("*") if path.is_file()]
    for stat, path in sorted(entries, key=lambda entry: entry[0].st_atime, reverse=True):
        most -= stat.st_size
        if most < 0:
            path.unlink(missing_ok=True)


@functools.cache
def compiler_options() -> dict[str, str]:
    """Returns the options for `jax.jit` on the default backend, if this XLA knows them."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS)()
    except jax.errors.JaxRuntimeError:  # XLA's flags come and go between versions
        return {}
    return _CPU_OPTIONS


def start(jobs: Mapping[Any, Callable[[], jax.stages.Lowered]]) -> dict[Any, Future]:
    """Starts lowering and compiling programs one after another, on a thread.

    On a CPU, only the first has the usual priority: the others compile while training runs, which
    needs the same cores.

    Returns:
      The futures of the compiled programs, by name.
    """

    def compile_(lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Compiled:
        return lower().compile()

    compiler = ThreadPoolExecutor(1)
    programs = {}
    for name, lower in jobs.items():
        programs[name] = compiler.submit(compile_, lower)
        if jax.default_backend() == "cpu":
            compiler.submit(lower_priority)
    compiler.shutdown(wait=False)  # the thread ends after the last one
    return programs

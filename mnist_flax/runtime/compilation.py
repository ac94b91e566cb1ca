"""How XLA compiles: its options, its cache, and programs compiled in the background."""

import atexit
import functools
import hashlib
import os
import pathlib
import platform
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax

from mnist_flax.errors import UserError
from mnist_flax.runtime import memory, process
from mnist_flax.runtime.background import Background, lower_priority

# XLA may hand operations on a CPU to YNNPACK. Its matrix products and reductions are fast (a step
# of the default recipe took a tenth longer without the former), its convolutions took two to twelve
# times as long as XLA's own (the original's layers; jax 0.10.2, 2 cores of an AMD EPYC with AVX2).
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}

_CACHE_BYTES = 10**9
_OF_CPU = ("model name", "flags", "Features")  # what its programs depend on


def set_up() -> None:
    """Finds the devices, and keeps compiled programs in `~/.cache/mnist_flax`.

    Each kind of machine has a folder of its own there, since a home may be shared, and the least
    recently used programs of all are removed. If another cache has been set, it is left alone.

    Raises:
      UserError: JAX cannot do what the environment asks for.
    """
    find_devices()
    if jax.config.jax_disable_jit:
        raise UserError("JAX_DISABLE_JIT is set, but everything here is compiled; unset it")
    if jax.config.jax_compilation_cache_dir is None:
        _use_cache(pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser())


def find_devices() -> None:
    """Makes JAX find its devices.

    Raises:
      UserError: it cannot use those that the environment asks for.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a CUDA that is not installed
        reason = (str(error).splitlines() or ["it is not installed"])[0]
        asked = f"JAX_PLATFORMS={jax.config.jax_platforms or ''}"
        raise UserError(
            f"JAX cannot use the devices that {asked} asks for: {reason}; install JAX for them, or "
            "unset it"
        ) from None


def _use_cache(caches: pathlib.Path) -> None:
    cache = caches / "mnist_flax" / "jax"
    mine = cache / _machine()
    try:
        mine.mkdir(parents=True, exist_ok=True)
        _prune(cache, _CACHE_BYTES)
    except OSError:  # it is only a cache
        return
    jax.config.update("jax_compilation_cache_dir", str(mine))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _machine() -> str:
    """Returns a name for machines whose CPUs have the same instructions, which programs use."""
    about = [platform.machine(), platform.processor()]
    about += sorted({value for name, value in process.cpu_fields() if name in _OF_CPU})
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]


def _prune(cache: pathlib.Path, most: int) -> None:
    """Removes the least recently used files until the others have at most so many bytes.

    JAX's own limit needs locks, which not every home has, and fails for good after a process was
    killed while it wrote.
    """
    entries = [(path.stat(), path) for path in cache.rglob("*") if path.is_file()]
    for stat, path in sorted(entries, key=lambda entry: entry[0].st_atime, reverse=True):
        most -= stat.st_size
        if most < 0:
            path.unlink(missing_ok=True)


@functools.cache
def compiler_options() -> dict[str, str]:
    """Returns options for `jax.jit` on the default backend, those that this XLA knows."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS)()
    except jax.errors.JaxRuntimeError:  # XLA's flags come and go between versions
        return {}
    return _CPU_OPTIONS


class Compiler:
    """Compiles programs one after another in the background.

    Attributes:
      seconds: how long anybody has waited for a program so far.
    """

    def __init__(self):
        self.seconds = 0.0
        self._background = Background("compiler")
        # What is being compiled when Python exits is waited for; what is queued is dropped.
        atexit.register(self._background.close, drop=True)

    def finish(self) -> None:
        """Ends the thread after the programs that were submitted; no others may follow."""
        self._background.finish()

    def submit(self, lower: Callable[..., jax.stages.Lowered], *args: Any) -> "Program":
        """Queues `lower(*args).compile()`, which raises MemoryError if no device can hold it.

        On a CPU, only the first program has the usual priority: the others are compiled beside the
        training, which needs the same cores.
        """
        compiled = self._background.submit(_compile, lower, *args)
        if jax.default_backend() == "cpu":
            self._background.submit(lower_priority)
        return Program(compiled, self)


class Program:
    """A program that is being compiled; calling it waits until it is.

    Args:
      compiled: the program to come.
      compiler: counts the seconds that are waited.
    """

    def __init__(self, compiled: Future, compiler: Compiler):
        self._compiled = compiled
        self._compiler = compiler

    def __call__(self, *args: Any) -> Any:
        """Runs the program."""
        if not self._compiled.done():
            jax.block_until_ready(args)  # time spent computing these does not count as compiling
        return self.wait()(*args)

    def wait(self) -> jax.stages.Compiled:
        """Returns the compiled program."""
        started = time.perf_counter()
        self._compiled.exception()
        self._compiler.seconds += time.perf_counter() - started
        return self._compiled.result()

    def memory(self) -> int:
        """Returns the bytes of a device's memory that it needs, data included."""
        return _memory(self.wait())


def _compile(lower: Callable[..., jax.stages.Lowered], *args: Any) -> jax.stages.Compiled:
    compiled = lower(*args).compile()
    memory.check(_memory(compiled))
    return compiled


def _memory(compiled: jax.stages.Compiled) -> int:
    needed = compiled.memory_analysis()
    if needed is None:  # not every backend tells
        return 0
    both = needed.argument_size_in_bytes + needed.output_size_in_bytes
    return both + needed.temp_size_in_bytes - needed.alias_size_in_bytes

"""How XLA compiles: its options, its cache, and programs compiled in the background."""

import atexit
import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax

from mnist_flax.runtime.background import Background, lower_priority

# XLA may hand operations on a CPU to YNNPACK. Its matrix products and reductions are fast (a step
# of the default recipe took a tenth longer without the former), its convolutions took two to twelve
# times as long as XLA's own (the original's layers; jax 0.10.2, 2 cores of an AMD EPYC with AVX2).
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}


def use_cache() -> None:
    """Keeps compiled programs in `~/.cache/mnist_flax`, unless another place has been set."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "mnist_flax", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


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
        """Queues `lower(*args).compile()`.

        On a CPU, only the first program has the usual priority: the others are compiled beside the
        training, which needs the same cores.
        """
        compiled = self._background.submit(lambda: lower(*args).compile())
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
        needed = self.wait().memory_analysis()
        both = needed.argument_size_in_bytes + needed.output_size_in_bytes
        return both + needed.temp_size_in_bytes - needed.alias_size_in_bytes

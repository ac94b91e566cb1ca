"""Compiling in the background, and how a process ends meanwhile."""

import os
import sys
import threading
import types

import jax
import jax.numpy as jnp
import pytest

from mnist_flax.runtime.compilation import Compiler
from tests.runs import python


def lower_double():
    return jax.jit(lambda x: 2 * x).lower(jnp.float32(0))


def test_programs_are_compiled_in_order():
    compiler, order = Compiler(), []
    programs = [compiler.submit(lambda n=n: order.append(n) or lower_double()) for n in range(3)]
    compiler.finish()
    assert all(program(jnp.float32(3)) == 6 for program in programs)
    assert order == [0, 1, 2]
    assert all(program.memory() > 0 for program in programs)


def test_it_counts_the_time_that_anybody_waited():
    compiler, may_end = Compiler(), threading.Event()

    def lower_slowly():
        may_end.wait(60)
        return lower_double()

    program = compiler.submit(lower_slowly)
    threading.Timer(0.2, may_end.set).start()
    assert program(jnp.float32(3)) == 6
    waited = compiler.seconds
    assert waited > 0.1
    program.wait()
    assert compiler.seconds == pytest.approx(waited, abs=0.01)


def test_an_error_reaches_who_waits():
    compiler = Compiler()
    program = compiler.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program.wait()
    assert compiler.submit(lower_double)(jnp.float32(1)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_on_a_cpu_only_the_first_program_has_the_usual_priority():
    if jax.default_backend() != "cpu":
        pytest.skip("on an accelerator, all have it")

    def nice():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def lower():
        """Returns a lowered program that records the priority at which it is compiled."""
        lowered = lower_double()
        return types.SimpleNamespace(compile=lambda: nices.append(nice()) or lowered.compile())

    compiler, nices = Compiler(), []
    for program in [compiler.submit(lower) for _ in range(3)]:
        program.wait()
    assert nices == [nice(), 19, 19]


@pytest.mark.parametrize("reason", ["a failed compilation", "Ctrl-C"])
def test_a_process_ends_without_what_is_queued(reason):
    """It waits only for the program being compiled, because XLA cannot be interrupted."""
    script = f"""
import os, signal, sys, threading, time
from mnist_flax.runtime import signals
from mnist_flax.runtime.compilation import Compiler

compiler, begun = Compiler(), threading.Event()

def compile_slowly():
    begun.set()
    time.sleep(1)
    print("compiled", flush=True)

failed = compiler.submit(lambda: 1 / 0)
compiler.submit(compile_slowly)
for _ in range(3):
    compiler.submit(time.sleep, 600)
begun.wait()
try:
    with signals.handled():
        if {reason!r} == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(600)
        failed.wait()
except (ZeroDivisionError, signals.Interrupted):
    sys.exit(3)
"""
    done = python("-c", script, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (3, "compiled\n", "")

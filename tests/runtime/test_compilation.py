import concurrent.futures
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from mnist_flax.runtime import compilation, process
from tests.runs import ROOT

PROGRAM = """
import jax
from mnist_flax.runtime import compilation, process
compilation.set_up()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(1.0)
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("own", [False, True], ids=["default", "set by the user"])
def test_programs_are_kept_in_a_folder_of_the_user(tmp_path, own):
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    expected = tmp_path / "mnist_flax" / "jax"
    if own:
        expected = tmp_path / "own"
        env["JAX_COMPILATION_CACHE_DIR"] = str(expected)
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    used = pathlib.Path(done.stdout.strip())
    assert used == expected if own else used.parent == expected
    assert any(used.iterdir())
    assert own != (tmp_path / "mnist_flax").exists()


def test_machines_that_share_a_home_do_not_share_programs(tmp_path, monkeypatch):
    """XLA compiles for the instructions of this CPU, and another CPU may lack some of them."""
    info, names = tmp_path / "cpuinfo", set()
    monkeypatch.setattr(process, "_CPU_INFO", info)
    for flags in ("sse avx", "sse avx avx512f", "sse avx"):
        info.write_text(f"model name\t: A\ncpu MHz\t: {len(names)}\nflags\t: {flags}\n")
        names.add(compilation._machine())
    assert len(names) == 2


def test_the_least_recently_used_programs_go(tmp_path):
    for age, name in enumerate(["b/newest", "a/new", "a/old", "oldest"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1_000_000 - age, 0))
    compilation._prune(tmp_path, 250)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"newest", "new"}


def test_two_processes_that_prune_at_once_both_use_the_cache(tmp_path, monkeypatch):
    stat, updated = pathlib.Path.stat, {}
    program = tmp_path / "mnist_flax" / "jax" / "program"
    program.parent.mkdir(parents=True)
    program.write_bytes(b"")

    def stat_once(path, **options):
        """The other process removes the file as soon as this one has seen it."""
        found = stat(path, **options)
        if path == program:
            path.unlink()
        return found

    monkeypatch.setattr(pathlib.Path, "stat", stat_once)
    config = types.SimpleNamespace(update=updated.__setitem__)
    monkeypatch.setattr(compilation, "jax", types.SimpleNamespace(config=config))
    compilation._use_cache(tmp_path)
    assert not program.exists()
    assert pathlib.Path(updated["jax_compilation_cache_dir"]).parent == program.parent


def test_a_cpu_convolves_with_xlas_own_code():
    if jax.default_backend() != "cpu":
        pytest.skip("no CPU")

    def program(options):
        def convolve(images, kernel):
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                images, kernel, (1, 1), "VALID", dimension_numbers=numbers
            )

        arguments = jnp.ones((16, 24, 24, 36)), jnp.ones((5, 5, 36, 36))
        return jax.jit(convolve, compiler_options=options).lower(*arguments).compile().as_text()

    if "ynn" not in program(None):
        pytest.skip("this XLA does so by itself")
    assert "ynn" not in program(compilation.compiler_options())


def test_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    compilation.compiler_options.cache_clear()
    try:
        assert compilation.compiler_options() == {}
    finally:
        compilation.compiler_options.cache_clear()


def test_only_waiting_for_a_program_counts_as_compiling(monkeypatch):
    """By a fake clock, steps in progress take 100 seconds, and the compiler another 7."""
    clock = [0.0]

    def finish_steps(under_way):
        assert under_way == ("steps",)
        clock[0] += 100

    class Late(concurrent.futures.Future):
        def exception(self, timeout=None):
            if not self.done():
                clock[0] += 7
                self.set_result(lambda steps: f"next {steps}")

    monkeypatch.setattr(compilation, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(jax, "block_until_ready", finish_steps)
    compiler = compilation.Compiler()
    program = compilation.Program(Late(), compiler)
    assert program("steps") == "next steps"
    assert (compiler.seconds, clock[0]) == (7, 107)
    # The program is compiled now, so neither it nor the steps are waited for.
    assert program("steps") == "next steps"
    assert (compiler.seconds, clock[0]) == (7, 107)


def test_memory_counts_what_is_donated_once():
    """Memory is needed for arguments, results and temporaries; a donated argument is reused."""
    x, compiler = jnp.ones(2**20), compilation.Compiler()

    def needed(**options):
        return compiler.submit(jax.jit(lambda x: x + 1, **options).lower, x).memory()

    assert needed() >= 2 * x.nbytes
    assert x.nbytes <= needed(donate_argnums=0) < 2 * x.nbytes

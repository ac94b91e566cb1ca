import os
import pathlib
import sys
import threading
import types

import jax
import jax.numpy as jnp
import pytest

from mnist_flax.errors import UserError
from mnist_flax.runtime import compilation, process
from tests.runs import run


@pytest.fixture
def cache_of(monkeypatch, tmp_path):
    """Returns a function that sets up JAX for a CPU with some flags; it returns the cache."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def cache_of(flags="sse"):
        fields = [("model name", "A"), ("cpu MHz", str(os.getpid())), ("flags", flags)]
        monkeypatch.setattr(process, "cpu_fields", lambda: fields)
        jax.config.update("jax_compilation_cache_dir", None)
        compilation.set_up()
        return pathlib.Path(jax.config.jax_compilation_cache_dir)

    yield cache_of
    jax.config.update("jax_compilation_cache_dir", before)


def test_machines_that_share_a_home_do_not_share_programs(cache_of, tmp_path):
    """XLA compiles for the instructions of this CPU, and another CPU may lack some of them."""
    first, other, again = map(cache_of, ("sse", "sse avx512f", "sse"))
    assert first == again != other
    assert first.is_dir() and first.parent == tmp_path / "mnist_flax" / "jax"


def test_cache_of_the_user_is_left_alone():
    before = jax.config.jax_compilation_cache_dir
    compilation.set_up()
    assert jax.config.jax_compilation_cache_dir == before != ""


def make_programs(folder):
    """Makes four programs that take 1.6 GB together, the newest first; they have no content."""
    for age, name in enumerate(["b/newest", "a/new", "a/old", "oldest"]):
        path = folder / "mnist_flax" / "jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, 4 * 10**8)
        os.utime(path, (1_000_000 - age, 0))


def test_least_recently_used_programs_are_removed(cache_of, tmp_path):
    make_programs(tmp_path)
    cache_of()
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"newest", "new"}


def test_two_processes_that_prune_at_once_both_use_the_cache(cache_of, tmp_path, monkeypatch):
    make_programs(tmp_path)
    stat = pathlib.Path.stat

    def stat_once(path, **options):
        """The other process removes the file as soon as this one has seen it."""
        found = stat(path, **options)
        if path.name == "old":
            path.unlink()
        return found

    monkeypatch.setattr(pathlib.Path, "stat", stat_once)
    assert cache_of().parent == tmp_path / "mnist_flax" / "jax"


@pytest.mark.parametrize(
    "platforms",
    [
        "nonsense",
        "cpu,nonsense",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="it is there")
        ),
    ],
)
def test_devices_that_are_not_there_are_one_line(tmp_path, platforms):
    asks = f"import jax; jax.config.update('jax_platforms', {platforms!r})"
    done = run(f"--workdir={tmp_path}/run", before=asks)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"JAX_PLATFORMS={platforms} " in done.stderr
    assert not (tmp_path / "run").exists()


def test_disabled_jit_and_strange_processes_are_one_line(monkeypatch):
    jax.config.update("jax_disable_jit", True)
    try:
        with pytest.raises(UserError, match="JAX_DISABLE_JIT"):
            compilation.set_up()
    finally:
        jax.config.update("jax_disable_jit", False)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="--distributed"):
        compilation.set_up()


def test_cpu_convolves_with_xlas_own_code():
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
    assert compilation.compiler_options.__wrapped__() == {}


def test_programs_are_compiled_in_order_and_the_later_ones_give_way():
    """On a CPU, only the first has the usual priority; an error reaches who waits for it."""

    def nice():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def job(name):
        """Returns a lowered program that records the priority at which it is compiled."""
        if name == "bad":
            raise ZeroDivisionError
        lowered = jax.jit(lambda x: 2 * x).lower(jnp.float32(0))
        return types.SimpleNamespace(compile=lambda: nices.append(nice()) or lowered.compile())

    nices, names = [], ("first", "bad", "second", "third")
    programs = compilation.start({name: lambda name=name: job(name) for name in names})
    assert programs["third"].result(60)(jnp.float32(3)) == 6
    assert isinstance(programs["bad"].exception(), ZeroDivisionError)
    if sys.platform == "linux" and jax.default_backend() == "cpu":
        assert nices == [nice(), 19, 19]

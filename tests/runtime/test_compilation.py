import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mnist_flax.runtime import devices
from tests.conftest import ROOT

PROGRAM = """
import jax
from mnist_flax.runtime import devices
devices.use_compilation_cache()
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
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(expected)
    assert any(expected.iterdir())
    assert own != (tmp_path / "mnist_flax").exists()


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
    assert "ynn" not in program(devices.compiler_options())


def test_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(devices, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    devices.compiler_options.cache_clear()
    try:
        assert devices.compiler_options() == {}
    finally:
        devices.compiler_options.cache_clear()

"""Shared by the tests: small configurations, MNIST's folder, and the real command."""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

# XLA's newer code generation for CPUs takes twice as long to compile; where it can be switched off,
# the tests, which compile far more than they compute, do so. A jaxlib that does not know the flag
# ends its process: ask another one first. The real command, in its own process, runs without this
# and all that follows.
_QUICK = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"}
_ASK = [sys.executable, "-c", "import jax; jax.devices()"]
if not subprocess.run(_ASK, env=os.environ | _QUICK, capture_output=True).returncode:
    os.environ.update(_QUICK)

import jax  # noqa: E402
import pytest  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from configs import default  # noqa: E402
from tests.runs import ROOT, environment  # noqa: E402

# The four IDX files of MNIST; elsewhere than beside the project, set MNIST_DIR.
MNIST_DIR = pathlib.Path(os.environ.get("MNIST_DIR", ROOT.parent / "shared" / "mnist"))

# Compile what tests share but once, and with little effort.
_CACHE = tempfile.TemporaryDirectory(prefix="mnist_flax-tests-")
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", _CACHE.name)


@pytest.fixture
def tiny_config() -> ConfigDict:
    config = default.get_config()
    config.dataset.source = "sample"
    config.wandb.mode = "disabled"
    config.batch_size = 64
    config.num_epochs = 1
    config.model.channels = ((4,), (8,))
    config.model.kernel_sizes = ((5,), (3,))
    config.model.num_groups = 2
    return config


@pytest.fixture(scope="session")
def mnist_dir() -> pathlib.Path:
    if not (MNIST_DIR / "train-images-idx3-ubyte.gz").exists():
        pytest.skip(f"MNIST's IDX files are not in {MNIST_DIR}; set MNIST_DIR to their folder")
    return MNIST_DIR


@pytest.fixture(scope="session")
def run_main() -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python main.py ARGUMENTS` with no network, no W&B login and `env` added."""

    def run(
        *arguments: str, cwd: pathlib.Path = ROOT, timeout: float = 300, **env: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "main.py"), *arguments],
            cwd=cwd,
            env=environment(**env),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run

"""What tests share: a compilation cache, small configurations, MNIST's folder, the command."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

_CACHE = "MNIST_FLAX_TESTS_CACHE"  # `runs.CACHE`, which cannot be imported yet
_XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
# With XLA's newer code generation for CPUs, compiling takes twice as long.
_QUICK = {"XLA_FLAGS": f"{_XLA_FLAGS} --xla_cpu_use_fusion_emitters=false"}
_ASK = [sys.executable, "-c", "import jax; jax.devices()"]

if _CACHE not in os.environ:  # xdist's workers inherit the cache and the flags
    _folder = tempfile.TemporaryDirectory(prefix="mnist_flax-tests-")
    os.environ[_CACHE] = _folder.name
    # A jaxlib that does not know the flag aborts, so try it in another process first.
    if not subprocess.run(_ASK, env=os.environ | _QUICK, capture_output=True).returncode:
        os.environ.update(_QUICK)

import jax  # noqa: E402
import pytest  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from mnist_flax import data  # noqa: E402
from tests.runs import QUICK, ROOT, TINY, load_few, run, tiny  # noqa: E402

# The folder of MNIST's four IDX files; set MNIST_DIR if it is not next to the project.
MNIST_DIR = pathlib.Path(os.environ.get("MNIST_DIR", ROOT.parent / "shared" / "mnist"))

# The tests in this process spend far more time compiling than computing. The real command runs in
# other processes, which share the cache and, if a test passes `QUICK`, these settings.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", os.environ[_CACHE])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

_CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
_CHROMIUM_ARGUMENTS += [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def tiny_config() -> ConfigDict:
    return tiny()


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> Callable[..., data.Dataset]:
    """Makes `data.load` return 640 training and 100 test images; returns the new `data.load`."""
    monkeypatch.setattr(data, "load", load_few)
    return load_few


@pytest.fixture(scope="session")
def mnist_dir() -> pathlib.Path:
    if not (MNIST_DIR / "train-images-idx3-ubyte.gz").exists():
        pytest.skip(f"MNIST's IDX files are not in {MNIST_DIR}; set MNIST_DIR to their folder")
    return MNIST_DIR


@pytest.fixture(scope="session")
def run_main() -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python main.py ARGUMENTS`, or another command; see `runs.run`."""
    return run


@pytest.fixture(scope="session")
def train_once() -> Callable[..., pathlib.Path]:
    """Returns the folder of a run of `TINY` with more arguments; xdist's workers share it.

    Tests that change it must use a copy.
    """

    def train_once(name: str, *arguments: str, **env: str) -> pathlib.Path:
        workdir = pathlib.Path(os.environ[_CACHE]) / name
        with open(workdir.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (workdir / "summary.json").exists():
                done = run(*TINY, *arguments, f"--workdir={workdir}", **env)
                assert done.returncode == 0, done.stderr
        return workdir

    return train_once


@pytest.fixture(scope="session")
def finished(train_once: Callable[..., pathlib.Path]) -> pathlib.Path:
    """The folder of a run that was never interrupted."""
    return train_once("finished")


@pytest.fixture(scope="session")
def averaged(train_once: Callable[..., pathlib.Path]) -> pathlib.Path:
    """The folder of a run with averaged weights and views, and with all its checkpoints.

    Its best epoch is chosen on the validation split.
    """
    return train_once(
        "averaged",
        "--config.dataset.validation_size=400",
        "--config.checkpoint.keep=9",
        "--config.evaluation.num_views=3",
        "--config.optimizer.ema_decay=0.9",
        **QUICK,
    )


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """Opens pages; fails at the end if one requested anything or reported an error."""
    with contextlib.ExitStack() as stack:
        complaints, requests = [], []

        def show(path, width=1400, scheme="light", **options):
            size = {"width": width, "height": 800}
            context = browser.new_context(viewport=size, color_scheme=scheme, **options)
            stack.callback(context.close)
            page = context.new_page()
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(path.as_uri())
            return page

        yield show
        assert complaints == []
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []

"""Real runs of the command: how tests start and compare them."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import msgpack
import numpy as np
from ml_collections import ConfigDict

from configs import default
from mnist_flax import data

ROOT = pathlib.Path(__file__).parents[1]
MAIN = str(ROOT / "main.py")
CACHE = "MNIST_FLAX_TESTS_CACHE"  # the variable that names the folder for compiled programs
# A run that takes seconds: its numbers mean nothing, but must be reproducible.
TINY = (
    f"--config={ROOT}/configs/quick.py",
    "--config.dataset.source=sample",
    "--config.wandb.mode=disabled",
    "--config.model.channels=((4,),(8,))",
    "--config.model.kernel_sizes=((5,),(3,))",
    "--config.batch_size=64",
    "--config.augment.enabled=False",
    "--config.optimizer.learning_rate=0.02",
    "--config.num_epochs=4",
)
# For runs that compile a lot: they compile as quickly as the tests' own process, for which
# conftest.py sets the flag.
_QUICK = "--xla_cpu_use_fusion_emitters=false"
QUICK = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": _QUICK if _QUICK in os.environ.get("XLA_FLAGS", "") else "",
}
# For two processes. There are few steps, because processes on one machine wait for each other in
# each. Adam divides a gradient by its size; a larger eps keeps it from magnifying rounding errors.
SHORT = (*TINY, "--config.batch_size=400", "--config.optimizer.eps=0.1", "--config.num_epochs=2")
TIMES = ("seconds", "images_per_second", "compile_seconds", "train_seconds", "finished")
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.fork_server"])


def tiny() -> ConfigDict:
    """Returns the configuration of a small network on the sample, for one epoch."""
    config = default.get_config()
    config.dataset.source = "sample"
    config.wandb.mode = "disabled"
    config.batch_size = 64
    config.num_epochs = 1
    config.model.channels = ((4,), (8,))
    config.model.kernel_sizes = ((5,), (3,))
    config.model.num_groups = 2
    return config


def load_few(config: ConfigDict, seed: int, load: Callable = data.load) -> data.Dataset:
    """Loads data as `data.load` does, but only 640 training and 100 test images."""
    dataset = load(config, seed)
    train, test = (
        data.Split(split.images[:count], split.labels[:count])
        for split, count in ((dataset.train, 640), (dataset.test, 100))
    )
    return dataset._replace(train=train, test=test)


def environment(**changes: str | None) -> dict[str, str]:
    """Returns an environment without network, W&B login or accelerator, with `changes` made.

    A change to None removes the variable.
    """
    # Port 9 (discard) refuses connections at once.
    closed = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    clean = {k: v for k, v in os.environ.items() if not k.upper().startswith(("WANDB_", "XLA_"))}
    fixed = {
        "NETRC": os.devnull,
        "no_proxy": "127.0.0.1,localhost",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": os.environ[CACHE],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # JAX does not write its cache atomically, so a process may read half of an entry.
        "PYTHONWARNINGS": "ignore:Error reading persistent compilation cache entry",
    }
    changed = {**clean, **fixed, **closed, **changes}
    return {name: value for name, value in changed.items() if value is not None}


def on_devices(count: int) -> dict[str, str]:
    """Returns the variables that make `count` devices of the CPU, and compile quickly."""
    flag = f"--xla_force_host_platform_device_count={count}"
    return {**QUICK, "XLA_FLAGS": f"{QUICK['XLA_FLAGS']} {flag}"}


def python(
    *arguments: str, cwd: pathlib.Path = ROOT, timeout: float = 300, **env: str | None
) -> subprocess.CompletedProcess:
    """Runs `python ARGUMENTS` in `environment(**env)`; returns its output as text."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def _fork(*request: Any) -> None:
    from tests import fork_server  # which this process has imported

    fork_server.run(*request)


class Run:
    """A running command, by default main.py, in a fork of a process that is warm.

    Args:
      log: the file for its output.
      *arguments: its arguments.
      command: a script or a module, as for `fork_server.run`.
      before: code that it runs first, for example to replace functions of the system.
      cwd: its working directory.
      errors: the file for standard error, if not `log`.
      **env: changes of `environment`.
    """

    def __init__(
        self,
        log: pathlib.Path,
        *arguments: str,
        command: str = MAIN,
        before: str = "",
        cwd: pathlib.Path = ROOT,
        errors: pathlib.Path | None = None,
        **env: str | None,
    ) -> None:
        self.log = log
        streams = [str(log), str(errors or log)]
        for path in streams:
            open(path, "w").close()
        # With this setting, a process does not restart itself; see `runtime.huge_pages`.
        variables = environment(**{"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0", **env})
        request = (command, arguments, before, str(cwd), variables, streams)
        self._process = _FORKS.Process(target=_fork, args=request, daemon=True)
        with contextlib.chdir(ROOT):
            self._process.start()
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 300) -> int:
        """Waits until the run has ended; returns its exit status."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, self.output
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def wait_until(self, reached: Callable[[], Any], seconds: float = 300) -> None:
        """Waits until `reached()` is true; fails if the run ends first or `seconds` have passed."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert self._process.is_alive(), f"{self._process.exitcode}:\n{self.output}"
            assert time.monotonic() < deadline, self.output
            time.sleep(0.002)

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Waits until the output contains `text`."""
        self.wait_until(lambda: text in self.output, seconds)


@contextlib.contextmanager
def going_on(log: pathlib.Path, *arguments: str, **options: Any) -> Iterator[Run]:
    """Starts a run, which is killed at the end of the block."""
    run = Run(log, *arguments, **options)
    try:
        yield run
    finally:
        run.kill()


def run(*arguments: str, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess:
    """Runs a command as `Run` does, without a network or a W&B login, and waits for its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = (pathlib.Path(folder, name) for name in ("out", "err"))
        with going_on(out, *arguments, errors=err, **options) as running:
            status = running.wait(timeout)
        texts = [path.read_text(errors="replace") for path in (out, err)]
    return subprocess.CompletedProcess(arguments, status, *texts)


@contextlib.contextmanager
def pair(folder: pathlib.Path, *arguments: str, other: tuple[str, ...] = ()) -> Iterator[list[Run]]:
    """Starts both processes of a run, process 0 first; `other` is for the second process only."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}"
    cluster = ("--distributed", address, "--num_processes=2")
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                going_on(
                    folder / f"log{process}",
                    *arguments,
                    *(other if process else ()),
                    *cluster,
                    f"--process_id={process}",
                    **QUICK,  # only process 0 uses JAX's cache
                )
            )
            for process in (0, 1)
        ]


def records(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records in metrics.jsonl, without times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def summary(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the content of summary.json, without times."""
    content = json.loads((workdir / "summary.json").read_text())
    return {k: v for k, v in content.items() if k not in TIMES}


def epochs(workdir: pathlib.Path) -> list[int]:
    """Returns the epochs that have checkpoints, in ascending order."""
    return sorted(int(path.stem) for path in (workdir / "checkpoints").glob("*.msgpack"))


def read_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    """Reads a checkpoint with msgpack and hashlib alone, without our code or Flax's."""

    def array(code: int, packed: bytes) -> np.ndarray:
        shape, dtype, content = msgpack.unpackb(packed)
        return np.frombuffer(content, dtype).reshape(shape)

    whole = msgpack.unpackb(path.read_bytes())
    assert hashlib.sha256(whole["content"]).hexdigest() == whole["sha256"]
    content = msgpack.unpackb(whole["content"], ext_hook=array)
    return content | {"details": json.loads(content["details"])}


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all arrays of the last checkpoint by name."""
    last = read_checkpoint(workdir / "checkpoints" / f"{epochs(workdir)[-1]}.msgpack")
    tree = {"state": last["state"], "steps": last["steps"]}
    return {
        jax.tree_util.keystr(name, simple=True, separator="/"): leaf
        for name, leaf in jax.tree.leaves_with_path(tree)
    }


def assert_same_run(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Asserts that two finished runs have the same configuration and results, bit for bit."""
    assert summary(ours) == summary(theirs)
    assert_same_results(ours, theirs)


def assert_same_results(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Asserts that two runs have the same records and arrays, bit for bit."""
    assert records(ours) == records(theirs)
    mine, other = arrays(ours), arrays(theirs)
    assert mine.keys() == other.keys() and len(mine) > 10
    for name in mine:
        np.testing.assert_array_equal(mine[name], other[name], err_msg=name)


def assert_close_run(ours: pathlib.Path, theirs: pathlib.Path, tolerance: float) -> None:
    """Asserts that two runs with batches of at least 390 agree up to rounding.

    After one step, they differ by 5e-6 of an array's largest number. The difference then grows,
    because now and then an input of a ReLU changes sign.
    """
    pairs = [([*records(run), arrays(run)]) for run in (ours, theirs)]
    assert len(pairs[0]) > 1
    for mine, other in zip(*pairs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            # An accuracy is a count: two images may be classified differently.
            atol = 2 / 390 if "accuracy" in name else tolerance * np.abs(other[name]).max() + 1e-7
            np.testing.assert_allclose(mine[name], other[name], rtol=0, atol=atol, err_msg=name)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the content of each file below a folder, without the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def copy(workdir: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    shutil.copytree(workdir, to)
    return to

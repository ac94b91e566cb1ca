"""The folder of a run: config.json, metrics.jsonl, summary.json and figures/."""

import datetime
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
from typing import Any

from mnist_flax.errors import UserError

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets", "wandb")


class Workdir:
    """Writes a run's files; each is whole whenever it can be seen."""

    def __init__(self, path: str, config: dict[str, Any]) -> None:
        """Makes the folder, a dated one if `path` is empty, and writes config.json.

        Raises:
          UserError: the folder holds a run already, or cannot be written.
        """
        check_workdir(path)
        try:
            self.path = _make(path) if path else _make_dated()
            self.figures = self.path / "figures"
            self.figures.mkdir(exist_ok=True)
            self._write("config.json", config)
        except OSError as error:
            raise UserError(f"--workdir={path or 'runs'}: {error.strerror}") from None

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl and sees it to the disk."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json."""
        self._write("summary.json", summary)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        partial = self.path / f"{name}.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(partial, self.path / name)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in _PACKAGES
    }


def check_workdir(path: str) -> None:
    """Checks, before there is anything to write, that `path` can become a run's folder.

    Raises:
      UserError: it holds a run already, or it or the folder to make it in cannot be written.
    """
    folder = pathlib.Path(path or "runs").expanduser()
    if path and (folder / "config.json").exists():
        raise UserError(f"--workdir={folder} holds a run already; allowed: a new folder")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise UserError(f"--workdir={folder}: {existing} is not a folder; allowed: a new folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={folder}: {existing} cannot be written")


def _make(path: str) -> pathlib.Path:
    folder = pathlib.Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make_dated() -> pathlib.Path:
    """Makes `runs/<date>_<time>`, with a number behind it if another run was first."""
    name = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        folder = pathlib.Path("runs") / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue

"""The folder of a run: config.json, metrics.jsonl, summary.json and figures/."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

from mnist_flax.errors import UserError

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets", "wandb")


class Workdir:
    """Writes a run's files; each is whole whenever it can be seen.

    Raises:
      UserError: the folder holds a run already, or cannot be written.
    """

    def __init__(self, path: str, config: dict[str, Any]):
        self.path = pathlib.Path(path).expanduser() if path else _dated()
        self.figures = self.path / "figures"
        try:
            if (self.path / "config.json").exists():
                raise UserError(f"--workdir={self.path} holds a run already; allowed: a new folder")
            self.figures.mkdir(parents=True, exist_ok=True)
            self._write("config.json", config)
        except OSError as error:
            raise UserError(f"--workdir={self.path}: {error.strerror}") from None

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl and sees it to the disk."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
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


def _dated() -> pathlib.Path:
    """`runs/<date>_<time>`, made distinct if that second has one already."""
    base = pathlib.Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path, count = base, 1
    while path.exists():
        count += 1
        path = base.with_name(f"{base.name}_{count}")
    return path

"""The folder of a run: config.json, metrics.jsonl, summary.json, figures/ and checkpoints/."""

import contextlib
import datetime
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from mnist_flax.errors import UserError
from mnist_flax.run.resuming import MayDiffer, check_same, may_extend, to_json
from mnist_flax.runtime.files import expand, explain, is_not_offered, is_url, write_whole

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]

DATASET = "dataset.json"
REPLICAS = "replicas"  # in the folder of a study


class Workdir:
    """Writes the files of a run or a study; readers only ever see whole files.

    A new folder is created by `open`; one that holds a run is opened at once.

    Args:
      path: the folder; if empty, a new dated one under `runs/`.
      config: the whole configuration.
      may_differ: which fields may differ from those of the run in the folder.

    Attributes:
      path: the folder.
      figures: the folder inside it for pictures.

    Raises:
      UserError: the folder holds another run, is in use, or cannot be written or created.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: dict[str, Any],
        may_differ: MayDiffer = may_extend,
    ):
        if is_url(path):
            raise UserError(f"--workdir={path} is a URL; use a folder where the bucket is mounted")
        self._is_dated = not os.fspath(path)
        self.path = expand(path or "runs")
        self._config, self._may_differ = config, may_differ
        self._lock: Any = None
        self._warning = ""
        self._is_open = False
        parents = (self.path, *self.path.absolute().parents)
        existing = next(parent for parent in parents if os.path.exists(parent))
        if not existing.is_dir():
            raise UserError(f"--workdir={self.path}: {existing} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"--workdir={self.path}: {existing} cannot be written")
        if not self._is_dated and os.path.exists(self.path / "config.json"):
            self.open()

    @property
    def figures(self) -> pathlib.Path:
        """The folder inside it for pictures."""
        return self.path / "figures"

    def open(self) -> None:
        """Creates the folder, or checks that its run can resume; does nothing if it is open.

        No other process can use it until it is closed or this process ends.
        """
        if self._is_open:
            return
        try:
            if self._is_dated:
                self.path = _make_dated()
            self.figures.mkdir(parents=True, exist_ok=True)
            self._lock, self._warning = _lock(self.path)
        except OSError as error:
            raise self._unusable(error) from None
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            before = _read_config(self.path)
            if before is None:
                self.write_json("config.json", self._config)
            else:
                check_same(f"--workdir={self.path}", before, self._config, self._may_differ)
            on_error.pop_all()
        self._is_open = True

    def announce(self, line: Callable[[str], None]) -> None:
        """Prints where the folder is, and a warning if it cannot be locked."""
        for text in filter(None, (f"Workdir: {self.path}", self._warning)):
            line(text)

    def close(self) -> None:
        """Lets other processes use the folder."""
        if self._lock is not None:
            self._lock.close()

    @property
    def is_finished(self) -> bool:
        """Whether the run in the folder is finished."""
        return (self.path / "summary.json").exists()

    @property
    def has_metrics(self) -> bool:
        """Whether the run in the folder has finished an epoch."""
        return (self.path / "metrics.jsonl").exists()

    def read_summary(self) -> dict[str, Any] | None:
        """Returns summary.json of a finished run; None if it is missing or cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.path / "summary.json").read_text())
        return None

    def write_metrics(self, records: Sequence[dict[str, Any]]) -> None:
        """Replaces the lines of metrics.jsonl."""
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        if text or self.has_metrics:
            self.write("metrics.jsonl", text)

    def write_json(self, name: str, content: Any) -> None:
        """Writes finite numbers, strings, and lists and dictionaries of them."""
        self.write(name, to_json(content) + "\n")

    def reopen(self, records: Sequence[dict[str, Any]] = ()) -> None:
        """Prepares to train on, after the epochs of `records`.

        Updates config.json and metrics.jsonl, and removes the final results.
        """
        self.write_json("config.json", self._config)
        self.write_metrics(records)
        for name in ("summary.json", "report.html"):
            (self.path / name).unlink(missing_ok=True)

    def write(self, name: str, text: str) -> None:
        """Writes a file to the disk, whole or not at all.

        Raises:
          UserError: it cannot be written.
        """
        try:
            write_whole(self.path / name, text)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> UserError:
        return UserError(f"--workdir={self.path}: {explain(error)}")


def _read_config(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the content of config.json; None if there is no such file."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # from the system, JSON or UTF-8
        raise UserError(f"{path} cannot be read: {error}; choose a new folder") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a run's configuration; choose a new folder")
    return config


def _lock(folder: pathlib.Path) -> tuple[Any, str]:
    """Locks the folder; the system releases the lock when this process ends, however it ends.

    Returns:
      The open file, and a warning if its file system has no locks.

    Raises:
      UserError: another process holds the lock.
    """
    if fcntl is None:
        return None, ""
    # Stays open as long as the process runs.
    file = open(folder / ".lock", "a+")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"--workdir={folder} is in use by another process; choose another folder, or wait"
        ) from None
    except OSError as error:
        if not is_not_offered(error):
            raise
        reason = f"{folder} cannot be locked here ({error.strerror})"
        return file, f"warning: {reason}; make sure that no other run uses it"
    return file, ""


def _make_dated() -> pathlib.Path:
    """Creates `runs/<date>_<time>`; waits for the next second if that folder exists."""
    while True:
        folder = pathlib.Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        time.sleep(0.1)

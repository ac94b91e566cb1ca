"""Checkpoints of a run: all that it needs to go on as if it had never stopped.

They are Orbax's, a folder an epoch. Orbax would read some damaged files without an error, so that
each folder holds the SHA-256 of its files, which are written last and checked first.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mnist_flax.errors import UserError
from mnist_flax.run.history import History
from mnist_flax.runtime import hosts
from mnist_flax.runtime.files import write_whole
from mnist_flax.step import TrainState

_DIGESTS = "files.sha256"
_ROOM_FACTOR, _ROOM_BYTES = 2, 2**21  # what is made sure of: of the arrays, and beside them
_DAMAGED = ".damaged"  # behind the name of a folder that could not be read


class Checkpoints:
    """The checkpoints in a folder; written beside the training, by a thread that all waiting is in.

    Args:
      folder: made when it is first written to; all processes of a run must see the same.
      keep: how many of the newest stay; the best stays besides.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        self._folder = folder.absolute()
        self._keep = keep
        self._best_epoch: int | None = None
        self._saved: concurrent.futures.Future | None = None
        self._manager = None

    def restore(
        self,
        like: TrainState,
        steps_per_epoch: int,
        must_exist: bool,
        warn: Callable[[str], None],
    ) -> tuple[TrainState, History] | None:
        """Reads the newest checkpoint that is whole; None if none was ever finished.

        Those that are damaged are said, and put aside under another name.

        Args:
          like: shapes, types and shardings of the state.
          steps_per_epoch: of the run.
          must_exist: whether an epoch was finished.
          warn: prints a line.

        Raises:
          UserError: there should be a checkpoint, but none can be read.
        """
        damaged: dict[pathlib.Path, str] = {}
        folders = [path for path in self._folder.glob("*") if path.name.isdecimal()]
        for path in sorted(folders, key=lambda path: int(path.name), reverse=True):
            try:
                state, history = _read(path, like, steps_per_epoch)
            except Exception as error:  # whatever a damaged file makes of Orbax
                damaged[path] = _explain(error)
                continue
            for other, reason in damaged.items():
                warn(f"warning: the checkpoint {other} is damaged: {reason}")
                _put_aside(other)
            return state, history
        if must_exist or any((path / _DIGESTS).exists() for path in damaged):
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
            raise UserError(
                f"no checkpoint in {self._folder} can be read ({reasons or 'there is none'}); "
                "allowed: to put a good one back, or a new --workdir"
            )
        for path in damaged:  # the process ended while it wrote the first
            _put_aside(path)
        return None

    def save(self, state: TrainState, history: History, on_saved: Callable[[], None]) -> None:
        """Starts to write a checkpoint; waits for the one before, if that is still under way.

        Args:
          state: a copy, which no step is given.
          history: up to that state.
          on_saved: called, from another thread, as soon as the checkpoint is complete.

        Raises:
          UserError: the one before could not be written.
        """
        self.wait()
        self._saved = concurrent.futures.Future()
        # Not an executor's thread: Python would wait for that at its exit, for ever if need be.
        threading.Thread(
            target=self._save, args=(state, history, on_saved, self._saved), daemon=True
        ).start()

    def wait(self, timeout: float | None = None) -> None:
        """Waits, up to `timeout` seconds, for the checkpoint that is being written.

        Raises:
          UserError: it could not be written.
        """
        if self._saved is None:
            return
        with contextlib.suppress(TimeoutError):
            error = self._saved.exception(timeout)
            self._saved = None
            if error is not None:
                raise error

    def _save(
        self,
        state: TrainState,
        history: History,
        on_saved: Callable[[], None],
        saved: concurrent.futures.Future,
    ) -> None:
        try:
            self._write(state, history)
            on_saved()
            saved.set_result(None)
        except Exception as error:
            saved.set_exception(
                UserError(
                    f"epoch {history.epoch} cannot be saved in {self._folder.parent}: "
                    f"{_explain(error)}; what was saved before is still there"
                )
            )

    def _write(self, state: TrainState, history: History) -> None:
        import orbax.checkpoint as ocp

        if self._manager is None:
            self._manager = self._create_manager()
        if history.best is not None:
            self._best_epoch = history.best["epoch"]
        arrays = _arrays(state, history)
        # In every process, so that none waits for one that finds no room.
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        _check_room(self._folder, _ROOM_FACTOR * size + _ROOM_BYTES)
        self._manager.save(
            history.epoch,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays),
                details=ocp.args.JsonSave(_details(history)),
            ),
            force=True,
        )
        self._manager.wait_until_finished()
        if hosts.is_main():
            _write_digests(self._folder / str(history.epoch))

    def _create_manager(self) -> Any:
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        checkpoints = self

        class KeepBest(checkpoint_managers.PreservationPolicy):
            def should_preserve(self, infos: Sequence[Any], *, context: Any) -> list[bool]:
                del context
                return [info.step == checkpoints._best_epoch for info in infos]

        self._folder.mkdir(exist_ok=True)
        policies = [checkpoint_managers.LatestN(self._keep), KeepBest()]
        # With the processes named, they wait for each other without the devices' help, which may
        # be training at that time.
        multiprocessing = ocp.options.MultiprocessingOptions(
            active_processes=set(range(jax.process_count())), barrier_sync_key_prefix="run"
        )
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                create=False,
                cleanup_tmp_directories=True,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                multiprocessing_options=multiprocessing,
            ),
        )


def _arrays(state: TrainState, history: History) -> dict[str, Any]:
    arrays = {"state": state}
    if history.epoch:  # Orbax takes no empty ones
        arrays |= {"losses": history.losses, "accuracies": history.accuracies}
    return arrays


def _details(history: History) -> dict[str, Any]:
    return {
        "epoch": history.epoch,
        "best": history.best,
        "records": list(history.records),
        "run_id": history.run_id,
        "data": history.data,
    }


def _read(path: pathlib.Path, like: TrainState, steps_per_epoch: int) -> tuple[TrainState, History]:
    """Reads a checkpoint, named by its epoch."""
    import orbax.checkpoint as ocp

    _check_digests(path)
    epoch = int(path.name)
    steps = np.zeros(epoch * steps_per_epoch, np.float32)
    arrays_like = {"state": like} | ({"losses": steps, "accuracies": steps} if epoch else {})
    restored = ocp.Checkpointer(ocp.CompositeCheckpointHandler()).restore(
        path,
        args=ocp.args.Composite(
            arrays=ocp.args.StandardRestore(arrays_like),
            details=ocp.args.JsonRestore(),
        ),
    )
    arrays, details = restored["arrays"], restored["details"]
    history = History(
        run_id=details["run_id"],
        data=details["data"],
        records=tuple(details["records"]),
        losses=np.asarray(arrays.get("losses", steps)),
        accuracies=np.asarray(arrays.get("accuracies", steps)),
    )
    if history.epoch != epoch:
        raise ValueError(f"it is of epoch {history.epoch}")
    return arrays["state"], history


def _write_digests(folder: pathlib.Path) -> None:
    """Writes the files' SHA-256, as `sha256sum` does; from then on the checkpoint is complete."""
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    write_whole(folder / _DIGESTS, "".join(lines))


def _check_digests(folder: pathlib.Path) -> None:
    """Raises ValueError or OSError unless all files are as they were written."""
    if not (folder / _DIGESTS).is_file():
        raise ValueError(f"{_DIGESTS} is missing")
    lines = (folder / _DIGESTS).read_text().splitlines()
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} is not as it was written")
    if {*digests, _DIGESTS} != {path.relative_to(folder).as_posix() for path in _files(folder)}:
        raise ValueError(f"{_DIGESTS} does not list all files")


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_room(folder: pathlib.Path, size: int) -> None:
    """Raises OSError unless there is room for so many bytes, quotas included.

    Orbax, stopped in the midst of its writing, fills the screen with the tracebacks of its threads.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _put_aside(folder: pathlib.Path) -> None:
    if hosts.is_main():
        aside = folder.with_name(folder.name + _DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            folder.rename(aside)
        except OSError as error:
            raise UserError(f"{folder} cannot be put aside: {error.strerror}") from None


def _explain(error: Exception) -> str:
    """What the system said, if it did, else the first line of what Orbax says."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__

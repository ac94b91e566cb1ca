"""Checkpoints of a run: everything that it needs to resume as if it had never stopped.

Orbax writes them, one folder per epoch. It reads some damaged files without an error, so each
folder also holds the SHA-256 of its files, which is written last and checked first.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_flax.errors import UserError
from mnist_flax.run.history import History
from mnist_flax.runtime import hosts
from mnist_flax.runtime.files import explain, is_not_offered, write_whole

DIGESTS = "files.sha256"
# Saving needs this much room on the disk: a multiple of the arrays' size, plus some bytes.
_ROOM_FACTOR, _ROOM_BYTES = 2, 2**21
_DAMAGED = ".damaged"  # appended to the name of a folder that could not be read


@jax.jit
def snapshot(state: Any) -> tuple[Any, jax.Array]:
    """Returns a copy of a state for saving, and whether its parameters and statistics are finite.

    A step reuses the memory of the state that it is given, so the original would not last.
    """
    variables = jax.tree.leaves((state.params, state.batch_stats))
    is_finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in variables]).all()
    return jax.tree.map(jnp.copy, state), is_finite


class Checkpoints:
    """Saves and restores the checkpoints in a folder.

    Args:
      folder: created by the first save; must be the same for all processes of a run.
      keep: how many of the newest to keep.
      keep_best: whether to keep the best as well.
    """

    def __init__(self, folder: pathlib.Path, keep: int, keep_best: bool = True):
        self._folder = folder.absolute()
        self._keep = keep
        self._keep_best = keep_best
        self._manager: Any = None

    def restore(
        self, like: Any, must_exist: bool, warn: Callable[[str], None]
    ) -> tuple[Any, History] | None:
        """Reads the newest complete checkpoint; None if no save was ever completed.

        Damaged checkpoints are reported, and put aside under another name.

        Args:
          like: a state with the same shapes, types and shardings.
          must_exist: whether there must be one, because an epoch was finished.
          warn: prints a line.

        Raises:
          UserError: there should be a checkpoint, but none can be read.
        """
        damaged: dict[pathlib.Path, str] = {}
        folders = [path for path in self._folder.glob("*") if path.name.isdecimal()]
        for path in sorted(folders, key=lambda path: int(path.name), reverse=True):
            try:
                state, history = read(path, like)
            except Exception as error:  # Orbax raises many kinds of error for damaged files
                damaged[path] = explain(error)
                continue
            for other, reason in damaged.items():
                warn(f"warning: the checkpoint {other} is damaged: {reason}")
                _put_aside(other)
            return state, history
        if must_exist or any((path / DIGESTS).exists() for path in damaged):
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
            raise UserError(
                f"no checkpoint in {self._folder} can be read ({reasons or 'there is none'}); "
                "restore one from a backup, or choose a new --workdir"
            )
        for path in damaged:  # the process ended while writing the first one
            _put_aside(path)
        return None

    def save(self, state: Any, history: History) -> None:
        """Writes a checkpoint, and returns when it is complete.

        Args:
          state: a snapshot.
          history: the epochs that led to it.

        Raises:
          Exception: whatever the system or Orbax raises, if it cannot be written.
        """
        import orbax.checkpoint as ocp

        if self._manager is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = _create_manager(self._folder, self._keep, self._keep_best)
        arrays = _arrays(state, history)
        details = {
            "run_id": history.run_id,
            "data": history.data,
            "records": list(history.records),
        }
        # In every process, so that none waits for one that finds no room.
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        _check_room(self._folder, _ROOM_FACTOR * size + _ROOM_BYTES)
        self._manager.save(
            history.epoch,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays),
                details=ocp.args.JsonSave(details),
            ),
            metrics={"accuracy": history.last_accuracy, "epoch": history.epoch},
            force=True,
        )
        self._manager.wait_until_finished()
        if hosts.is_main():
            _write_digests(self._folder / str(history.epoch))


def _create_manager(folder: pathlib.Path, keep: int, keep_best: bool) -> Any:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers

    def rank(metrics: dict[str, float]) -> tuple[float, float]:
        return metrics["accuracy"], -metrics["epoch"]  # of equals, the first

    best = checkpoint_managers.BestN(n=1, get_metric_fn=rank)
    policies = [checkpoint_managers.LatestN(keep), *([best] if keep_best else [])]
    # With named processes, Orbax makes them wait for each other without using the devices, which
    # may be training at that time.
    multiprocessing = ocp.options.MultiprocessingOptions(
        active_processes=set(range(jax.process_count())), barrier_sync_key_prefix="run"
    )
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            create=False,
            cleanup_tmp_directories=True,
            best_fn=rank,  # without it, Orbax forgets the metrics of earlier processes
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            multiprocessing_options=multiprocessing,
        ),
    )


def _arrays(state: Any, history: History) -> dict[str, Any]:
    arrays = {"state": state}
    if history.losses.size:  # Orbax cannot save empty arrays
        arrays |= {"losses": history.losses, "accuracies": history.accuracies}
    return arrays


def read(path: pathlib.Path, like: Any) -> tuple[Any, History]:
    """Reads a checkpoint from a folder that is named after its epoch.

    Args:
      path: the folder.
      like: a state with the same shapes, types and shardings.

    Raises:
      Exception: whatever the system or Orbax raises, if it is damaged or holds another state.
    """
    import orbax.checkpoint as ocp

    _check_digests(path)
    history = read_history(path)
    if history.epoch != int(path.name):
        raise ValueError(f"it is from epoch {history.epoch}")
    num_steps = history.records[-1].get("step", 0) if history.records else 0  # a study keeps none
    steps = np.zeros(num_steps, np.float32)
    arrays_like = {"state": like} | ({"losses": steps, "accuracies": steps} if num_steps else {})
    arrays = _restore(path, "arrays", ocp.args.StandardRestore(arrays_like))
    metrics = {name: np.asarray(arrays.get(name, steps)) for name in ("losses", "accuracies")}
    return arrays["state"], dataclasses.replace(history, **metrics)


def read_history(path: pathlib.Path) -> History:
    """Reads the history in a checkpoint, without the metrics of its steps."""
    import orbax.checkpoint as ocp

    details = _restore(path, "details", ocp.args.JsonRestore())
    return History(details["run_id"], details["data"], tuple(details["records"]))


def _restore(path: pathlib.Path, item: str, how: Any) -> Any:
    import orbax.checkpoint as ocp

    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    # Orbax accepts only absolute paths.
    return checkpointer.restore(path.absolute(), args=ocp.args.Composite(**{item: how}))[item]


def _write_digests(folder: pathlib.Path) -> None:
    """Writes the files' SHA-256 in the format of `sha256sum`; this completes the checkpoint."""
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    write_whole(folder / DIGESTS, "".join(lines))


def _check_digests(folder: pathlib.Path) -> None:
    """Raises ValueError or OSError unless all files are as they were when written."""
    if not (folder / DIGESTS).is_file():
        raise ValueError(f"{DIGESTS} is missing")
    lines = (folder / DIGESTS).read_text().splitlines()
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} has changed since it was written")
    if {*digests, DIGESTS} != {path.relative_to(folder).as_posix() for path in _files(folder)}:
        raise ValueError(f"{DIGESTS} does not list all files")


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_room(folder: pathlib.Path, size: int) -> None:
    """Raises OSError unless the disk and its quotas have room for `size` bytes.

    If Orbax fails half-way, it fills the screen with the tracebacks of its threads.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if not is_not_offered(error):
                raise


def _put_aside(folder: pathlib.Path) -> None:
    if hosts.is_main():
        aside = folder.with_name(folder.name + _DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            folder.rename(aside)
        except OSError as error:
            raise UserError(f"{folder} cannot be put aside: {error.strerror}") from None

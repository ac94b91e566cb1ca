"""Checkpoints of a run: everything that it needs to resume as if it had never stopped.

A checkpoint is one file in Flax's msgpack form, `checkpoints/<epoch>.msgpack`, with its SHA-256. It
is written whole, so a process that is killed leaves the one before. `predict` needs nothing else.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization

from mnist_flax.errors import UserError
from mnist_flax.history import History
from mnist_flax.run.resuming import to_json
from mnist_flax.runtime import hosts
from mnist_flax.runtime.files import explain, write_whole

_FORMAT = 1  # what this version reads and writes


class Checkpoint(NamedTuple):
    """The content of a checkpoint."""

    state: dict[str, Any]  # NumPy arrays, in Flax's form of a state; PRNG keys as their data
    history: History  # the epochs that led to it
    config: dict[str, Any]  # the whole configuration, as JSON holds it
    about: dict[str, Any]  # the data, as dataset.json describes them


class DamagedError(UserError):
    """A checkpoint's content does not fit its SHA-256."""


class Checkpoints:
    """Saves and restores the checkpoints in a folder. All other files in it are ignored.

    Args:
      folder: created by the first save; only process 0 uses it.
      keep: how many of the newest to keep.
      keep_best: whether to keep the best as well.
    """

    def __init__(self, folder: pathlib.Path, keep: int, keep_best: bool = True):
        self._folder, self._keep, self._keep_best = folder, keep, keep_best

    def epochs(self) -> list[int]:
        """Returns the epochs that have a checkpoint, in ascending order.

        Raises:
          UserError: the folder cannot be read, or holds only checkpoints of an older version.
        """
        try:
            names = os.listdir(self._folder) if self._folder.exists() else []
        except OSError as error:
            raise UserError(f"{self._folder}: {explain(error)}") from None
        found = sorted(int(name[:-8]) for name in names if re.fullmatch(r"\d+\.msgpack", name))
        if not found and any(name.isdecimal() for name in names):
            raise UserError(
                f"{self._folder} holds checkpoints of an older version, which are folders; use "
                "that version, or a new --workdir"
            )
        return found

    def path(self, epoch: int) -> pathlib.Path:
        """Returns the file of an epoch."""
        return self._folder / f"{epoch}.msgpack"

    def restore(
        self, like: Any, must_exist: bool, warn: Callable[[str], None]
    ) -> tuple[Any, History] | None:
        """Reads the newest checkpoint that is not damaged, in process 0, for all processes.

        Args:
          like: a state with the same shapes, types and shardings.
          must_exist: whether there must be one, because an epoch was finished.
          warn: called with a line for each damaged checkpoint that is passed over.

        Returns:
          The state and the history; None if there is no checkpoint.

        Raises:
          UserError: there should be a checkpoint, but all are missing or damaged, or one cannot be
            read.
        """
        content = b""
        with hosts.together():
            if hosts.is_main():
                content = self._newest(must_exist, warn)
        if not (content := hosts.broadcast(content)):
            return None
        checkpoint = _parse(content, self._folder)
        return to_state(like, checkpoint.state), checkpoint.history

    def save(
        self, state: Any, history: History, config: dict[str, Any], about: dict[str, Any]
    ) -> None:
        """Writes a checkpoint, and removes those that need not be kept.

        Raises:
          UserError: it cannot be written; older ones stay.
        """
        checkpoint = Checkpoint(_to_numpy(state), history, config, about)
        path = self.path(history.epoch)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, _serialize(checkpoint))
            epochs = self.epochs()
            kept = {*epochs[-self._keep :], history.epoch}
            if self._keep_best and history.best:
                kept.add(history.best["epoch"])
            for epoch in {*epochs} - kept:
                self.path(epoch).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"epoch {history.epoch} cannot be saved as {path}: {explain(error)}; what was "
                "saved before is still there"
            ) from None

    def _newest(self, must_exist: bool, warn: Callable[[str], None]) -> bytes:
        """Returns the content of the newest checkpoint; empty if there is none."""
        damaged = []
        for epoch in reversed(self.epochs()):
            path = self.path(epoch)
            try:
                content = path.read_bytes()
                _parse(content, path)
            except OSError as error:
                raise UserError(f"{path}: {explain(error)}") from None
            except DamagedError as error:
                damaged.append(str(error))
                continue
            for reason in damaged:
                warn(f"warning: {reason}; using that of epoch {epoch}")
            return content
        if must_exist or damaged:
            raise UserError(
                f"no checkpoint in {self._folder} can be used "
                f"({'; '.join(damaged) or 'there is none'}); restore one from a backup, or choose "
                "a new --workdir"
            )
        return b""


def read(path: pathlib.Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
      DamagedError: its content does not fit its SHA-256.
      UserError: it has the form of another version.
      OSError: the file cannot be read.
    """
    return _parse(path.read_bytes(), path)


def to_state(like: Any, state: dict[str, Any]) -> Any:
    """Puts the `state` of a checkpoint on devices.

    Args:
      like: a state with the same shapes, types and shardings.
      state: `Checkpoint.state`.
    """

    def put(like: Any, array: Any) -> jax.Array:
        array = np.asarray(array)
        placed = jax.make_array_from_callback(array.shape, like.sharding, array.__getitem__)
        return jax.random.wrap_key_data(placed) if _is_key(like) else placed

    return jax.tree.map(put, like, serialization.from_state_dict(like, state))


def _to_numpy(state: Any) -> dict[str, Any]:
    plain = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)
    return serialization.to_state_dict(jax.device_get(plain))


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _serialize(checkpoint: Checkpoint) -> bytes:
    history = checkpoint.history
    details = {
        "run_id": history.run_id,
        "data": history.data,
        "records": history.records,
        "config": checkpoint.config,
        "about": checkpoint.about,
    }
    # As JSON, because msgpack has no tuples.
    text = to_json(details)
    arrays = {"state": checkpoint.state, "steps": dict(history.steps)}
    content = serialization.msgpack_serialize({"format": _FORMAT, **arrays, "details": text})
    digest = hashlib.sha256(content).hexdigest()
    return serialization.msgpack_serialize({"sha256": digest, "content": content})


def _parse(content: bytes, path: pathlib.Path) -> Checkpoint:
    try:
        whole = serialization.msgpack_restore(content)
        is_whole = hashlib.sha256(whole["content"]).hexdigest() == whole["sha256"]
    except Exception:  # msgpack raises many types of errors
        is_whole = False
    if not is_whole:
        raise DamagedError(f"the checkpoint {path} is damaged")
    arrays = serialization.msgpack_restore(whole["content"])
    if arrays["format"] != _FORMAT:
        raise UserError(f"the checkpoint {path} has the form of another version; use that version")
    details = json.loads(arrays["details"])
    history = History(
        details["run_id"], details["data"], tuple(details["records"]), arrays["steps"]
    )
    return Checkpoint(arrays["state"], history, details["config"], details["about"])

"""Saves checkpoints in the background while training continues."""

import pathlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax

from mnist_flax.errors import UserError
from mnist_flax.run.checkpoint import Checkpoints
from mnist_flax.run.history import History
from mnist_flax.runtime import hosts
from mnist_flax.runtime.background import Background
from mnist_flax.runtime.files import explain

_ABORT_SECONDS = 10  # how long to wait for a checkpoint when a run is aborted


class Saver:
    """Saves checkpoints in the background, and restores them.

    Args:
      folder: the folder for the checkpoints.
      keep: how many of the newest to keep.
      keep_best: whether to keep the best as well.

    Attributes:
      saved_epochs: the epoch of the newest complete checkpoint; 0 if there is none.
    """

    def __init__(self, folder: pathlib.Path, keep: int, keep_best: bool = True):
        self.saved_epochs = 0
        self._folder = folder
        self._checkpoints = Checkpoints(folder, keep, keep_best)
        self._background = Background("saving")
        self._saving: Future | None = None

    def restore(
        self, state: Any, must_exist: bool, warn: Callable[[str], None]
    ) -> tuple[Any, History] | None:
        """Reads the newest complete checkpoint of a state like `state`; see `Checkpoints`."""
        restored = self._checkpoints.restore(jax.tree.map(_like, state), must_exist, warn)
        if restored is not None:
            self.saved_epochs = restored[1].epoch
        return restored

    def save(self, copy: Any, history: History, then: Callable[[], None] = lambda: None) -> None:
        """Starts saving a state.

        Args:
          copy: a snapshot of the state.
          history: the epochs that led to it.
          then: called on the saving thread once the checkpoint is complete.
        """
        self._saving = self._background.submit(self._save, copy, history, then)

    def wait(self) -> None:
        """Waits in all processes until the state is saved.

        Raises:
          UserError: a process could not save it; raised only once.
        """
        with hosts.together():
            saving, self._saving = self._saving, None
            if saving is not None:
                saving.result()

    def abort(self) -> UserError | None:
        """Waits a few seconds until the state is saved, and returns the error if that fails."""
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result(_ABORT_SECONDS)
        except UserError as error:
            return error
        except TimeoutError:
            self._background.close(timeout=0)  # abandons it
        return None

    def close(self) -> None:
        """Ends the saving thread once nothing is left to save, without waiting for it."""
        self._background.finish()

    def _save(self, copy: Any, history: History, then: Callable[[], None]) -> None:
        try:
            self._checkpoints.save(copy, history)
            self.saved_epochs = history.epoch
            then()
        except Exception as error:  # from the system, Orbax or `then`
            raise UserError(
                f"epoch {history.epoch} cannot be saved in {self._folder.parent}: "
                f"{explain(error)}; what was saved before is still there"
            ) from None


def _like(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

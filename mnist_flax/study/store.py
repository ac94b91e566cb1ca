"""Stores the finished replicas of a study: their numbers as JSON, and their probabilities."""

import dataclasses
import io
import json
import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_flax.errors import UserError
from mnist_flax.runtime.files import write_whole

_TRACKED = ".tracked"  # marks a replica that W&B has
_UNFINISHED = ".unfinished"  # ends the name of a folder with checkpoints


@dataclasses.dataclass(frozen=True)
class Replica:
    """A variant trained from one seed.

    Attributes:
      variant: the name of the variant.
      seed: the seed of its initialisation, shuffling and augmentation.
      run_id: the identifier of its W&B run.
      data: the identity of the data.
      config: its whole configuration.
      records: one per epoch, as in metrics.jsonl; a number that is not finite is None.
      results: for 'test' and, if there is one, 'validation': 'loss', 'accuracy' (0..1) and
        'num_errors', each a mean over the last `study.num_final_epochs` epochs.
      train_seconds: the time spent on training only; an equal share if trained together.
      compile_seconds: the time to compile its program, which replicas may share.
      num_together: how many replicas were trained together.
      device: a line that describes the devices it was trained on.
      versions: the versions of Python and the libraries.
    """

    variant: str
    seed: int
    run_id: str
    data: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]
    train_seconds: float
    compile_seconds: float
    num_together: int
    device: str
    versions: dict[str, str]

    @property
    def is_finite(self) -> bool:
        """Whether its test loss is finite: False for a replica that diverged."""
        return self.results["test"]["loss"] is not None

    @property
    def num_errors(self) -> float:
        """The number of test errors, averaged over the last epochs."""
        return self.results["test"]["num_errors"]

    def accuracy(self, split: str) -> float:
        """Returns the share of correct predictions, 0..1."""
        return self.results[split]["accuracy"]


class ReplicaStore:
    """The folder of replicas, with `VARIANT/SEED.json` and `.npz` for each finished one."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def save(self, replica: Replica, probabilities: dict[str, np.ndarray]) -> None:
        """Writes a replica and its probabilities, `[n, classes]` for each split.

        Raises:
          UserError: the files cannot be written.
        """
        path = self._path(replica.variant, replica.seed)
        content = json.dumps(finite(dataclasses.asdict(replica)), indent=1, allow_nan=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(_TRACKED).unlink(missing_ok=True)  # may be left from an older replica
            arrays = {name: array.astype(np.float32) for name, array in probabilities.items()}
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)
            write_whole(path.with_suffix(".npz"), buffer.getvalue())
            write_whole(path, content + "\n")  # last, because this file marks it as finished
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None

    def load(self, variant: str, seed: int) -> Replica | None:
        """Returns a finished replica; None if it is not finished.

        Raises:
          UserError: its file is damaged.
        """
        path = self._path(variant, seed)
        try:
            replica = Replica(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read: {error}; delete it to train that replica again"
            ) from None
        return replica

    def probabilities(self, replica: Replica, split: str) -> np.ndarray:
        """Returns a replica's probabilities for the images of a split, float32 `[n, classes]`.

        Raises:
          UserError: their file is missing or damaged.
        """
        path = self._path(replica.variant, replica.seed)
        try:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                return arrays[split]
        except Exception as error:  # damaged files raise errors of the system, zip or NumPy
            raise UserError(
                f"{path.with_suffix('.npz')} cannot be read: {error}; delete {path} "
                "to train that replica again"
            ) from None

    def unfinished(self, variant: str, seeds: Sequence[int], identity: str) -> pathlib.Path:
        """Returns the folder for the checkpoints of unfinished replicas.

        Args:
          variant: the name of the variant.
          seeds: the seeds of the replicas that are trained together.
          identity: tells them from replicas of another recipe with that name, or of other data.
        """
        return self._folder / variant / f"{seeds[0]}-{seeds[-1]}.{identity}{_UNFINISHED}"

    def discard(self, variant: str, seeds: Sequence[int]) -> None:
        """Removes all checkpoints of finished replicas."""
        for folder in (self._folder / variant).glob(f"*{_UNFINISHED}"):
            if int(folder.name.partition("-")[0]) in seeds:
                shutil.rmtree(folder, ignore_errors=True)

    def is_tracked(self, replica: Replica) -> bool:
        """Whether W&B has the replica."""
        return self._path(replica.variant, replica.seed).with_suffix(_TRACKED).exists()

    def set_tracked(self, replica: Replica) -> None:
        """Notes that W&B has the replica."""
        self._path(replica.variant, replica.seed).with_suffix(_TRACKED).touch()

    def _path(self, variant: str, seed: int) -> pathlib.Path:
        return self._folder / variant / f"{seed}.json"


def finite(value: Any) -> Any:
    """Returns `value` with None in place of infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

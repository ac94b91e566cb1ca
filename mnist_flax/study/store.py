"""Stores the replicas of a study: their numbers as JSON, and their probabilities."""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mnist_flax.errors import UserError
from mnist_flax.run.checkpoint import Checkpoints, read
from mnist_flax.run.resuming import check_data, check_same, is_free, to_json
from mnist_flax.run.workdir import REPLICAS
from mnist_flax.runtime.files import explain, write_whole


def may_differ(name: str, *_: Any) -> bool:
    """Whether no replica's results depend on a field: see `run.resuming.MayDiffer`."""
    return is_free(name) and name != "study.num_final_epochs"


@dataclasses.dataclass(frozen=True)
class Replica:
    """A variant trained from one seed."""

    variant: str
    seed: int  # of its initialisation, shuffling and augmentation
    run_id: str  # the identifier of its W&B run
    data: str  # the identity of the data
    config: dict[str, Any]  # its whole configuration
    records: list[dict[str, Any]]  # one per epoch, as in metrics.jsonl; None: a number not finite
    results: dict[str, dict[str, Any]]  # by split: its metrics, means over the last epochs
    train_seconds: float  # spent on training only; an equal share if trained together
    compile_seconds: float  # to compile its programs, which replicas may share
    num_together: int  # how many replicas were trained together
    device: str  # a line that describes the devices it was trained on
    versions: dict[str, str]  # of Python and the libraries

    @property
    def num_errors(self) -> float:
        """The number of test errors, a mean over the last `study.num_final_epochs` epochs."""
        return self.results["test"]["num_errors"]


class ReplicaStore:
    """The files of a study's replicas: `VARIANT/SEED.json` and `.npz` for each finished one.

    Args:
      folder: the folder of the study; the files are in `replicas` in it.
      recipes: the recipes by name.
      data: the identity of the data.
    """

    def __init__(self, folder: pathlib.Path, recipes: Mapping[str, ConfigDict], data: str):
        self.folder, self._recipes, self._data = folder, recipes, data

    def config(self, variant: str, seed: int) -> ConfigDict:
        """Returns a replica's configuration: its recipe and seed, in the study's W&B group."""
        config = ConfigDict(json.loads(to_json(self._recipes[variant].to_dict())))
        config.seed = seed
        config.wandb.group = config.wandb.group or self.folder.resolve().name
        return config

    def save(self, replica: Replica, probabilities: dict[str, np.ndarray]) -> Replica:
        """Writes a replica and its probabilities, `[n, classes]` for each split.

        Returns:
          The replica as `load` returns it.

        Raises:
          UserError: the files cannot be written.
        """
        path, values = self._path(replica.variant, replica.seed), finite(replica)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{k: v.astype(np.float32) for k, v in probabilities.items()})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.marker(replica).unlink(missing_ok=True)  # may be left from an older replica
            write_whole(path.with_suffix(".npz"), buffer.getvalue())
            write_whole(path, json.dumps(values, indent=1) + "\n")  # last: it is finished now
        except OSError as error:
            raise UserError(f"{path}: {explain(error)}") from None
        return Replica(**values)

    def load(self, variant: str, seed: int) -> Replica | None:
        """Returns a finished replica; None if it is not finished.

        Raises:
          UserError: its file is damaged, or holds a replica of another recipe or other data.
        """
        path = self._path(variant, seed)
        try:
            replica = Replica(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: {explain(error)}") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}; delete it to train it again") from None
        self._check(variant, seed, replica.config, replica.data)
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
            reason = f"{path.with_suffix('.npz')} cannot be read: {error}"
            raise UserError(f"{reason}; delete {path} to train it again") from None

    def marker(self, replica: Replica) -> pathlib.Path:
        """Returns the file that exists once W&B has the replica."""
        return self._path(replica.variant, replica.seed).with_suffix(".tracked")

    def checkpoints(self, variant: str) -> Checkpoints:
        """Returns the checkpoints of the variant's replicas that are being trained together."""
        return Checkpoints(self._unfinished(variant), keep=1, keep_best=False)

    def begun(self, variant: str) -> list[int]:
        """Returns the seeds of the variant's replicas that have a checkpoint.

        There are none if the checkpoint is of another recipe or other data.

        Raises:
          UserError: the checkpoint is damaged.
        """
        saved = self.checkpoints(variant)
        for epoch in saved.epochs()[-1:]:
            path = saved.path(epoch)
            try:
                _, history, config, about = read(path)
            except (OSError, UserError) as error:
                raise UserError(f"{explain(error)}; delete {path} to train it again") from None
            with contextlib.suppress(UserError):
                self._check(variant, about["seeds"][0], config, history.data)
                return about["seeds"]
        return []

    def discard(self, variant: str) -> None:
        """Removes the checkpoints of a variant."""
        shutil.rmtree(self._unfinished(variant), ignore_errors=True)

    def _check(self, variant: str, seed: int, config: dict[str, Any], data: str) -> None:
        """Raises a `UserError` unless a replica is the one that would be trained now."""
        where = f"--workdir={self.folder}: replica {variant}, seed {seed},"
        way_out = "use the same fields, another name for the variant, or a new folder"
        check_same(where, config, self.config(variant, seed).to_dict(), may_differ, way_out)
        check_data(where, data, self._data)

    def _path(self, variant: str, seed: int) -> pathlib.Path:
        return self.folder / REPLICAS / variant / f"{seed}.json"

    def _unfinished(self, variant: str) -> pathlib.Path:
        return self.folder / REPLICAS / variant / "unfinished"


def finite(value: Any) -> Any:
    """Returns dataclasses, lists and numbers as JSON has them: infinities and NaN become None."""
    return json.loads(json.dumps(value, default=vars), parse_constant=lambda _: None)

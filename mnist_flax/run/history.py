"""The numbers of a run's finished epochs, which its state does not hold."""

import dataclasses
from typing import Any

import numpy as np


def _none() -> np.ndarray:
    return np.empty(0, np.float32)


@dataclasses.dataclass(frozen=True)
class History:
    """The finished epochs of a run.

    Attributes:
      run_id: W&B's identifier of the run.
      data: the identity of the training data, or in a study the digest of a recipe.
      records: one per epoch: a line of metrics.jsonl; in a study, the records of several replicas.
      losses: the loss of each step, float32 `[steps]`.
      accuracies: the accuracy of each step, 0..1, float32 `[steps]`.
    """

    run_id: str = ""
    data: str = ""
    records: tuple[dict[str, Any], ...] = ()
    losses: np.ndarray = dataclasses.field(default_factory=_none)
    accuracies: np.ndarray = dataclasses.field(default_factory=_none)

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.records)

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps per epoch; at least one epoch must be finished."""
        return self.records[0]["step"]

    @property
    def best(self) -> dict[str, Any] | None:
        """The best epoch's record, the first of equal ones; None if no epoch is finished."""
        return max(self.records, key=_accuracy, default=None)

    @property
    def last_accuracy(self) -> float:
        """The accuracy that ranks the last epoch; -1 if no epoch is finished."""
        return _accuracy(self.records[-1]) if self.records else -1.0

    def extended(self, record: dict[str, Any], losses: Any = (), accuracies: Any = ()) -> "History":
        """Returns the history with one more epoch: its record, and its steps' metrics."""
        return dataclasses.replace(
            self,
            records=(*self.records, record),
            losses=np.append(self.losses, np.float32(losses)),
            accuracies=np.append(self.accuracies, np.float32(accuracies)),
        )


def _accuracy(record: dict[str, Any]) -> float:
    """Returns the validation accuracy, or the test accuracy where no images are set aside."""
    return record.get("validation/accuracy", record.get("test/accuracy", 0.0))

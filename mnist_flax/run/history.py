"""The numbers of the finished epochs of a run, which its state does not hold."""

import dataclasses
from typing import Any

import numpy as np


def _none() -> np.ndarray:
    return np.empty(0, np.float32)


@dataclasses.dataclass(frozen=True)
class History:
    """The finished epochs of a run.

    Attributes:
      run_id: W&B's name for the run.
      data: what it is trained on: the identity of the data, or for a study the digest of a recipe.
      records: one per epoch: the lines of metrics.jsonl, or for a study those of several replicas.
      losses: float32 `[steps]`, of each step.
      accuracies: float32 `[steps]`, of each step, 0..1.
    """

    run_id: str = ""
    data: str = ""
    records: tuple[dict[str, Any], ...] = ()
    losses: np.ndarray = dataclasses.field(default_factory=_none)
    accuracies: np.ndarray = dataclasses.field(default_factory=_none)

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.records)

    @property
    def best(self) -> dict[str, Any] | None:
        """The best epoch's record, the first of several; None if there is no epoch."""
        return max(self.records, key=_accuracy, default=None)

    @property
    def last_accuracy(self) -> float:
        """What the last epoch is ranked by; -1 if there is no epoch."""
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

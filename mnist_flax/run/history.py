"""What a run has done so far: the numbers that its state does not hold."""

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
      data: the title of the data that it is trained on.
      records: the lines of metrics.jsonl, one an epoch.
      losses: float32 `[steps]`, of each step.
      accuracies: float32 `[steps]`, of each step, 0..1.
    """

    run_id: str
    data: str
    records: tuple[dict[str, Any], ...] = ()
    losses: np.ndarray = dataclasses.field(default_factory=_none)
    accuracies: np.ndarray = dataclasses.field(default_factory=_none)

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.records)

    @property
    def best(self) -> dict[str, Any] | None:
        """The best epoch's record, the first of several; None if there is no epoch.

        By validation accuracy, or by test accuracy where no images are set aside.
        """

        def accuracy(record: dict[str, Any]) -> float:
            return record.get("validation/accuracy", record["test/accuracy"])

        return max(self.records, key=accuracy, default=None)

    def extended(
        self, record: dict[str, Any], losses: np.ndarray, accuracies: np.ndarray
    ) -> "History":
        """With one more epoch: its record, and the losses and accuracies of its steps."""
        return dataclasses.replace(
            self,
            records=(*self.records, record),
            losses=np.append(self.losses, losses),
            accuracies=np.append(self.accuracies, accuracies),
        )

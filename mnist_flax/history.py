"""The numbers of a run's finished epochs, which its state does not hold."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class History:
    """The finished epochs of a run."""

    run_id: str = ""  # W&B's identifier of the run
    data: str = ""  # the identity of the training data; in a study, the digest of a recipe
    # One per epoch: a line of metrics.jsonl; in a study, the records of several replicas.
    records: tuple[dict[str, Any], ...] = ()
    # Each of the `StepMetrics` in every step, float32 `[steps]`, by name; empty in a study.
    steps: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

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
        """The best epoch's record, the first of equal ones; None if no epoch is finished.

        Validation accuracy decides, or test accuracy where no images are set aside.
        """
        return max(
            self.records,
            key=lambda r: r.get("validation/accuracy", r.get("test/accuracy", 0.0)),
            default=None,
        )

    def extended(self, record: dict[str, Any], steps: Mapping[str, np.ndarray]) -> "History":
        """Returns the history with one more epoch: its record, and the metrics of its steps."""
        longer = {
            name: np.append(self.steps.get(name, ()), values).astype(np.float32)
            for name, values in steps.items()
        }
        return dataclasses.replace(self, records=(*self.records, record), steps=longer)

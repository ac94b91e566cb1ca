"""Logs a study to Weights & Biases: a group with a run for each finished replica."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from mnist_flax.report.tracking import FINISH_SECONDS, Tracker
from mnist_flax.runtime.background import lower_priority
from mnist_flax.study.store import Replica, ReplicaStore


class StudyTracking:
    """Sends finished replicas to W&B, one after another on a thread.

    Args:
      store: knows the replicas' configurations, and notes which of them W&B has.
      line: prints a line.
    """

    def __init__(self, store: ReplicaStore, line: Callable[[str], None]):
        self._store, self._line = store, line
        self._say = functools.cache(line)  # prints a line once: W&B repeats some for every run
        self._sending: list[Future] = []
        self._thread = ThreadPoolExecutor(1, initializer=lower_priority)
        # In a sweep, W&B would give every run of this process the sweep's one identifier.
        os.environ.pop("WANDB_SWEEP_ID", None)

    def send(self, replica: Replica) -> None:
        """Queues a replica, unless W&B already has it."""
        config = self._store.config(replica.variant, replica.seed)
        if config.wandb.mode != "disabled" and not self._store.marker(replica).exists():
            self._sending.append(self._thread.submit(self._send, replica, config))

    def finish(self) -> None:
        """Waits up to two minutes for W&B."""
        if wait(self._sending, 0).not_done:
            self._line("Waiting for W&B")
        if left := wait(self._sending, FINISH_SECONDS).not_done:
            self._line(
                f"W&B does not have {len(left)} replicas yet; repeat the command to send them"
            )
        if any((self._store.folder / "wandb").glob("offline-*")):
            self._line(
                f"W&B: to upload offline runs: wandb sync {self._store.folder}/wandb/offline-*"
            )

    def _send(self, replica: Replica, config: ConfigDict) -> None:
        tracker = Tracker(
            config,
            str(self._store.folder),
            replica.run_id,
            name=f"{replica.variant}-seed{replica.seed}",
            extra_config={"variant": replica.variant, "data": replica.data},
            extra_tags=["sample"] * replica.data.startswith("SAMPLE"),
            say=self._say,
        )
        for record in replica.records:
            tracker.log(record["step"], {k: v for k, v in record.items() if v is not None})
        results = flatten_dict(replica.results, sep="_")
        if tracker.finish({**results, "train_seconds": replica.train_seconds}):
            self._store.marker(replica).touch()

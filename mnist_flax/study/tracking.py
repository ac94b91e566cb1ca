"""Logs a study to Weights & Biases: a group with a run for each finished replica."""

from collections.abc import Callable

from ml_collections import ConfigDict

from mnist_flax.report.service import give_up
from mnist_flax.report.tracking import Tracker
from mnist_flax.runtime.background import Background, is_done, lower_priority
from mnist_flax.study.store import Replica, ReplicaStore

_SIGNAL_SECONDS = 1  # how often to check for signals while waiting for W&B
_ABORT_SECONDS = 5  # how long to wait for W&B when a study is aborted


class StudyTracking:
    """Sends finished replicas to W&B in the background, until the first failure.

    Args:
      folder: the folder of the study.
      store: notes which replicas W&B has.
      config_of: returns the configuration of a replica, given its variant and seed.
      is_sample: whether the data are the bundled sample.
      line: prints a line.
    """

    def __init__(
        self,
        folder: str,
        store: ReplicaStore,
        config_of: Callable[[str, int], ConfigDict],
        is_sample: bool,
        line: Callable[[str], None],
    ):
        self._folder = folder
        self._store = store
        self._config_of = config_of
        self._tags = ["sample"] if is_sample else []
        self._line = line
        self._said: set[str] = set()  # W&B would repeat its messages for every run
        self._track = True
        self._is_offline = False
        self._background = Background("W&B stopped", line)
        self._background.submit(lower_priority)

    def send(self, replica: Replica) -> None:
        """Sends a replica to W&B, unless W&B already has it."""
        self._background.submit(self._send, replica)

    def finish(self, check: Callable[[], None]) -> None:
        """Waits for W&B, calling `check` every second; `check` may raise."""
        sent = self._background.submit(lambda: None)
        if not is_done(sent, _SIGNAL_SECONDS):
            self._line("Waiting for W&B")
        while not is_done(sent, _SIGNAL_SECONDS):
            check()
        self._background.close()
        if self._is_offline:
            command = f"wandb sync {self._folder}/wandb/offline-*"
            self._line(f"W&B: the runs are kept offline; to upload them: {command}")

    def abort(self) -> None:
        """Gives W&B a few seconds for what it does not have yet, then gives up."""
        self._track = False
        if not self._background.close(_ABORT_SECONDS):
            give_up()

    def _send(self, replica: Replica) -> None:
        config = self._config_of(replica.variant, replica.seed)
        is_wanted = self._track and config.wandb.mode != "disabled"
        if not is_wanted or self._store.is_tracked(replica):
            return
        tracker = Tracker(
            config,
            self._folder,
            replica.run_id,
            name=f"{replica.variant}-seed{replica.seed}",
            extra_config={"variant": replica.variant, "data": replica.data},
            extra_tags=self._tags,
            say=self._say,
        )
        for record in replica.records:
            tracker.log(record["step"], {k: v for k, v in record.items() if v is not None})
        results = {
            f"{split}_{key}": value
            for split, of_split in replica.results.items()
            for key, value in of_split.items()
            if value is not None
        }
        if tracker.finish(results | {"train_seconds": replica.train_seconds}):
            self._store.set_tracked(replica)
            self._is_offline |= bool(tracker.offline_folder)
        else:
            self._track = False  # the other replicas would wait and fail in the same way

    def _say(self, text: str) -> None:
        """Prints a line unless it was printed before."""
        if text not in self._said:
            self._said.add(text)
            self._line(text)

"""Logs to Weights & Biases; whatever happens to W&B, training continues."""

import concurrent.futures
import contextlib
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ml_collections import ConfigDict

from mnist_flax.data import Dataset
from mnist_flax.evaluate import Evaluation
from mnist_flax.history import History
from mnist_flax.report.observers import ABORT_SECONDS, Observer, Pictures
from mnist_flax.runtime.background import IMPORTING, attempt, lower_priority

_INIT_SECONDS = 30  # how long to wait for the server; then the run is kept offline
FINISH_SECONDS = 120  # how long to wait for the rest of the upload, at the end

Job = Callable[[Any, Any], None]  # is given the package `wandb` and the run


class Tracker:
    """Logs one W&B run from its own thread; only `finish` ever waits for W&B.

    The first failure is reported and ends the tracking. With mode 'disabled', W&B is not even
    imported.

    Attributes:
      has_stopped: whether nothing more is logged.
      offline_folder: the folder of a finished run that has yet to be uploaded; otherwise empty.

    Args:
      config: the whole configuration, with the group `wandb`.
      workdir: the folder for W&B's files; they go into `wandb` in it.
      run_id: the identifier of the run; W&B resumes a run that it knows.
      name: the name of the run.
      extra_config: added to the configuration that W&B shows.
      extra_tags: added to `config.wandb.tags`.
      say: prints a line.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str,
        run_id: str,
        name: str,
        extra_config: Mapping[str, Any],
        extra_tags: Sequence[str],
        say: Callable[[str], None],
    ):
        self.has_stopped = config.wandb.mode == "disabled"
        self._is_alone = False
        self.offline_folder = self._folder = ""
        self._say = say
        self._wandb: Any = None
        self._run: Any = None
        self._thread = ThreadPoolExecutor(1, initializer=lower_priority)
        tags = [tag.strip() for text in config.wandb.tags for tag in text.split(",")]
        fields = ("project", "entity", "group", "job_type", "notes")
        self._settings = {field: config.wandb[field] or None for field in fields} | {
            "tags": [*filter(None, tags), *extra_tags],
            "config": config.to_dict() | dict(extra_config),
            "id": run_id,
            "resume": "allow",
            "name": name,
            "dir": workdir,
            # A run that is already active in this process, such as a notebook's own, continues.
            "reinit": "create_new",
        }
        self.do(lambda wandb, run: self._start(config.wandb.mode))

    def do(self, job: Job) -> Future | None:
        """Calls `job` on the tracker's thread, unless W&B has stopped; returns its future."""

        def guarded() -> None:
            if self.has_stopped:
                return
            try:
                job(self._wandb, self._run)
            except (Exception, SystemExit) as error:  # W&B may exit with its service's status
                self.has_stopped = True
                self._say(f"W&B stopped: {_one_line(error)}")
                with contextlib.suppress(Exception, SystemExit):
                    self._leave()

        return None if self.has_stopped else self._thread.submit(guarded)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values to a step, which must be the last one logged."""
        self.do(lambda wandb, run: run.log(dict(values), step=step))

    def finish(
        self, summary: Mapping[str, Any], exit_code: int = 0, timeout: float = FINISH_SECONDS
    ) -> bool:
        """Sends what is left and ends the run; gives up on W&B after the timeout, in seconds.

        Args:
          summary: the results of the run, numbers and strings.
          exit_code: any value but 0 marks the run as failed.
          timeout: how long to wait, in seconds.

        Returns:
          Whether W&B has everything, in its offline folder or on its server.
        """

        def end(wandb: Any, run: Any) -> None:
            run.summary.update(dict(summary))
            run.finish(exit_code=exit_code)
            self.offline_folder = self._folder if run.offline else ""
            self._leave()

        ended = self.do(end)
        has_hung = bool(ended and concurrent.futures.wait([ended], timeout).not_done)
        if has_hung:
            left = f"; to upload what is left: wandb sync {self._folder}" if self._folder else ""
            self._say(f"W&B does not answer{left}")
        self._thread.shutdown(wait=False, cancel_futures=True)
        return not (has_hung or self.has_stopped)

    def _start(self, mode: str) -> None:
        with IMPORTING:
            import wandb
        self._wandb = wandb
        try:
            self._run = self._init(mode)
        except Exception as error:
            if mode == "offline":
                raise
            self._say(f"W&B cannot start online ({_one_line(error)}), so the run is kept offline")
            self._leave()  # otherwise the identifier of the run would be in use
            self._run = self._init("offline")
        _define_axes(self._run)
        self._folder = os.path.relpath(self._run.settings.sync_dir)
        if not self._run.offline and self._run.url:
            self._say(f"W&B: {self._run.url}")

    def _init(self, mode: str) -> Any:
        """Starts a W&B run; without a login, 'online' and 'auto' mean offline."""
        wandb = self._wandb
        self._is_alone = "WANDB_SERVICE" not in os.environ  # no other run is using W&B's service
        quiet = wandb.Settings(silent=True, console="off", init_timeout=_INIT_SECONDS)
        setup = wandb.setup(quiet if self._is_alone else None)
        wanted = setup.settings.mode if mode == "auto" else mode  # WANDB_MODE, or W&B's own files
        if wanted not in ("offline", "dryrun", "disabled"):
            other = wandb.run  # while a run is active, `login` has no effect
            if other.offline if other else not wandb.login(prompt=False, verify=False):
                wanted = "offline"
                if mode == "online":
                    self._say("W&B: not logged in (wandb login), so the run is kept offline")
        return wandb.init(**self._settings, mode=wanted, settings=quiet)

    def _leave(self) -> None:
        """Ends W&B's service, with our settings: a notebook may have a run of its own next."""
        if self._is_alone:
            self._wandb.teardown()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")


def _define_axes(run: Any) -> None:
    """Makes W&B plot the metrics of epochs against epochs; those of steps stay against steps."""
    run.define_metric("epoch", hidden=True)
    for name in ("train/epoch_*", "validation/*", "test/*", "learning_rate", "seconds"):
        run.define_metric(name, step_metric="epoch")
    run.define_metric("images_per_second", step_metric="epoch", summary="mean")
    for split in ("validation", "test"):
        run.define_metric(f"{split}/accuracy", step_metric="epoch", summary="max,last")
        run.define_metric(f"{split}/loss", step_metric="epoch", summary="min,last")


@dataclasses.dataclass
class WandB(Observer):
    """Logs a run to W&B, with the steps in order."""

    tracker: Tracker
    dataset: Dataset  # holds the images for the table of misclassified digits
    pictures: Pictures  # to log when they are drawn
    folder: pathlib.Path  # of the run, with its page and checkpoints
    models: str  # the checkpoints to log: 'none', 'best' or 'all'
    line: Callable[[str], None]  # prints a line

    def start(self, history: History) -> None:
        for epoch in range(1, history.epoch + 1):
            self._log_epoch(history, epoch)
        if not history.epoch:
            self._log_pictures(0, "augmentation")

    def epoch(self, history: History, test: Evaluation) -> None:
        self._log_epoch(history, history.epoch)  # first, so that it does not wait for drawings
        self._log_pictures(history.records[-1]["step"], "predictions")
        if self.models == "all":
            self._log_model(history, history.epoch)

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        step, page = history.records[-1]["step"], self.folder / "report.html"
        self._log_pictures(step, "misclassified", "confusion")

        def log(wandb: Any, run: Any) -> None:
            run.log({"misclassified_table": self._table(wandb, test)}, step=step)
            if page.exists():
                run.log({"report": wandb.Html(page.read_text("utf-8"), inject=False)}, step=step)

        self.tracker.do(log)
        if self.models == "best":
            self._log_model(history)
        if not self.tracker.has_stopped:
            self.line(f"Waiting for W&B, at most {FINISH_SECONDS // 60} minutes")
        self._finish({k: v for k, v in summary.items() if isinstance(v, int | float | str)})

    def abort(self) -> None:
        self._finish({}, exit_code=1, timeout=ABORT_SECONDS)

    def _finish(self, summary: dict[str, Any], **options: Any) -> None:
        self.tracker.finish(summary, **options)
        if folder := self.tracker.offline_folder:
            self.line(f"W&B: the run is kept offline; to upload it: wandb sync {folder}")

    def _log_epoch(self, history: History, epoch: int) -> None:
        """Logs an epoch and its steps; W&B skips the ones it already has."""
        record, count = history.records[epoch - 1], history.steps_per_epoch
        steps = {}
        for name, values in history.steps.items():
            # Counted from the end: a metric that was added during the run has only the last steps.
            end = len(values) - (history.epoch - epoch) * count
            if end >= count:
                steps[f"train/{name}"] = values[end - count : end].tolist()
        # Each step already logs train/loss and train/accuracy, so the epoch's means are renamed.
        renamed = {k.replace("train/", "train/epoch_"): v for k, v in record.items() if k != "step"}

        def log(wandb: Any, run: Any) -> None:
            first = record["step"] - count + 1
            for step, values in enumerate(zip(*steps.values(), strict=True), first):
                run.log(dict(zip(steps, values, strict=True)), step=step)
            run.log(renamed, step=record["step"])

        self.tracker.do(log)

    def _log_model(self, history: History, epoch: int | None = None) -> None:
        """Logs a checkpoint, or the best one, as an artifact that `predict.load` can read.

        It is read now, because the run may delete it.
        """
        best = (history.best or {})["epoch"]
        epoch = epoch or best
        path = self.folder / "checkpoints" / f"{epoch}.msgpack"
        aliases = ["latest", "best"] if epoch == best else ["latest"]
        if self.tracker.has_stopped:
            return
        model = attempt(f"W&B gets no model of epoch {epoch}", self.line, path.read_bytes)

        def log(wandb: Any, run: Any) -> None:
            artifact = wandb.Artifact(f"model-{run.id}", "model", metadata={"epoch": epoch})
            with artifact.new_file(path.name, "xb") as file:
                file.write(model)
            run.log_artifact(artifact, aliases=aliases)

        if model:
            self.tracker.do(log)

    def _log_pictures(self, step: int, *names: str) -> None:
        drawn = {name: self.pictures.drawn[name] for name in names if name in self.pictures.drawn}

        def log(wandb: Any, run: Any) -> None:
            from PIL import Image

            with contextlib.suppress(concurrent.futures.CancelledError):  # an aborted run's
                for name, picture in drawn.items():
                    if png := picture.result():
                        run.log({name: wandb.Image(Image.open(io.BytesIO(png)))}, step=step)

        self.tracker.do(log)

    def _table(self, wandb: Any, test: Evaluation) -> Any:
        """Returns the misclassified digits: image, label, prediction, classes' probabilities."""
        names, rows = self.dataset.class_names, []
        for index in test.misclassified:
            image, label = (array[index] for array in self.dataset.test)
            classes = names[label], names[test.predictions[index]]
            rows.append([wandb.Image(image[..., 0]), *classes, *test.probabilities[index].tolist()])
        columns = ["image", "label", "prediction", *(f"p({name})" for name in names)]
        return wandb.Table(columns=columns, data=rows)


def run_name(config: ConfigDict, dataset: Dataset) -> str:
    """Returns a name for a W&B run, made of the fields that usually differ between runs."""
    name = "mnist-sample" if dataset.source == "sample" else dataset.name
    augmentation = "augmented" if config.augment.enabled else "plain"
    model = config.model
    return f"{name}-{model.norm}-{model.downsample}-{augmentation}-seed{config.seed}"

"""Logs a run to Weights & Biases; whatever happens to W&B, training continues."""

import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mnist_flax.data import Dataset
from mnist_flax.report import media, service
from mnist_flax.runtime.background import Background, attempt, lower_priority

_FINISH_SECONDS = 120  # how long to wait for the rest of the upload, at the end


class Tracker:
    """Logs one W&B run from its own thread; only `finish` ever waits for W&B.

    The first failure is reported and ends the tracking. With mode 'disabled', W&B is not even
    imported.

    Attributes:
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
        self.offline_folder = ""
        self._run: Any = None
        self._folder = ""  # W&B's folder of the run
        self._say = say
        self._background = None
        if config.wandb.mode == "disabled":
            return
        self._background = Background("W&B stopped", say, stop_on_error=True)
        self._background.submit(lower_priority)
        tags = [tag.strip() for text in config.wandb.tags for tag in text.split(",")]
        settings = {
            "project": config.wandb.project,
            "entity": config.wandb.entity or None,
            "group": config.wandb.group or None,
            "job_type": config.wandb.job_type or None,
            "notes": config.wandb.notes or None,
            "tags": [*filter(None, tags), *extra_tags],
            "config": config.to_dict() | dict(extra_config),
            "id": run_id,
            "resume": "allow",
            "name": name,
            "dir": workdir,
        }
        self._background.submit(self._start, config.wandb.mode, settings)

    def log_steps(self, first: int, losses: np.ndarray, accuracies: np.ndarray) -> None:
        """Logs `train/loss` and `train/accuracy` of steps; W&B skips the ones it already has.

        Args:
          first: the number of the first step, counted from 1 over the whole run.
          losses: `[steps]`.
          accuracies: `[steps]`, 0..1.
        """

        def log() -> None:
            for step, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), first):
                values = {"train/loss": float(loss), "train/accuracy": float(accuracy)}
                self._run.log(values, step=step)

        self._submit(log)

    def log(self, step: int, values: Mapping[str, media.Value]) -> None:
        """Adds values to a step, which must be the last one logged.

        The future of a PNG is logged as a picture, and left out if drawing it fails. A function is
        called on the tracker's thread, and what it returns is logged.
        """

        def log() -> None:
            ready = {k: v for k, v in values.items() if not media.has_failed(v)}
            if ready:
                self._run.log({k: media.value(v) for k, v in ready.items()}, step=step)

        self._submit(log)

    def log_model(self, workdir: pathlib.Path, epoch: int, is_best: bool) -> None:
        """Logs a checkpoint as an artifact: a folder that `predict.load` can read.

        It is copied at once; if that fails, for example on a full disk, it is left out.

        Args:
          workdir: the folder of the run.
          epoch: the epoch of the checkpoint.
          is_best: whether the artifact gets the alias `best` as well as `latest`.
        """

        if self._background is None:
            return
        what = f"copying the model of epoch {epoch} for W&B failed"
        copy = attempt(what, self._say, media.copy_model, workdir, epoch)
        if copy is None:
            return

        def log() -> None:
            artifact = media.model(f"model-{self._run.id}", copy, epoch)
            self._run.log_artifact(artifact, aliases=["latest", *(["best"] if is_best else [])])

        logged = self._background.submit(log)
        logged.add_done_callback(lambda _: shutil.rmtree(copy, ignore_errors=True))

    def finish(
        self, summary: Mapping[str, Any], exit_code: int = 0, timeout: float | None = None
    ) -> bool:
        """Sends what is left and ends the run; gives up on W&B after the timeout.

        Args:
          summary: the results of the run, numbers and strings.
          exit_code: any value but 0 marks the run as failed.
          timeout: how long to wait, in seconds; None: two minutes.

        Returns:
          Whether W&B has everything, in its offline folder or on its server.
        """
        if self._background is None:
            return False

        def finish() -> None:
            self._run.summary.update(dict(summary))
            self._run.finish(exit_code=exit_code)
            if self._run.settings.mode == "offline":
                self.offline_folder = self._folder
            service.leave()

        self._submit(finish)
        answered = self._background.close(_FINISH_SECONDS if timeout is None else timeout)
        if not answered:
            left = f"; upload what is left: wandb sync {self._folder}" if self._folder else ""
            self._say(f"W&B does not answer{left}")
            service.give_up()  # otherwise Python would wait for W&B forever at its exit
        elif self._background.failed and not service.services():
            service.give_up()  # otherwise W&B's exit hook would print a traceback
        return answered and not self._background.failed

    def _submit(self, job: Callable[[], None]) -> None:
        if self._background is not None:
            self._background.submit(job)

    def _start(self, mode: str, settings: dict[str, Any]) -> None:
        self._run = service.start(mode, settings, self._say)
        _define_axes(self._run)
        self._folder = os.path.relpath(self._run.settings.sync_dir)
        if self._run.url:
            self._say(f"W&B: {self._run.url}")


def run_name(config: ConfigDict, dataset: Dataset) -> str:
    """Returns a name for a W&B run, made of the fields that usually differ between runs."""
    name = "mnist-sample" if dataset.source == "sample" else dataset.name
    augmentation = "augmented" if config.augment.enabled else "plain"
    model = config.model
    return f"{name}-{model.norm}-{model.downsample}-{augmentation}-seed{config.seed}"


def _define_axes(run: Any) -> None:
    """Makes W&B plot the metrics of epochs against epochs; those of steps stay against steps."""
    run.define_metric("epoch", hidden=True)
    for name in ("train/epoch_*", "validation/*", "test/*", "learning_rate", "seconds"):
        run.define_metric(name, step_metric="epoch")
    run.define_metric("images_per_second", step_metric="epoch", summary="mean")
    for split in ("validation", "test"):
        run.define_metric(f"{split}/accuracy", step_metric="epoch", summary="max,last")
        run.define_metric(f"{split}/loss", step_metric="epoch", summary="min,last")

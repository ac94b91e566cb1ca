"""Weights & Biases, beside the run: whatever happens to it, training continues."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import psutil
from ml_collections import ConfigDict

from mnist_flax.data import Dataset
from mnist_flax.runtime.background import IMPORTING, Background, lower_priority

_INIT_SECONDS = 30  # for the server to answer; then the run is kept offline
_FINISH_SECONDS = 120  # for the rest of the upload, at the end


class Tracker:
    """One W&B run, logged from a thread of its own; only `finish` ever waits for it.

    The first failure is reported and ends the tracking. With mode 'disabled', the package is not
    even imported.

    Attributes:
      offline_folder: of a finished run that waits to be uploaded; else empty.

    Args:
      config: the whole configuration, with the group `wandb`.
      workdir: where the run's files go, in a folder `wandb`.
      run_id: of the run; W&B resumes one that it knows.
      name: of the run.
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
        self._folder = ""  # of the run
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
            "tags": [*filter(None, tags), *extra_tags],
            "config": config.to_dict() | dict(extra_config),
            "id": run_id,
            "resume": "allow",
            "name": name,
            "dir": workdir,
        }
        self._background.submit(self._start, config.wandb.mode, settings)

    def log_steps(self, first: int, losses: np.ndarray, accuracies: np.ndarray) -> None:
        """Logs `train/loss` and `train/accuracy` of steps; W&B skips those that it has.

        Args:
          first: the first step's number, from 1 over the whole run.
          losses: `[steps]`.
          accuracies: `[steps]`, 0..1.
        """

        def log() -> None:
            for step, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), first):
                values = {"train/loss": float(loss), "train/accuracy": float(accuracy)}
                self._run.log(values, step=step)

        self._submit(log)

    def log(self, step: int, values: Mapping[str, float | Future[bytes]]) -> None:
        """Adds values to a step, the last one logged.

        The future of a PNG becomes a picture, unless it cannot be drawn.
        """

        def log() -> None:
            ready = {k: v for k, v in values.items() if not _has_failed(v)}
            if ready:
                self._run.log({k: _media(v) for k, v in ready.items()}, step=step)

        self._submit(log)

    def log_misclassified(
        self,
        step: int,
        images: np.ndarray,
        labels: np.ndarray,
        probabilities: np.ndarray,
        class_names: Sequence[str],
    ) -> None:
        """Logs a table of digits: image, label, prediction and the classes' probabilities.

        Args:
          step: the last one logged.
          images: uint8 `[n, height, width, 1]`.
          labels: int `[n]`.
          probabilities: `[n, classes]`.
          class_names: the classes' names.
        """

        def log() -> None:
            import wandb

            rows = [
                [
                    wandb.Image(image[..., 0]),
                    class_names[label],
                    class_names[probability.argmax()],
                    *probability.tolist(),
                ]
                for image, label, probability in zip(images, labels, probabilities, strict=True)
            ]
            columns = ["image", "label", "prediction", *(f"p({name})" for name in class_names)]
            table = wandb.Table(columns=columns, data=rows)
            self._run.log({"misclassified_table": table}, step=step)

        self._submit(log)

    def finish(
        self, summary: Mapping[str, Any], exit_code: int = 0, timeout: float | None = None
    ) -> bool:
        """Sends what is left and ends the run; gives W&B up after the timeout.

        Args:
          summary: the run's results, numbers and texts.
          exit_code: any but 0 marks the run as failed.
          timeout: seconds; None for two minutes.

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

        self._submit(finish)
        answered = self._background.close(_FINISH_SECONDS if timeout is None else timeout)
        if not answered:
            left = f"; upload what is left: wandb sync {self._folder}" if self._folder else ""
            self._say(f"W&B does not answer{left}")
            give_up()  # otherwise Python would wait for it for ever when it exits
        elif self._background.failed and not _services():
            give_up()  # otherwise its exit hook would print a traceback
        return answered and not self._background.failed

    def _submit(self, job: Callable[[], None]) -> None:
        if self._background is not None:
            self._background.submit(job)

    def _start(self, mode: str, settings: dict[str, Any]) -> None:
        with IMPORTING:
            import wandb

        variables = [name for name in os.environ if name.startswith("WANDB_")]
        try:
            self._run = _init(wandb, mode, settings, self._say)
        except Exception as error:  # W&B has errors of many kinds for settings that it refuses
            is_setting = not isinstance(error, wandb.errors.CommError)
            is_setting |= isinstance(error, wandb.errors.AuthenticationError)
            if mode == "offline" and not (is_setting and variables):
                raise  # it would fail again
            what = "it cannot start as it is set up" if is_setting else "no connection"
            reason = _one_line(str(error)) or type(error).__name__
            self._say(f"W&B: {what} ({reason}), so the run is kept offline")
            give_up()  # otherwise the run's name is still taken
            for name in variables if is_setting else ():
                os.environ.pop(name, None)
            self._run = _init(wandb, "offline", settings, self._say)
        self._folder = os.path.relpath(self._run.settings.sync_dir)
        if self._run.url:
            self._say(f"W&B: {self._run.url}")


class _Warnings:
    """Prints what W&B warns about while it starts, a line each, after what it was doing."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._doing = ""

    def info(self, message: str) -> None:
        """Notes what W&B says that it is doing."""
        self._doing = f"{_one_line(message)}: "

    def warning(self, message: str) -> None:
        """Prints a line."""
        self._say(f"W&B: {self._doing}{_one_line(message)}")

    error = warning


def _init(wandb: Any, mode: str, settings: dict[str, Any], say: Callable[[str], None]) -> Any:
    """Starts a W&B run, offline if `mode` is 'online' or 'auto' and nobody is logged in."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "") or "auto"
    known = {} if mode == "auto" else {"mode": mode}
    quiet = wandb.Settings(silent=True, console="off", init_timeout=_INIT_SECONDS, **known)
    wandb.termsetup(quiet, _Warnings(say))
    wandb.setup(quiet)
    wandb.termsetup(quiet, _Warnings(say))  # `setup` puts W&B's own logger back
    if token := os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        open(token).close()  # W&B's service would crash
    if mode in ("auto", "online"):
        is_logged_in = wandb.login(prompt=False, verify=False)
        if not is_logged_in and mode == "online":
            say("W&B: not logged in (wandb login), so the run is kept offline")
        mode = "online" if is_logged_in else "offline"
    wandb.termsetup(quiet, None)  # what it has to say of the run itself is no news
    return wandb.init(**settings, mode=mode, settings=quiet)


def run_name(config: ConfigDict, dataset: Dataset) -> str:
    """Returns a name for a W&B run, made of what tells runs apart."""
    name = "mnist-sample" if dataset.source == "sample" else dataset.name
    augmentation = "augmented" if config.augment.enabled else "plain"
    model = config.model
    return f"{name}-{model.norm}-{model.downsample}-{augmentation}-seed{config.seed}"


def give_up() -> None:
    """Ends W&B's service process at once, and what W&B would do about that at the exit."""
    for service in _services():
        with contextlib.suppress(psutil.Error):
            service.kill()
    # W&B finds its service gone, and asks Python to exit with the service's status. There is no
    # such module if importing it failed.
    with contextlib.suppress(Exception, SystemExit):
        sys.modules["wandb"].teardown()


def _services() -> list[psutil.Process]:
    """Returns W&B's service processes that are alive."""
    try:
        children = psutil.Process().children(recursive=True)
    except (psutil.Error, OSError):  # where processes do not see each other
        return []
    return [child for child in children if _is_service(child)]


def _is_service(process: psutil.Process) -> bool:
    try:
        return "wandb" in process.name() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has ended
        return False


def _one_line(text: str) -> str:
    """Returns a message of W&B in one line, without what only its developers need."""
    noise = r"^wandb: (WARNING |ERROR )?| \[type=.*\]$"
    lines = [re.sub(noise, "", line).strip(" .:") for line in text.splitlines()]
    dull = r"\d+ validation errors? for Settings$|For further information|$"
    lines = [line for line in lines if not re.match(dull, line)]
    return ": ".join(lines[-1:] if "Traceback" in text else lines)


def _has_failed(value: float | Future[bytes]) -> bool:
    """Waits for a value that is a picture; whether it could not be drawn."""
    return isinstance(value, Future) and value.exception() is not None


def _media(value: float | Future[bytes]) -> Any:
    if not isinstance(value, Future):
        return value
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(value.result())))

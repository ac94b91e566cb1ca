"""One run as the training loop sees it: its folder, checkpoints, signals and observers."""

import contextlib
import functools
import hashlib
import math
import pathlib
import secrets
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import augment, data
from mnist_flax.errors import UserError
from mnist_flax.evaluate import Evaluation
from mnist_flax.history import History
from mnist_flax.report.observers import Console, Observer, Page, Pictures
from mnist_flax.report.page import content
from mnist_flax.report.progress import Progress
from mnist_flax.report.tracking import Tracker, WandB, run_name
from mnist_flax.run import fields
from mnist_flax.run.checkpoint import Checkpoints
from mnist_flax.run.configs import default_values, flatten
from mnist_flax.run.resuming import check_data, to_json
from mnist_flax.run.summary import describe, summarize
from mnist_flax.run.workdir import DATASET, REPLICAS, Workdir
from mnist_flax.runtime import compilation, hosts, memory, process, signals
from mnist_flax.runtime.signals import Interrupted
from mnist_flax.step import StepMetrics, TrainState
from mnist_flax.streams import Stream


class Session:
    """A run, as a context manager around its loop, with the arguments of `train.run`.

    All processes of the run call the same methods.

    Raises:
      UserError: on entering, if the configuration is invalid, or `workdir` holds another run or
        cannot be written.
      Interrupted: a signal stopped the run.
    """

    together = staticmethod(hosts.together)  # an error in one process is raised in all of them

    def __init__(self, config: ConfigDict, workdir: str):
        self._config, self._given, self._path = config, workdir, pathlib.Path()
        self._folder: Workdir | None = None  # only in process 0, which writes, tracks and draws
        self._history = History()
        self._has_begun = False
        self._observers: list[Observer] = []
        self._stack, self._deferred = contextlib.ExitStack(), contextlib.ExitStack()

    def __enter__(self) -> "Session":
        fields.check(self._config)
        compilation.set_up()
        with self.together():
            if hosts.is_main():
                self._folder = Workdir(self._given, self._config.to_dict())
                self._stack.callback(self._folder.close)
        return self

    def open(self, dataset: data.Dataset) -> None:
        """Creates the folder, unless it is that of a run to resume.

        Args:
          dataset: the data to train and test on.

        Raises:
          UserError: the folder is in use or cannot be written, or the processes disagree.
        """
        config, text = self._config, to_json(self._config.to_dict())
        hosts.check_same(hashlib.sha256(text.encode()).hexdigest(), "configuration")
        self._dataset, self._identity = dataset, dataset.identity
        hosts.check_same(self._identity, "dataset")
        with self.together():
            if self._folder is not None:
                self._folder.open()
                self._path = self._folder.path
                if (self._path / REPLICAS).exists():
                    raise UserError(f"--workdir={self._path} holds a study; choose a new folder")
        self._path = pathlib.Path(hosts.gather(str(self._path))[0])
        self._progress = Progress(config.num_epochs, len(dataset.train), self._folder is None)
        self._stack.callback(self._progress.close)
        if self._folder is not None:
            self._folder.announce(self.line)
        if process.repeating_command():  # a command started the run
            self.line(f"To resume it: {process.resuming_command(str(self._path))}")
        self.line(dataset.description)

    def line(self, text: str) -> None:
        """Prints a line, in process 0."""
        self._progress.line(text)

    def restore(self, state: TrainState) -> TrainState:
        """Returns the state of the last complete checkpoint, or `state` for a new run.

        Raises:
          UserError: the checkpoints cannot be read, or come from other data.
        """
        self._checkpoints = Checkpoints(self._path / "checkpoints", self._config.checkpoint.keep)
        run_id = hosts.gather(secrets.token_hex(4))[0]
        with self.together():
            must_exist = self._folder is not None and self._folder.has_metrics
            restored = self._checkpoints.restore(state, must_exist, self.line)
            state, self._history = restored or (state, History(run_id, self._identity))
            check_data(f"--workdir={self._path}", self._history.data, self._identity)
            if self._folder is not None:
                self._folder.write_json(DATASET, describe(self._dataset)._asdict())
                has_epochs = self._history.epoch < self._config.num_epochs
                is_finished = self._folder.is_finished and not has_epochs
                if not is_finished:
                    self._folder.reopen(self._history.records)
                run = (self._path, self._history.run_id, self._progress, is_finished)
                self._observers = _create_observers(self._config, self._dataset, *run)
            for observer in self._observers:
                observer.start(self._history)
        self._deferred.enter_context(signals.deferred())
        self._has_begun = True
        if restored is None:
            # So that a run that stops in its first epoch resumes under the same name in W&B.
            self._save(state)
        return state

    def epochs(self) -> Iterator[int]:
        """Yields the epochs that are left, from 1 for a new run."""
        for epoch in range(self._history.epoch + 1, self._config.num_epochs + 1):
            self._progress.start_epoch(epoch)
            yield epoch

    def on_step(self, images: int, metrics: StepMetrics | None) -> None:
        """Shows how many images of the epoch are done, and stops the run if it has to.

        The metrics are the last step's, or None if the host has not waited for it.

        Raises:
          UserError: the loss is no longer finite.
          Interrupted: a signal asked the run to stop.
        """
        if metrics is not None:
            self._progress.update(images, metrics._asdict())
            if not math.isfinite(metrics.loss):
                raise _diverged(self._config, self._history.epoch + 1)
        if metrics is not None or jax.process_count() == 1:
            self._check_signals()

    def end_epoch(
        self, state: TrainState, record: dict[str, Any], steps: StepMetrics, test: Evaluation
    ) -> None:
        """Saves the state, then tells the observers.

        `record` is a line of metrics.jsonl; `steps` are the metrics of each step, `[steps]`.

        Raises:
          UserError: a number is not finite, or the state cannot be saved.
        """
        if not all(map(math.isfinite, record.values())):
            raise _diverged(self._config, record["epoch"])
        self._history = self._history.extended(record, steps._asdict())
        self._save(state)
        with self.together():
            if self._folder is not None:
                self._folder.write_metrics(self._history.records)
            for observer in self._observers:
                observer.epoch(self._history, test)

    def finish(self, state: TrainState, test: Evaluation, compile_seconds: float) -> None:
        """Writes the results."""
        self._check_signals()
        self._deferred.close()
        if self._folder is None:
            return
        # A run that had already finished keeps its times, machine and versions.
        summary = self._folder.read_summary() or {
            **summarize(self._config, self._dataset, self._history, test),
            "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "compile_seconds": compile_seconds,
        }
        self._folder.write_json("summary.json", summary)
        variables = jax.device_get(state.eval_variables)
        for observer in self._observers:
            observer.finish(self._history, test, summary, variables)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._deferred.close()
        if error is not None:
            for observer in self._observers:
                observer.abort()
        self._stack.close()
        if isinstance(error, Interrupted) and self._has_begun:
            progress = f"after epoch {self._history.epoch} of {self._config.num_epochs}"
            raise Interrupted(error.number, progress, str(self._path)) from None
        if explained := memory.exhausted(error):
            raise explained from error

    def _save(self, state: TrainState) -> None:
        variables = jax.tree.leaves(jax.device_get((state.params, state.batch_stats)))
        if not all(np.isfinite(leaf).all() for leaf in variables):
            raise _diverged(self._config, self._history.epoch)
        with self.together():
            if self._folder is not None:
                about = describe(self._dataset)._asdict()
                self._checkpoints.save(state, self._history, self._config.to_dict(), about)

    def _check_signals(self) -> None:
        if number := max(map(int, hosts.gather(str(signals.received())))):
            raise Interrupted(number)


def _diverged(config: ConfigDict, epoch: int) -> UserError:
    rate = config.optimizer.learning_rate
    return UserError(
        f"loss or parameters became NaN or infinite in epoch {epoch}; try a lower "
        f"config.optimizer.learning_rate (now {rate})"
    )


def _create_observers(
    config: ConfigDict,
    dataset: data.Dataset,
    path: pathlib.Path,
    run_id: str,
    progress: Progress,
    is_finished: bool,
) -> list[Observer]:
    """Returns the observers in the order in which they are told.

    A finished run is only drawn again.
    """
    line = progress.line
    create = functools.partial(examples, config, dataset.train.images[0])
    create_examples = functools.cache(create) if config.augment.enabled else None
    pictures = Pictures(path / "figures", dataset, create_examples, line)
    values = flatten(config)
    create_run = functools.partial(
        content.Run,
        config={name: values[name] for name in fields.FIELDS},
        default=default_values(),
        command=process.repeating_command(),
        dataset=dataset,
        create_examples=create_examples,
    )
    page = Page(path / "report.html", create_run, line)
    console = Console(progress, config.num_epochs, dataset.title, path, is_finished)
    if is_finished:
        return [pictures, page, console]
    tracker = Tracker(
        config,
        str(path),
        run_id,
        name=run_name(config, dataset),
        extra_config={"data": dataset.title, "data_source": dataset.source},
        extra_tags=["sample"] if dataset.source == "sample" else [],
        say=line,
    )
    wandb = WandB(tracker, dataset, pictures, path, config.wandb.log_model, line)
    # W&B logs the pictures, and can stall: everything else is on the disk and said by then.
    return [pictures, page, console, wandb]


def examples(config: ConfigDict, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image, uint8 `[side, side, 1]`, and 29 augmentations of it, for a picture."""
    copies = np.repeat(image[None], 29, axis=0)
    key = Stream.AUGMENTATION_SHEET.key(jax.random.key(config.seed))
    draw = functools.partial(augment.augment, config=config.augment)
    return image, np.asarray(jax.jit(draw)(key, copies))

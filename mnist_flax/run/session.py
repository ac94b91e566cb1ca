"""One run as the training loop sees it: its folder, checkpoints, signals and observers."""

import contextlib
import functools
import hashlib
import math
import os
import pathlib
import secrets
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
from ml_collections import ConfigDict

from mnist_flax import augment, data
from mnist_flax.errors import UserError
from mnist_flax.evaluate import Evaluation
from mnist_flax.report.observers import Console, Observer, Page, Pictures, WandB
from mnist_flax.report.page import content
from mnist_flax.report.progress import Progress
from mnist_flax.report.tracking import Tracker, run_name
from mnist_flax.run import fields
from mnist_flax.run.checkpoint import snapshot
from mnist_flax.run.configs import default_values, flatten
from mnist_flax.run.history import History
from mnist_flax.run.resuming import check_data
from mnist_flax.run.saver import Saver
from mnist_flax.run.summary import describe, summarize
from mnist_flax.run.workdir import DATASET, REPLICAS, Files, Workdir, check_workdir
from mnist_flax.runtime import compilation, hosts, memory, process, signals
from mnist_flax.runtime.signals import Interrupted, LostProcess
from mnist_flax.step import StepMetrics, TrainState

_SHARED_SECONDS = 10  # how long one host may take to see another's file


class Session:
    """A run, as a context manager around its loop. All processes of the run call the same methods.

    If an error or a signal ends the block, the checkpoint that is being saved is completed first.
    The arguments are those of `train.run`.

    Raises:
      UserError: on entering, if the configuration is invalid, or `workdir` holds another run or
        cannot be written.
      Interrupted: a signal stopped the run.
      LostProcess: another process failed or disappeared.
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
        with hosts.watched(), self.together():
            if hosts.is_main():
                check_workdir(self._given, self._config.to_dict())
        return self

    def open(self, dataset: data.Dataset) -> None:
        """Creates the folder, or opens the folder of the run to resume.

        Args:
          dataset: the data to train and test on.

        Raises:
          UserError: the folder is in use or cannot be written, or the processes disagree.
        """
        config = self._config
        hosts.check_same(hashlib.sha256(config.to_json().encode()).hexdigest(), "configuration")
        self._dataset, self._identity = dataset, dataset.identity
        hosts.check_same(self._identity, "dataset")
        self._path, self._folder = _open_folder(self._given, config, self._stack)
        self._progress = Progress(config.num_epochs, len(dataset.train), self._folder is None)
        self._stack.callback(self._progress.close)
        if self._folder is not None:
            self._folder.announce(self.line)
        self.line(dataset.description)

    def line(self, text: str) -> None:
        """Prints a line, in process 0."""
        self._progress.line(text)

    def restore(self, state: TrainState) -> TrainState:
        """Returns the state of the last complete checkpoint, or `state` for a new run.

        Raises:
          UserError: the checkpoints cannot be read, or come from other data.
        """
        self._saver = Saver(self._path / "checkpoints", self._config.checkpoint.keep)
        self._stack.callback(self._saver.close)
        run_id = hosts.gather(secrets.token_hex(4))[0]
        with self.together():
            must_exist = self._folder is not None and self._folder.has_metrics
            restored = self._saver.restore(state, must_exist, self.line)
            state, self._history = restored or (state, History(run_id, self._identity))
            check_data(f"--workdir={self._path}", self._history.data, self._identity)
            if self._folder is not None:
                self._observers = _create_observers(
                    self._config, self._dataset, self._folder, self._history, self._progress
                )
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
            self._progress.update(images, metrics.loss, metrics.accuracy)
            if not math.isfinite(metrics.loss):
                raise _diverged(self._config, self._history.epoch + 1)
        if metrics is not None or jax.process_count() == 1:
            self._check_signals()

    def end_epoch(
        self, state: TrainState, record: dict[str, Any], steps: StepMetrics, test: Evaluation
    ) -> None:
        """Saves the state in the background, then tells the observers.

        `record` is a line of metrics.jsonl; `steps` are the metrics of each step, `[steps]`.

        Raises:
          UserError: a number is not finite, or the previous epoch could not be saved.
        """
        if not all(map(math.isfinite, record.values())):
            raise _diverged(self._config, record["epoch"])
        self._saver.wait()
        self._history = self._history.extended(record, steps.loss, steps.accuracy)
        self._save(state, test)

    def finish(self, state: TrainState, test: Evaluation, compile_seconds: float) -> None:
        """Waits for the last checkpoint, and writes the results."""
        self._saver.wait()
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
            self._abort()
        self._stack.close()
        if isinstance(error, Interrupted) and self._has_begun:
            progress = f"after epoch {self._saver.saved_epochs} of {self._config.num_epochs}"
            raise Interrupted(error.number, progress, str(self._path)) from None
        if explained := memory.exhausted(error) or hosts.lost_process(error):
            raise explained from error

    def _save(self, state: TrainState, test: Evaluation | None = None) -> None:
        def tell() -> None:
            """Runs on the saving thread, when the checkpoint is complete."""
            if test is not None:
                for observer in self._observers:
                    observer.epoch(history, test)

        history = self._history
        copy, is_finite = snapshot(state)
        if not is_finite:
            raise _diverged(self._config, history.epoch)
        self._saver.save(copy, history, tell)

    def _check_signals(self) -> None:
        if number := max(map(int, hosts.gather(str(signals.received())))):
            raise Interrupted(number)

    def _abort(self) -> None:
        if self._has_begun and (error := self._saver.abort()):
            self.line(f"error: {error}")
        for observer in self._observers:
            observer.abort()


def _diverged(config: ConfigDict, epoch: int) -> UserError:
    rate = config.optimizer.learning_rate
    return UserError(
        f"the loss or the parameters are no longer finite in epoch {epoch}: "
        f"config.optimizer.learning_rate={rate} is too high"
    )


def _create_observers(
    config: ConfigDict,
    dataset: data.Dataset,
    folder: Workdir,
    history: History,
    progress: Progress,
) -> list[Observer]:
    """Returns the observers of a run, in the order in which they are told.

    A finished run is only drawn again.
    """
    line = progress.line
    folder.write_json(DATASET, describe(dataset)._asdict())
    create = functools.partial(augment.examples, config, dataset.train.images[0])
    create_examples = functools.cache(create) if config.augment.enabled else None
    pictures = Pictures(folder.figures, dataset, create_examples, line)
    is_finished = folder.is_finished and history.epoch >= config.num_epochs
    console = Console(progress, config.num_epochs, dataset.title, folder.path, is_finished)
    values = flatten(config)
    create_run = functools.partial(
        content.Run,
        config={name: values[name] for name in fields.FIELDS},
        default=default_values(),
        command=process.repeating_command(),
        dataset=dataset,
        create_examples=create_examples,
    )
    page = Page(folder.path / "report.html", create_run, line)
    if is_finished:
        return [pictures, page, console]
    tracker = Tracker(
        config,
        str(folder.path),
        history.run_id,
        name=run_name(config, dataset),
        extra_config={"data": dataset.title, "data_source": dataset.source},
        extra_tags=["sample"] if dataset.source == "sample" else [],
        say=line,
    )
    wandb = WandB(tracker, dataset, pictures, page, config.wandb.log_model, line)
    # W&B logs the pictures, and can stall: everything else is on the disk by then.
    return [pictures, Files(folder), page, wandb, console]


def _open_folder(
    given: str, config: ConfigDict, stack: contextlib.ExitStack
) -> tuple[pathlib.Path, Workdir | None]:
    """Returns the workdir's path in every process, and in process 0 also the folder to write."""
    folder, path = None, pathlib.Path()
    with hosts.together():
        if hosts.is_main():
            folder = Workdir(given, config.to_dict())
            stack.callback(folder.close)
            path = folder.path
            if (path / REPLICAS).exists():
                raise UserError(f"--workdir={path} holds a study; allowed: a new folder")
    path = _agree_on(path)
    LostProcess.workdir = str(path)
    return path, folder


def _agree_on(path: pathlib.Path) -> pathlib.Path:
    """Returns the workdir of process 0, once this process sees it too.

    Raises:
      UserError: this process does not see it.
    """
    if jax.process_count() == 1:
        return path
    path = pathlib.Path(hosts.gather(str(path.absolute()))[0])
    with hosts.together():
        deadline = time.monotonic() + _SHARED_SECONDS
        while not os.path.exists(path / "config.json"):
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {jax.process_index()} does not see {path}, the workdir of process "
                    "0; allowed: a --workdir that all hosts share"
                )
            time.sleep(0.1)
    return path

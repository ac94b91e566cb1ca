"""A run: the loop over epochs, from a configuration to what is left in the workdir."""

import functools
import hashlib
import math
import pathlib
import secrets
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import augment, data, evaluate
from mnist_flax.cli import fields as config_lib
from mnist_flax.errors import UserError
from mnist_flax.report.progress import Progress
from mnist_flax.report.report import Report
from mnist_flax.run.checkpoint import Checkpoints
from mnist_flax.run.history import History
from mnist_flax.run.workdir import REPLICAS, Workdir, check_workdir, versions
from mnist_flax.runtime import devices, hosts, signals
from mnist_flax.runtime.signals import Interrupted
from mnist_flax.trainer import Trainer

_NUM_AUGMENTATIONS = 29  # in augmentation.png
_ABORT_SECONDS = 10  # for a checkpoint under way when a run is broken off
_SHARED_SECONDS = 10  # for a file of one host to be seen by another


def run(config: ConfigDict, workdir: str) -> None:
    """Trains, evaluates after every epoch, and leaves figures and numbers in `workdir`.

    A run that was broken off in `workdir` goes on from its last complete checkpoint, to the same
    numbers as if it had not been.

    Args:
      config: as `configs/default.py` returns.
      workdir: a folder, new or that of the run to go on with; empty for a dated one under `runs/`.

    Raises:
      UserError: the configuration, the data or the folder cannot be used, or the loss diverges.
      Interrupted: a signal stopped it.
      LostProcess: another of its processes failed or is gone.
    """
    config_lib.check(config)
    with hosts.watched():
        with hosts.together():
            if hosts.is_main():
                check_workdir(workdir, config.to_dict())
            devices.use_compilation_cache()
            dataset = data.load(config.dataset, config.seed)
            num_images = len(dataset.train) + len(dataset.validation or ())
            config_lib.check_sizes(config, num_images, jax.device_count())
        hosts.check_same(hashlib.sha256(config.to_json().encode()).hexdigest(), "configuration")
        hosts.check_same(f"{dataset.title}, {dataset.mean}, {dataset.std}", "dataset")
        path, folder = _open_workdir(config, workdir)
        progress = Progress(config.num_epochs, len(dataset.train), quiet=folder is None)
        progress.line(f"Workdir: {path}")
        progress.line(data.describe(dataset))
        trainer = Trainer(config, dataset)
        progress.line(f"{devices.describe_devices()}, compiled in {trainer.compile_seconds:.1f} s")
        try:
            _Run(config, dataset, path, folder, trainer, progress).complete()
        finally:
            progress.close()
            trainer.close()


def _open_workdir(config: ConfigDict, workdir: str) -> tuple[pathlib.Path, Workdir | None]:
    """The path that all processes share, and in process 0 the folder to write."""
    folder = None
    with hosts.together():
        if hosts.is_main():
            folder = Workdir(workdir, config.to_dict())
            if (folder.path / REPLICAS).exists():
                raise UserError(f"--workdir={folder.path} holds a study; allowed: a new folder")
    path = folder.path if folder else pathlib.Path()
    if jax.process_count() > 1:
        path = pathlib.Path(hosts.gather(str(path.absolute()))[0])
    with hosts.together():
        deadline = time.monotonic() + _SHARED_SECONDS
        while not (path / "config.json").exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {jax.process_index()} does not see {path}, the workdir of process "
                    "0; allowed: a --workdir that all hosts share"
                )
            time.sleep(0.1)
    return path, folder


class _Run:
    """A run from its start, or from its last checkpoint.

    Args:
      config: the whole configuration.
      dataset: what to train and to test on.
      path: of the workdir.
      folder: the workdir in process 0, which alone writes, tracks and draws; else None.
      trainer: in the state before the first step.
      progress: what a person watches.

    Raises:
      UserError: the workdir's checkpoints cannot be read, or are of other data.
    """

    def __init__(
        self,
        config: ConfigDict,
        dataset: data.Dataset,
        path: pathlib.Path,
        folder: Workdir | None,
        trainer: Trainer,
        progress: Progress,
    ):
        self._config = config
        self._dataset = dataset
        self._path = path
        self._trainer = trainer
        self._progress = progress
        self._checkpoints = Checkpoints(path / "checkpoints", config.checkpoint.keep)
        self._report: Report | None = None
        run_id = hosts.gather(secrets.token_hex(4))[0]
        with hosts.together():
            restored = self._restore(folder)
            self._is_new = restored is None
            self._history = restored or History(run_id, dataset.title)
            self._saved_epochs = self._history.epoch
            was_trained = self._history.epoch >= config.num_epochs
            self._was_finished = folder is not None and was_trained and folder.is_finished
            if folder is not None:
                self._report = self._create_report(folder)

    def complete(self) -> None:
        """Trains the epochs that are left and leaves the results."""
        try:
            with signals.deferred():
                test = self._train()
            if self._report is not None:
                self._finish(self._report, test)
        except BaseException as error:
            self._abort()
            if isinstance(error, Interrupted):
                progress = f"after epoch {self._saved_epochs} of {self._config.num_epochs}"
                raise Interrupted(error.number, progress, str(self._path)) from None
            raise

    def _restore(self, folder: Workdir | None) -> History | None:
        """Takes up the last complete checkpoint; None if there is nothing to take up."""
        restored = self._checkpoints.restore(
            self._trainer.state_like,
            len(self._trainer.batches),
            must_exist=folder is not None and folder.has_metrics,
            warn=self._progress.line,
        )
        if restored is None:
            return None
        state, history = restored
        if history.data != self._dataset.title:
            raise UserError(
                f"--workdir={self._path} holds a run on {history.data}, and the data are now "
                f"{self._dataset.title}; allowed: the same data, or a new folder"
            )
        self._trainer.state = state
        return history

    def _create_report(self, folder: Workdir) -> Report:
        if not self._was_finished:
            folder.reopen()
        report = Report(
            self._config,
            folder,
            self._dataset,
            self._history.run_id,
            len(self._trainer.batches),
            self._progress.line,
            track=not self._was_finished,
        )
        if self._history.epoch:
            report.go_on(self._history)
            self._progress.line(
                "This run is finished; its pictures are drawn anew"
                if self._was_finished
                else f"Going on after epoch {self._history.epoch} of {self._config.num_epochs}"
            )
        if self._config.augment.enabled:
            report.augmentation(functools.partial(_augmentations, self._config, self._dataset))
        return report

    def _train(self) -> evaluate.Evaluation:
        """Trains the epochs that are left; returns the last one's results on the test set."""
        test = None
        if self._is_new:
            # So that a run broken off in its first epoch goes on under the same name in W&B.
            self._save(lambda: None)
        for epoch in range(self._history.epoch + 1, self._config.num_epochs + 1):
            test = self._train_epoch(epoch)
        self._wait_for_checkpoint()
        self._check_signals()
        if test is None:
            test = self._trainer.evaluate("test")
            if self._report is not None:
                self._report.redraw(self._history, test)
        return test

    def _train_epoch(self, epoch: int) -> evaluate.Evaluation:
        trainer = self._trainer
        self._progress.start_epoch(epoch)
        started = time.perf_counter() - trainer.compile_seconds
        metrics = trainer.train_epoch(epoch, self._progress, self._check_signals)
        seconds = time.perf_counter() - trainer.compile_seconds - started
        sizes = [size for _, size in trainer.batches]
        loss, accuracy = (float(np.average(values, weights=sizes)) for values in metrics)
        record = {
            "epoch": epoch,
            "step": epoch * len(sizes),
            "train/loss": loss,
            "train/accuracy": accuracy,
        }
        results = {name: trainer.evaluate(name) for name in trainer.splits}
        for name, result in results.items():
            record |= {f"{name}/loss": result.loss, f"{name}/accuracy": result.accuracy}
        if not all(map(math.isfinite, record.values())):
            raise trainer.diverged(epoch)
        record |= {
            "learning_rate": float(trainer.schedule((epoch - 1) * len(sizes))),
            "seconds": seconds,
            "images_per_second": sum(sizes) / seconds,
        }
        history = self._history.extended(record, *metrics)

        def on_saved() -> None:
            self._saved_epochs = epoch
            if self._report is not None:
                self._report.epoch(history, results["test"])
            self._progress.finish_epoch(record)

        self._wait_for_checkpoint()
        self._history = history
        self._save(on_saved)
        return results["test"]

    def _save(self, on_saved: Callable[[], None]) -> None:
        state, is_finite = self._trainer.copy_state()
        if not is_finite:
            raise self._trainer.diverged(self._history.epoch)
        self._checkpoints.save(state, self._history, on_saved)

    def _wait_for_checkpoint(self) -> None:
        with hosts.together():
            self._checkpoints.wait()

    def _check_signals(self) -> None:
        number = hosts.largest(signals.received())
        if number:
            raise Interrupted(number)

    def _finish(self, report: Report, test: evaluate.Evaluation) -> None:
        report.results(self._history.records[-1]["step"], test)
        self._progress.close()
        if not self._was_finished:
            report.finish(
                _summarize(self._config, self._dataset, self._trainer, self._history, test)
            )
        self._progress.line(
            f"Done: {test.accuracy:.2%} test accuracy, {len(test.misclassified):,} errors, on "
            f"{self._dataset.title}; results in {self._path}"
        )

    def _abort(self) -> None:
        """Brings to an end what is under way."""
        try:
            self._checkpoints.wait(_ABORT_SECONDS)
        except UserError as error:
            self._progress.line(f"error: {error}")
        self._progress.close()
        if self._report is not None:
            self._report.abort()


def _augmentations(config: ConfigDict, dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The first training image, and augmentations of it with the configured ranges."""
    original = dataset.train.images[0]
    copies = jnp.repeat(original[None], _NUM_AUGMENTATIONS, axis=0)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    augmented = jax.jit(functools.partial(augment.augment, config=config.augment))(key, copies)
    return original, np.asarray(augmented)


def _summarize(
    config: ConfigDict,
    dataset: data.Dataset,
    trainer: Trainer,
    history: History,
    test: evaluate.Evaluation,
) -> dict[str, Any]:
    best, records = history.best, history.records
    return {
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "title": dataset.title,
            "note": dataset.note,
            "train_size": len(dataset.train),
            "validation_size": len(dataset.validation or ()),
            "test_size": len(dataset.test),
        },
        "step": records[-1]["step"],
        "final_test_accuracy": test.accuracy,
        "final_test_loss": test.loss,
        "best_test_accuracy": best["test/accuracy"],
        "best_epoch": best["epoch"],
        "num_test_errors": len(test.misclassified),
        "class_accuracies": dict(zip(dataset.class_names, test.class_accuracies, strict=True)),
        "confusion_matrix": test.confusion.tolist(),
        "misclassified": test.misclassified.tolist(),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params)),
        "devices": [device.device_kind for device in jax.devices()],
        "compile_seconds": trainer.compile_seconds,
        "train_seconds": sum(record["seconds"] for record in records),
        "versions": versions(),
        "config": config.to_dict(),
    }

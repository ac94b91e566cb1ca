"""Runs a study: trains the replicas of a recipe and its variants, and reports on them."""

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import data, evaluate
from mnist_flax.cli import fields as config_lib
from mnist_flax.errors import UserError
from mnist_flax.report import tracking
from mnist_flax.report.progress import StudyProgress
from mnist_flax.report.tracking import Tracker
from mnist_flax.run.workdir import REPLICAS, Workdir, check_same, check_workdir, versions
from mnist_flax.runtime import devices, signals
from mnist_flax.runtime.background import Background
from mnist_flax.runtime.signals import Interrupted
from mnist_flax.study.findings import Findings
from mnist_flax.study.store import Replica, ReplicaStore, finite
from mnist_flax.trainer import Trainer

_MEMORY_SHARE = 0.9  # of a device's memory, for the largest program
_REPORT_SECONDS = 60  # at least, between the reports of a study that is going on
_SIGNAL_SECONDS = 1  # between looks for signals while W&B is waited for
_ABORT_SECONDS = 5  # for W&B, when a study is broken off


def run(config: ConfigDict, workdir: str, ensemble: bool = False) -> None:
    """Trains all replicas that are not finished in `workdir`, and reports on all that are.

    Args:
      config: as `configs/study.py` returns.
      workdir: a folder, new or that of the study to go on with; empty for a dated one.
      ensemble: whether to average networks too.

    Raises:
      UserError: the configuration, the data or the folder cannot be used.
      Interrupted: a signal stopped it.
    """
    config_lib.check(config)
    last_seed = config.seed + config.study.num_seeds - 1
    if not config_lib.FIELDS["seed"].accepts(last_seed):
        raise UserError(
            f"config.study.num_seeds={config.study.num_seeds} is not allowed with "
            f"config.seed={config.seed}; allowed: seeds below 2**32"
        )
    if ensemble and config.study.ensemble_size > config.study.num_seeds:
        raise UserError(
            f"config.study.ensemble_size={config.study.ensemble_size} is not allowed with "
            f"--ensemble; allowed: at most config.study.num_seeds={config.study.num_seeds}"
        )
    check_workdir(workdir, config.to_dict(), _may_differ)
    devices.use_compilation_cache()
    dataset = data.load(config.dataset, config.seed)
    num_images = len(dataset.train) + len(dataset.validation or ())
    for name, recipe in config_lib.recipes(config).items():
        if config.study.num_final_epochs > recipe.num_epochs:
            raise UserError(
                f"config.study.num_final_epochs={config.study.num_final_epochs} is not allowed; "
                f"allowed: at most the {recipe.num_epochs} epochs of {name}"
            )
        config_lib.check_sizes(recipe, num_images, jax.device_count())
    study = Study(config, dataset, Workdir(workdir, config.to_dict(), _may_differ), ensemble)
    with signals.deferred():
        study.complete()


def _may_differ(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """More seeds and other variants are welcome: each replica is checked by itself."""
    del before, now
    is_free = name.startswith(("study.", "wandb.", "checkpoint."))
    return is_free and name != "study.num_final_epochs"  # which decides what a replica's result is


class Study:
    """The replicas of a study, those that are finished and those to come.

    Args:
      config: the whole configuration.
      dataset: what to train and to evaluate on; the images set aside are the same for all.
      folder: the study's.
      ensemble: whether to average networks too.

    Raises:
      UserError: a finished replica is another's, or the folder is that of a run.
    """

    def __init__(self, config: ConfigDict, dataset: data.Dataset, folder: Workdir, ensemble: bool):
        if folder.has_metrics or (folder.path / "checkpoints").exists():
            raise UserError(f"--workdir={folder.path} holds a run; allowed: a new folder")
        self._dataset = dataset
        self._folder = folder
        self._settings = config.study
        self._recipes = config_lib.recipes(config)
        self._seeds = range(config.seed, config.seed + config.study.num_seeds)
        self._store = ReplicaStore(folder.path / REPLICAS)
        self._finished = {
            (name, seed): replica
            for name in self._recipes
            for seed in self._seeds
            if (replica := self._load(name, seed)) is not None
        }
        folder.reopen()
        self._findings = Findings(
            config, dataset, list(self._recipes), folder, self._store, ensemble
        )
        self._reported = time.monotonic()
        self._trainers: dict[tuple[str, int], Trainer] = {}
        self._most: dict[str, int] = {}  # replicas of a recipe that there is memory for
        left = [self._recipes[name].num_epochs for name, seeds in self._plan() for _ in seeds]
        self._progress = StudyProgress(
            len(dataset.train) * sum(left), self._num_replicas, len(self._finished)
        )
        self._track = True
        self._is_offline = False
        self._tracking = Background("W&B stopped", self._progress.line)

    @property
    def _num_replicas(self) -> int:
        return len(self._recipes) * len(self._seeds)

    def complete(self) -> None:
        """Trains the replicas that are left, and writes the findings."""
        say = self._progress.line
        try:
            say(f"Workdir: {self._folder.path}")
            say(data.describe(self._dataset))
            say(
                f"Study: {self._num_replicas} replicas (recipes: {len(self._recipes)}, seeds: "
                f"{len(self._seeds)}), {len(self._finished)} of them finished; "
                f"{devices.describe_devices()}"
            )
            for replica in self._finished.values():
                self._tracking.submit(self._send, replica)
            for name, seeds in self._plan():
                while seeds:
                    trainer = self._trainer(name, seeds)
                    together, seeds = seeds[: trainer.num_replicas], seeds[trainer.num_replicas :]
                    self._train(name, trainer, together)
                if time.monotonic() - self._reported > _REPORT_SECONDS:
                    self._findings.write(list(self._finished.values()), say, is_last=False)
                    self._reported = time.monotonic()
            words = self._findings.write(list(self._finished.values()), say)
            self._progress.close()
            for line in words:
                say(line)
            if not self._tracking.close(_SIGNAL_SECONDS):
                say("Waiting for W&B")
            while not self._tracking.close(_SIGNAL_SECONDS):
                _check_signals()
            if self._is_offline:
                say(
                    "W&B runs kept offline; upload them: wandb sync "
                    f"{self._folder.path}/wandb/offline-*"
                )
            say(f"Done: {self._folder.path / 'study.md'}")
        except BaseException as error:
            self._progress.close()
            self._track = False
            if not self._tracking.close(_ABORT_SECONDS):
                tracking.give_up()
            if isinstance(error, Interrupted):
                share = f"with {len(self._finished)} of {self._num_replicas} replicas finished"
                raise Interrupted(error.number, share, str(self._folder.path)) from None
            raise
        finally:
            for trainer in self._trainers.values():
                trainer.close()

    def _plan(self) -> Iterator[tuple[str, list[int]]]:
        """The replicas to be trained, those together that can be.

        Seed by seed where they are trained one after another, so that a study that is broken off
        has something of every variant.
        """
        size = self._settings.num_together
        if not size:
            # There, several in one program took longer than one after another.
            size = 1 if jax.default_backend() == "cpu" else len(self._seeds)
        for start in range(0, len(self._seeds), size):
            for name in self._recipes:
                part = self._seeds[start : start + size]
                seeds = [seed for seed in part if (name, seed) not in self._finished]
                if seeds:
                    yield name, seeds

    def _trainer(self, name: str, seeds: Sequence[int]) -> Trainer:
        """One for these seeds, or for the first of them, as many as the memory has room for."""
        number = min(len(seeds), self._most.get(name, len(seeds)))
        while (name, number) not in self._trainers:
            room = _MEMORY_SHARE * devices.memory()
            trainer = self._create_trainer(name, seeds[:number])
            # Where compiling fails for want of memory, half as many may do.
            needed = 2 * room if trainer is None else trainer.memory
            if trainer is not None and (needed <= room or number == 1):
                self._trainers[name, number] = trainer
                return trainer
            if number == 1:
                raise UserError(
                    f"{name}: there is no memory for it on this device; allowed: a smaller "
                    "config.batch_size or narrower config.model.channels"
                )
            del trainer  # and the memory that it holds
            number = self._most[name] = max(1, min(number - 1, int(number * room / needed)))
            self._progress.line(f"{name}: the memory has room for {number} replicas at a time")
        trainer = self._trainers[name, number]
        trainer.restart(seeds[:number])
        return trainer

    def _create_trainer(self, name: str, seeds: Sequence[int]) -> Trainer | None:
        """One whose programs are compiled; None if there is not the memory for that."""
        try:
            trainer = Trainer(self._recipes[name], self._dataset, seeds)
            trainer.finish_compiling()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                return None
            raise
        _check_signals()
        return trainer

    def _train(self, name: str, trainer: Trainer, seeds: Sequence[int]) -> None:
        """Trains replicas to their end, and keeps what they come to."""
        recipe, number = self._recipes[name], len(seeds)
        label = f"{name}, seed {seeds[0]}" + (f" to {seeds[-1]}" if number > 1 else "")
        num_images = len(self._dataset.train)
        records: list[list[dict[str, Any]]] = [[] for _ in seeds]
        finals: list[dict[str, list[evaluate.Evaluation]]] = []  # of the epochs that count
        train_seconds = 0.0
        for epoch in range(1, recipe.num_epochs + 1):
            self._progress.start(f"{label}, epoch {epoch}/{recipe.num_epochs}", number)
            started = time.perf_counter() - trainer.compile_seconds
            metrics = trainer.train_epoch(epoch, self._progress, _check_signals)
            seconds = time.perf_counter() - trainer.compile_seconds - started
            train_seconds += seconds
            self._progress.finish_epoch(num_images)
            splits = {"validation": self._evaluate(trainer, "validation")}
            if epoch > recipe.num_epochs - self._settings.num_final_epochs:
                splits["test"] = self._evaluate(trainer, "test")
                finals.append(splits)
            sizes = [size for _, size in trainer.batches]
            losses, accuracies = (np.average(values, axis=0, weights=sizes) for values in metrics)
            for index, of_replica in enumerate(records):
                record = {
                    "epoch": epoch,
                    "step": epoch * len(sizes),
                    "train/loss": float(losses[index]),
                    "train/accuracy": float(accuracies[index]),
                    "learning_rate": float(trainer.schedule((epoch - 1) * len(sizes))),
                    "seconds": seconds / number,
                }
                for split, results in splits.items():
                    if results:
                        record[f"{split}/loss"] = results[index].loss
                        record[f"{split}/accuracy"] = results[index].accuracy
                of_replica.append(record)
        for index, seed in enumerate(seeds):
            results = {
                split: [epoch[split][index] for epoch in finals]
                for split in ("test", "validation")
                if finals[-1][split]
            }
            replica = Replica(
                variant=name,
                seed=seed,
                run_id=secrets.token_hex(4),
                data=self._dataset.title,
                config=self._config_of(name, seed).to_dict(),
                records=finite(records[index]),
                results={split: finite(_summarize(result)) for split, result in results.items()},
                train_seconds=train_seconds / number,
                compile_seconds=trainer.compile_seconds,
                num_together=number,
                device=devices.describe_devices(),
                versions=versions(),
            )
            self._store.save(
                replica, {split: last.probabilities for split, (*_, last) in results.items()}
            )
            self._finished[name, seed] = replica
            self._tracking.submit(self._send, replica)
            test = replica.results["test"]
            self._progress.finish_replica(
                f"{name}, seed {seed}  {test['num_errors']:,g} test errors, "
                f"{test['accuracy']:.2%}  {replica.train_seconds:.1f} s"
            )

    def _evaluate(self, trainer: Trainer, split: str) -> list[evaluate.Evaluation]:
        """The replicas' results on a split; none if there is no such split."""
        if split not in trainer.splits:
            return []
        labels = trainer.splits[split].labels
        return [evaluate.evaluate(logits, labels) for logits in trainer.predict(split)]

    def _config_of(self, name: str, seed: int) -> ConfigDict:
        """That of the run which a replica is, but for the images set aside: the study's."""
        config = self._recipes[name].copy_and_resolve_references()
        with config.unlocked():
            config.seed = seed
            config.wandb.group = config.wandb.group or self._folder.path.resolve().name
        return config

    def _load(self, name: str, seed: int) -> Replica | None:
        """A finished replica, if it is there and the same as would be trained now."""
        replica = self._store.load(name, seed)
        if replica is None:
            return None
        where = f"--workdir={self._folder.path}: replica {name}, seed {seed},"
        allowed = "the same fields, another name for the variant, or a new folder"
        config = self._config_of(name, seed).to_dict()
        check_same(where, replica.config, config, _may_differ, allowed)
        if replica.data != self._dataset.title:
            raise UserError(
                f"{where} is of {replica.data}, and the data are now {self._dataset.title}; "
                "allowed: the same data, or a new folder"
            )
        return replica

    def _send(self, replica: Replica) -> None:
        """Gives a replica to W&B, unless it has it."""
        config = self._config_of(replica.variant, replica.seed)
        is_wanted = self._track and config.wandb.mode != "disabled"
        if not is_wanted or self._store.is_tracked(replica):
            return
        tracker = Tracker(
            config,
            str(self._folder.path),
            replica.run_id,
            name=f"{replica.variant}-seed{replica.seed}",
            extra_config={"variant": replica.variant, "data": replica.data},
            extra_tags=["sample"] if self._dataset.source == "sample" else [],
            say=self._progress.line,
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
            self._track = False  # it would fail, and wait, for each of the others too


def _check_signals() -> None:
    if number := signals.received():
        raise Interrupted(number)


def _summarize(results: Sequence[evaluate.Evaluation]) -> dict[str, Any]:
    """Means over the last epochs, as many as `config.study.num_final_epochs`."""
    return {
        "loss": float(np.mean([result.loss for result in results])),
        "accuracy": float(np.mean([result.accuracy for result in results])),
        "num_errors": float(np.mean([len(result.misclassified) for result in results])),
    }

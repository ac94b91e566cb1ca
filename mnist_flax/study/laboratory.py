"""Runs a study: trains the replicas of a recipe and its variants, and reports on them."""

import contextlib
import hashlib
import itertools
import pathlib
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import data
from mnist_flax.errors import UserError, refused
from mnist_flax.evaluate import Evaluation
from mnist_flax.history import History
from mnist_flax.run import fields
from mnist_flax.run.checkpoint import snapshot
from mnist_flax.run.configs import flatten
from mnist_flax.run.resuming import check_data, check_same, is_free
from mnist_flax.run.saver import Saver
from mnist_flax.run.summary import versions
from mnist_flax.run.workdir import REPLICAS, Workdir, check_workdir
from mnist_flax.runtime import compilation, devices, memory, signals
from mnist_flax.runtime.signals import Interrupted
from mnist_flax.step import StepMetrics
from mnist_flax.study.findings import Findings
from mnist_flax.study.findings_text import count
from mnist_flax.study.progress import StudyProgress
from mnist_flax.study.recipes import recipes
from mnist_flax.study.replicas import Pool, Replicas
from mnist_flax.study.store import Replica, ReplicaStore, finite
from mnist_flax.study.tracking import StudyTracking

_REPORT_SECONDS = 60  # minimum time between reports while a study is running


def run(config: ConfigDict, workdir: str, ensemble: bool = False) -> None:
    """Trains the replicas that are not yet finished in `workdir`, and reports on all of them.

    Args:
      config: a configuration such as `configs/study.py` returns.
      workdir: a new folder, or that of a study to resume; empty for a dated one.
      ensemble: whether to evaluate ensembles of networks too.

    Raises:
      UserError: the configuration, the data or the folder cannot be used.
      Interrupted: a signal stopped the study.
    """
    _check(config, ensemble)
    check_workdir(workdir, config.to_dict(), _may_differ)
    compilation.set_up()
    dataset = data.load(config.dataset, config.seed)
    for recipe in recipes(config).values():
        devices.check_batch_size(recipe.batch_size, len(dataset.train))
    folder = Workdir(workdir, config.to_dict(), _may_differ)
    with contextlib.closing(folder):
        study = Study(config, dataset, folder, ensemble)
        try:
            with signals.deferred():
                study.complete()
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if explained := memory.exhausted(error):
                raise explained from error
            raise


def _check(config: ConfigDict, ensemble: bool) -> None:
    """Raises a `UserError` unless the fields of a study are consistent."""
    study = config.study
    for name, recipe in recipes(config).items():
        if study.num_final_epochs > recipe.num_epochs:
            allowed = f"at most the {recipe.num_epochs} epochs of {name}"
            raise refused("config.study.num_final_epochs", study.num_final_epochs, allowed)
    if not fields.FIELDS["seed"].accepts(config.seed + study.num_seeds - 1):
        allowed = f"at most {2**32 - config.seed}, because seeds must be below 2**32"
        raise refused("config.study.num_seeds", study.num_seeds, allowed)
    if ensemble and study.ensemble_size > study.num_seeds:
        allowed = f"at most config.study.num_seeds={study.num_seeds} with --ensemble"
        raise refused("config.study.ensemble_size", study.ensemble_size, allowed)


def _may_differ(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Allows more seeds and other variants, because each replica is checked by itself."""
    del before, now
    return is_free(name) and name != "study.num_final_epochs"  # the results depend on it


class Study:
    """Trains, stores and reports the replicas of a study.

    Args:
      config: the whole configuration.
      dataset: the data; all replicas share its validation images.
      folder: the folder of the study.
      ensemble: whether to evaluate ensembles of networks too.

    Raises:
      UserError: a finished replica has another configuration, or the folder holds a run.
    """

    def __init__(self, config: ConfigDict, dataset: data.Dataset, folder: Workdir, ensemble: bool):
        if folder.has_metrics or (folder.path / "checkpoints").exists():
            raise UserError(f"--workdir={folder.path} holds a run; allowed: a new folder")
        self._dataset, self._data = dataset, dataset.identity
        self._folder = folder
        self._settings = config.study
        self._recipes = recipes(config)
        self._seeds = range(config.seed, config.seed + config.study.num_seeds)
        self._store = ReplicaStore(folder.path / REPLICAS)
        self._num_replicas = len(self._recipes) * len(self._seeds)
        self._finished: dict[tuple[str, int], Replica] = {}
        for name, seed in itertools.product(self._recipes, self._seeds):
            if (replica := self._store.load(name, seed)) is not None:
                _check_replica(replica, self._config_of(name, seed), self._data, folder.path)
                self._finished[name, seed] = replica
                self._store.discard(name, [seed])  # a killed process may have left checkpoints
        folder.reopen()
        names = list(self._recipes)
        self._findings = Findings(config, dataset, names, folder, self._store, ensemble)
        self._reported = time.monotonic()
        left = [self._recipes[name].num_epochs for name, seeds in self._plan() for _ in seeds]
        self._progress = StudyProgress(
            len(dataset.train) * sum(left), self._num_replicas, len(self._finished)
        )
        line = self._progress.line
        self._pool = Pool(self._recipes, dataset, line)
        self._tracking = StudyTracking(
            str(folder.path), self._store, self._config_of, dataset.source == "sample", line
        )

    def complete(self) -> None:
        """Trains the remaining replicas and writes the findings."""
        line = self._progress.line
        try:
            self._announce()
            for replica in self._finished.values():
                self._tracking.send(replica)
            for name, seeds in self._plan():
                while seeds:
                    trainer = self._pool.get(name, len(seeds))
                    _check_signals()
                    together, seeds = seeds[: trainer.num_replicas], seeds[trainer.num_replicas :]
                    self._train(name, trainer, together)
                if time.monotonic() - self._reported > _REPORT_SECONDS:
                    self._findings.write(list(self._finished.values()), line, is_last=False)
                    self._reported = time.monotonic()
            words = self._findings.write(list(self._finished.values()), line)
            self._progress.close()
            for text in words:
                line(text)
            self._tracking.finish(_check_signals)
            line(f"Done: {self._folder.path / 'study.md'}")
        except BaseException as error:
            self._progress.close()
            self._tracking.abort()
            if isinstance(error, Interrupted):
                share = f"with {len(self._finished)} of {self._num_replicas} replicas finished"
                raise Interrupted(error.number, share, str(self._folder.path)) from None
            raise

    def _plan(self) -> Iterator[tuple[str, list[int]]]:
        """Yields the replicas left to train, as a recipe and the seeds to train together.

        Replicas trained one after another go seed by seed, so that an interrupted study has some of
        every variant.
        """
        # On a CPU, training several in one program took longer than one after another.
        together = 1 if jax.default_backend() == "cpu" else len(self._seeds)
        size = self._settings.num_together or together
        for start in range(0, len(self._seeds), size):
            for name in self._recipes:
                part = self._seeds[start : start + size]
                if left := [seed for seed in part if (name, seed) not in self._finished]:
                    yield name, left

    def _announce(self) -> None:
        line = self._progress.line
        self._folder.announce(line)
        line(self._dataset.description)
        line(
            f"Study: {count(self._num_replicas, 'replica')} ({count(len(self._recipes), 'recipe')},"
            f" {count(len(self._seeds), 'seed')}), {len(self._finished)} finished; "
            f"{devices.describe()}"
        )

    def _train(self, name: str, trainer: Replicas, seeds: Sequence[int]) -> None:
        """Trains replicas to the end, resuming after the last finished epoch if there is one."""
        num_epochs, num_images = self._recipes[name].num_epochs, len(self._dataset.train)
        label = f"{name}, seed {seeds[0]}" + (f" to {seeds[-1]}" if len(seeds) > 1 else "")
        final = self._settings.num_final_epochs
        identity = _identity(self._recipes[name], seeds, final, self._data)
        folder = self._store.unfinished(name, seeds, identity[:12])
        saver = Saver(folder, keep=1, keep_best=False)
        state, history = trainer.create_states(seeds), History(data=identity)
        if restored := saver.restore(state, must_exist=False, warn=self._progress.line):
            state, history = restored
        self._progress.start(label, len(seeds))
        self._progress.finish_epoch(history.epoch * num_images)
        results: list[dict[str, Evaluation]] = []
        try:
            for epoch in range(history.epoch + 1, num_epochs + 1):
                self._progress.start(f"{label}, epoch {epoch}/{num_epochs}", len(seeds))
                state, metrics, seconds = trainer.train_epoch(state, epoch, self._on_step)
                self._progress.finish_epoch(num_images)
                is_final = epoch > num_epochs - final
                splits = [s for s in self._dataset.eval_splits if s != "test" or is_final]
                results = trainer.evaluate_each(state, splits)
                records = trainer.records(epoch, metrics, results, seconds)
                history = history.extended({"replicas": finite(records)})
                saver.wait()
                if epoch < num_epochs:
                    saver.save(snapshot(state)[0], history)
            for index, seed in enumerate(seeds):
                records = [epoch["replicas"][index] for epoch in history.records]
                self._keep(name, seed, trainer, records, results[index])
        finally:  # a signal must not lose a finished epoch
            if error := saver.abort():
                self._progress.line(f"error: {error}")
            saver.close()
        self._store.discard(name, seeds)

    def _keep(
        self,
        name: str,
        seed: int,
        trainer: Replicas,
        records: list[dict[str, Any]],
        last: dict[str, Evaluation],
    ) -> None:
        """Stores a finished replica."""
        final = records[-self._settings.num_final_epochs :]
        replica = Replica(
            variant=name,
            seed=seed,
            run_id=secrets.token_hex(4),
            data=self._data,
            config=self._config_of(name, seed).to_dict(),
            records=records,
            results={s: _means(final, s, len(self._dataset.eval_splits[s])) for s in last},
            train_seconds=sum(record["seconds"] for record in records),
            compile_seconds=trainer.compiler.seconds,
            num_together=trainer.num_replicas,
            device=devices.describe(),
            versions=versions(),
        )
        self._store.save(replica, {split: result.probabilities for split, result in last.items()})
        self._finished[name, seed] = replica
        self._tracking.send(replica)
        test = replica.results["test"]
        self._progress.finish_replica(
            f"{name}, seed {seed}  {test['num_errors']:,g} test errors, "
            f"{test['accuracy']:.2%}  {replica.train_seconds:.1f} s"
        )

    def _on_step(self, images: int, metrics: StepMetrics | None) -> None:
        if metrics is not None:
            self._progress.update(images, metrics.loss, metrics.accuracy)
        _check_signals()

    def _config_of(self, name: str, seed: int) -> ConfigDict:
        """Returns a replica's configuration: its recipe and seed, in the study's W&B group."""
        config = self._recipes[name].copy_and_resolve_references()
        with config.unlocked():
            config.seed = seed
            config.wandb.group = config.wandb.group or self._folder.path.resolve().name
        return config


def _identity(recipe: ConfigDict, seeds: Sequence[int], num_final_epochs: int, data: str) -> str:
    """Returns a digest that tells unfinished replicas from those of other recipes or data."""
    values = {name: value for name, value in flatten(recipe).items() if not is_free(name)}
    text = f"{values} {list(seeds)} {num_final_epochs} {data}"
    return hashlib.sha256(text.encode()).hexdigest()


def _check_replica(
    replica: Replica, config: ConfigDict, identity: str, folder: pathlib.Path
) -> None:
    """Raises a `UserError` unless a finished replica is the one that would be trained now."""
    where = f"--workdir={folder}: replica {replica.variant}, seed {replica.seed},"
    allowed = "the same fields, another name for the variant, or a new folder"
    check_same(where, replica.config, config.to_dict(), _may_differ, allowed)
    check_data(where, replica.data, identity)


def _check_signals() -> None:
    if number := signals.received():
        raise Interrupted(number)


def _means(records: Sequence[dict[str, Any]], split: str, num_images: int) -> dict[str, Any]:
    """Returns a replica's results on a split of `num_images`: the means of the given records."""
    losses = [record[f"{split}/loss"] for record in records]
    accuracies = [record[f"{split}/accuracy"] for record in records]
    return {
        "loss": None if None in losses else float(np.mean(losses)),
        "accuracy": float(np.mean(accuracies)),
        "num_errors": float(np.mean([round((1 - a) * num_images) for a in accuracies])),
    }

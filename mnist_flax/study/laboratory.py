"""Runs a study: trains the replicas of a recipe and its variants, and reports on them."""

import contextlib
import datetime
import functools
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import data
from mnist_flax.errors import UserError, refused
from mnist_flax.evaluate import Evaluation
from mnist_flax.history import History
from mnist_flax.report.progress import Display
from mnist_flax.run import fields
from mnist_flax.run.summary import versions
from mnist_flax.run.workdir import Workdir
from mnist_flax.runtime import compilation, devices, memory, signals
from mnist_flax.runtime.signals import Interrupted
from mnist_flax.step import StepMetrics
from mnist_flax.study.findings import Findings
from mnist_flax.study.recipes import recipes
from mnist_flax.study.replicas import Replicas
from mnist_flax.study.store import Replica, ReplicaStore, finite, may_differ
from mnist_flax.study.tracking import StudyTracking

_REPORT_SECONDS = 60  # minimum time between reports while a study is running


def run(config: ConfigDict, workdir: str | os.PathLike = "", ensemble: bool = False) -> None:
    """Trains the replicas that are not yet finished in `workdir`, and reports on all of them.

    Args:
      config: a configuration such as `configs/study.py` returns.
      workdir: a new folder, or that of a study to resume; empty for a dated one.
      ensemble: whether to average the probabilities of each recipe's replicas too.

    Raises:
      UserError: the configuration, the data or the folder cannot be used.
      Interrupted: a signal stopped the study.
    """
    named, num_seeds = recipes(config), config.study.num_seeds
    num_final = config.study.num_final_epochs
    shortest = min(named, key=lambda name: named[name].num_epochs)
    if num_final > (num_epochs := named[shortest].num_epochs):
        allowed = f"at most config.num_epochs ({num_epochs} for {shortest!r})"
        raise refused("config.study.num_final_epochs", num_final, allowed)
    if not fields.FIELDS["seed"].accepts(config.seed + num_seeds - 1):
        allowed = f"at most {2**32 - config.seed:,}, because seeds are below 2**32"
        raise refused("config.study.num_seeds", num_seeds, allowed)
    compilation.set_up()
    with contextlib.closing(Workdir(workdir, config.to_dict(), may_differ)) as folder:
        dataset = data.load(config.dataset, config.seed)
        for recipe in named.values():
            devices.check_batch_size(recipe.batch_size, len(dataset.train))
        folder.open()
        Study(config, dataset, folder).complete(ensemble)


class Study:
    """Trains, stores and reports the replicas of a study.

    Args:
      config: the whole configuration.
      dataset: the data; all replicas share its validation images.
      folder: the folder of the study.

    Raises:
      UserError: a finished replica has another configuration, or the folder holds a run.
    """

    def __init__(self, config: ConfigDict, dataset: data.Dataset, folder: Workdir):
        if folder.has_metrics or (folder.path / "checkpoints").exists():
            raise UserError(f"--workdir={folder.path} holds a run; choose a new folder")
        self._dataset, self._data, self._folder = dataset, dataset.identity, folder
        self._recipes, self._num_final = recipes(config), config.study.num_final_epochs
        self._seeds = range(config.seed, config.seed + config.study.num_seeds)
        # On a CPU, training several in one program took longer than one after another.
        together = 1 if jax.default_backend() == "cpu" else len(self._seeds)
        self._num_together = config.study.num_together or together
        self._store = ReplicaStore(folder.path, self._recipes, self._data)
        loaded = [self._store.load(name, seed) for name in self._recipes for seed in self._seeds]
        self._finished = {(found.variant, found.seed): found for found in loaded if found}
        folder.reopen()
        self._findings = Findings(config, dataset, folder, self._store)
        placed = devices.place(dataset.train, dataset.eval_splits)
        self._compiled = functools.cache(
            lambda name, number: Replicas(self._recipes[name], dataset, number, placed)
        )
        images = {name: of.num_epochs * len(dataset.train) for name, of in self._recipes.items()}
        self._total = sum(images.values()) * len(self._seeds)  # images of the study, all epochs
        self._done = sum(images[name] for name, _ in self._finished)
        self._trained = 0  # images, by this process
        self._display, self._started = Display(self._total), time.monotonic()
        self._tracking = StudyTracking(self._store, self._display.line)

    def complete(self, ensemble: bool) -> None:
        """Trains the remaining replicas and writes the findings; see `run`."""
        line, reported = self._display.line, time.monotonic()
        try:
            with signals.deferred():
                self._folder.announce(line)
                line(self._dataset.description)
                line(f"Study: {self._progress()} replicas finished; {devices.describe()}")
                for replica in self._finished.values():
                    self._tracking.send(replica)
                while group := self._next():
                    self._train(*group)
                    if time.monotonic() - reported > _REPORT_SECONDS:
                        self._findings.write(self._finished.values(), line)
                        reported = time.monotonic()
                words = self._findings.write(self._finished.values(), line, ensemble)
            self._display.close()
            for text in [*words, f"Done: {self._folder.path / 'study.md'}"]:
                line(text)
            self._tracking.finish()
        except Interrupted as error:
            progress = f"with {self._progress()} replicas finished"
            raise Interrupted(error.number, progress, str(self._folder.path)) from None
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            advice = f"lower config.study.num_together (now {self._num_together})"
            if explained := memory.exhausted(error, advice):
                raise explained from error
            raise
        finally:
            self._display.close()

    def _next(self) -> tuple[str, list[int]] | None:
        """Returns a recipe and the seeds to train together next; None if all are finished.

        Replicas with a checkpoint come first, together as they were, so that raising `num_seeds`
        restarts none. The others go seed by seed, so that an interrupted study has some of every
        variant. A checkpoint of more replicas than to train now is removed.
        """
        for name in self._recipes:
            seeds = self._store.begun(name)
            is_wanted = self._left(name, seeds) and {*self._seeds}.issuperset(seeds)
            if is_wanted and len(seeds) <= self._num_together:
                return name, seeds
            self._store.discard(name)
        for start in range(0, len(self._seeds), self._num_together):
            for name in self._recipes:
                if left := self._left(name, self._seeds[start : start + self._num_together]):
                    return name, left
        return None

    def _left(self, name: str, seeds: Sequence[int]) -> list[int]:
        """Returns those of `seeds` with which the recipe has no finished replica."""
        return [seed for seed in seeds if (name, seed) not in self._finished]

    def _progress(self) -> str:
        """Returns how many replicas are finished, such as '7 of 30'."""
        return f"{len(self._finished)} of {len(self._recipes) * len(self._seeds)}"

    def _train(self, name: str, seeds: list[int]) -> None:
        """Trains replicas to the end, resuming after the last finished epoch if there is one."""
        trainer, saved = self._compiled(name, len(seeds)), self._store.checkpoints(name)
        state, history = trainer.create_state(np.array(seeds)), History(data=self._data)
        if restored := saved.restore(state, must_exist=False, warn=self._display.line):
            state, history = restored
        config = self._store.config(name, seeds[0]).to_dict()
        num_epochs = config["num_epochs"]
        left, num_images = self._left(name, seeds), len(self._dataset.train)
        self._done += len(left) * num_images * history.epoch
        label = f"{name}, seed {seeds[0]}" + f" to {seeds[-1]}" * (len(seeds) > 1)

        def on_step(images: int, metrics: StepMetrics | None) -> None:
            if metrics is not None:
                done = self._done + len(left) * images
                share = f"epoch {epoch}/{num_epochs} ({done / self._total:.0%} of all)"
                self._display.show(f"{label}, {share}", done, metrics._asdict())
            if number := signals.received():
                raise Interrupted(number)

        for epoch in range(history.epoch + 1, num_epochs + 1):
            is_final = epoch > num_epochs - self._num_final
            splits = [s for s in self._dataset.eval_splits if s != "test" or is_final]
            state, records, results = trainer.train_and_evaluate(state, epoch, splits, on_step)
            self._done += len(left) * num_images
            self._trained += len(left) * num_images
            history = history.extended({"replicas": finite(records)}, {})
            if epoch < num_epochs:
                saved.save(state, history, config, about={"seeds": seeds})
        for seed in left:
            index = seeds.index(seed)
            records = [record["replicas"][index] for record in history.records]
            self._keep(name, seed, trainer, records, results[index])
        self._store.discard(name)

    def _keep(
        self,
        name: str,
        seed: int,
        trainer: Replicas,
        records: list[dict[str, Any]],
        last: Mapping[str, Evaluation],
    ) -> None:
        """Stores a finished replica."""
        final = records[-self._num_final :]
        replica = Replica(
            variant=name,
            seed=seed,
            run_id=secrets.token_hex(4),
            data=self._data,
            config=self._store.config(name, seed).to_dict(),
            records=records,
            results={split: means(final, split, len(of.predictions)) for split, of in last.items()},
            train_seconds=sum(record["seconds"] for record in records),
            compile_seconds=trainer.compile_seconds,
            num_together=trainer.num_replicas,
            device=devices.describe(),
            versions=versions(),
        )
        probabilities = {split: result.probabilities for split, result in last.items()}
        replica = self._finished[name, seed] = self._store.save(replica, probabilities)
        self._tracking.send(replica)
        # At the rate of this process so far, which includes compilation.
        per_image = (time.monotonic() - self._started) / self._trained
        left = datetime.timedelta(seconds=round((self._total - self._done) * per_image))
        self._display.line(
            f"{self._progress()}  {name}, seed {seed}  {replica.num_errors:,g} test errors, "
            f"{replica.results['test']['accuracy']:.2%}  {replica.train_seconds:.1f} s  {left} left"
        )


def means(records: Sequence[dict[str, Any]], split: str, num_images: int) -> dict[str, Any]:
    """Returns a replica's results on a split of `num_images`: the means of the given records."""
    values = {
        key.partition("/")[2]: [record[key] for record in records]
        for key in records[0]
        if key.startswith(f"{split}/")
    }
    values["num_errors"] = [round((1 - accuracy) * num_images) for accuracy in values["accuracy"]]
    return {key: None if None in of else float(np.mean(of)) for key, of in values.items()}

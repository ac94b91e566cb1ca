"""Writes what a study found: study.json, study.md, study.html and the figures."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax.data import Dataset
from mnist_flax.run.configs import flatten
from mnist_flax.run.workdir import Workdir
from mnist_flax.runtime.background import attempt
from mnist_flax.runtime.files import write_whole
from mnist_flax.streams import Stream
from mnist_flax.study import ensemble as ensembles
from mnist_flax.study.comparison import compare, mean_interval
from mnist_flax.study.findings_text import FindingsText, Row, words_of_ensemble
from mnist_flax.study.recipes import BASE
from mnist_flax.study.store import Replica, ReplicaStore, finite

_REPLICA_FIELDS = ["seed", "run_id", "results", "records", "train_seconds", "compile_seconds"]
_REPLICA_FIELDS += ["num_together", "device", "versions"]


class Findings:
    """Writes what the finished replicas of a study show.

    Args:
      config: the whole configuration.
      dataset: the data of the study.
      names: the names of its recipes.
      folder: the folder to write to.
      store: holds the probabilities of the replicas.
      ensemble: whether to evaluate ensembles of networks too.
    """

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        names: Sequence[str],
        folder: Workdir,
        store: ReplicaStore,
        ensemble: bool,
    ):
        self._config = config
        self._dataset = dataset
        self._names = names
        self._folder = folder
        self._store = store
        self._ensemble = ensemble
        self._text = FindingsText(
            folder.path.name,
            dataset,
            len(names) * config.study.num_seeds,
            config.study.num_final_epochs,
        )

    def write(
        self, replicas: Sequence[Replica], say: Callable[[str], None], is_last: bool = True
    ) -> list[str]:
        """Writes study.json, study.md, the figures and study.html.

        Args:
          replicas: the finished replicas.
          say: prints a line; called if the figures or the page cannot be written.
          is_last: whether the study is over; if not, ensembles are left out.

        Returns:
          The findings in words, one per line.
        """
        rows = self._rows(replicas)
        if not rows:
            return []
        ensemble = self._ensemble and is_last
        draws = {row.name: self._ensembles_of(row) for row in rows} if ensemble else {}
        words = [self._text.words(row) for row in rows]
        words += [words_of_ensemble(name, of_row[-1]) for name, of_row in draws.items() if of_row]
        now = datetime.datetime.now().astimezone()
        self._folder.write_json("study.json", self._content(rows, draws, now))
        self._folder.write("study.md", self._text.document(rows, draws, words, now))
        figures = attempt("drawing failed", say, self._draw, rows, draws) or {}
        page = (rows, words, now, figures)
        attempt("writing study.html failed", say, self._write_page, *page)
        return words

    def _rows(self, replicas: Sequence[Replica]) -> list[Row]:
        """Returns the recipes that have finished replicas, sorted by mean test errors."""
        ordered = sorted(replicas, key=lambda replica: replica.seed)
        of_recipe = {
            name: [replica for replica in ordered if replica.variant == name]
            for name in self._names
        }
        errors = {
            name: [replica.num_errors for replica in finished]
            for name, finished in of_recipe.items()
            if finished
        }
        comparisons = {}
        if BASE in errors:
            variants = [name for name in errors if name != BASE]
            results = compare(errors[BASE], [errors[name] for name in variants])
            comparisons = dict(zip(variants, results, strict=True))
        rows = [
            Row(name, of_recipe[name], mean_interval(of_name), comparisons.get(name))
            for name, of_name in errors.items()
        ]
        return sorted(rows, key=lambda row: row.errors.mean)

    def _ensembles_of(self, row: Row) -> list[ensembles.Draws]:
        """Returns ensembles of a recipe's replicas, in ascending size up to `ensemble_size`.

        Returns none while the recipe has fewer replicas than that.
        """
        asked = self._config.study.ensemble_size
        if len(row.replicas) < asked:
            return []
        probabilities = [self._store.probabilities(replica, "test") for replica in row.replicas]
        key = jax.random.key(self._config.seed)
        labels = self._dataset.test.labels
        return [
            ensembles.draw(Stream.ENSEMBLES.key(key, size), np.stack(probabilities), labels, size)
            for size in ensembles.sizes(asked)
        ]

    def _content(
        self, rows: Sequence[Row], draws: dict[str, list[ensembles.Draws]], now: datetime.datetime
    ) -> dict[str, Any]:
        """Returns every number of the study, for study.json."""
        comparisons = [row.comparison for row in rows if row.comparison is not None]
        content = {
            "date": now.isoformat(timespec="seconds"),
            "data": self._dataset.title,
            "num_train": len(self._dataset.train),
            "num_validation": len(self._dataset.validation or ()),
            "num_test": len(self._dataset.test),
            "test": "Welch's t of log(test errors + 0.5), unpaired",
            "correction": "distribution of the largest |t| of all variants (parametric bootstrap)",
            "num_comparisons": sum(comparison.p is not None for comparison in comparisons),
            "config": self._config.to_dict(),
            "recipes": [self._recipe(row, draws.get(row.name, [])) for row in rows],
        }
        return finite(content)

    def _recipe(self, row: Row, draws: Sequence[ensembles.Draws]) -> dict[str, Any]:
        prefix = f"{row.name}."
        return {
            "name": row.name,
            "overrides": {
                field.removeprefix(prefix): value
                for field, value in flatten(self._config.study.variants).items()
                if field.startswith(prefix)
            },
            "test_errors": row.errors._asdict(),
            "comparison_with_base": row.comparison and row.comparison._asdict(),
            "num_diverged": row.num_diverged,
            "ensembles": [
                {
                    "size": of_size.size,
                    "is_all": of_size.is_all,
                    "num_errors": of_size.num_errors.tolist(),
                }
                for of_size in draws
            ],
            "replicas": [
                {name: getattr(replica, name) for name in _REPLICA_FIELDS}
                for replica in row.replicas
            ],
        }

    def _write_page(
        self,
        rows: Sequence[Row],
        words: Sequence[str],
        now: datetime.datetime,
        figures: Mapping[str, bytes],
    ) -> None:
        from mnist_flax.study import page

        html = page.create(self._text, self._dataset, rows, words, now, figures)
        write_whole(self._folder.path / "study.html", html)

    def _draw(
        self, rows: Sequence[Row], draws: Mapping[str, Sequence[ensembles.Draws]]
    ) -> dict[str, bytes]:
        """Writes the figures, and returns them as PNGs by file name."""
        # Imported here because matplotlib takes a second.
        from mnist_flax.study import figures

        drawn = figures.draw(rows, draws, self._text, self._dataset.title)
        for name, png in drawn.items():
            write_whole(self._folder.figures / name, png)
        return drawn

"""What a study found: study.json, study.md and its pictures, whose words follow the numbers."""

import datetime
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax.data import Dataset
from mnist_flax.run.configs import flatten
from mnist_flax.run.workdir import Workdir
from mnist_flax.runtime.background import Background
from mnist_flax.runtime.files import write_whole
from mnist_flax.streams import Stream
from mnist_flax.study import ensemble as ensembles
from mnist_flax.study.comparison import Difference, Interval, mean_interval, paired_difference
from mnist_flax.study.recipes import BASE
from mnist_flax.study.store import Replica, ReplicaStore

_QUANTILES = (0.025, 0.975)  # of ensembles


class Row(NamedTuple):
    """A recipe of a study.

    Attributes:
      name: of the variant.
      replicas: those finished.
      errors: of the test set, over the seeds.
      difference: in test errors, to the base with the same seeds; None of the base itself.
    """

    name: str
    replicas: list[Replica]
    errors: Interval
    difference: Difference | None

    @property
    def verdict(self) -> int:
        """1 if it is found to be better than the base, -1 if worse, else 0."""
        if self.difference is None or not self.difference.is_found:
            return 0
        return 1 if self.difference.mean < 0 else -1

    @property
    def num_diverged(self) -> int:
        """Replicas whose loss is no longer a number."""
        return sum(not replica.is_finite for replica in self.replicas)


class Findings:
    """Writes what the finished replicas say.

    Args:
      config: the whole configuration.
      dataset: of the study.
      names: of its recipes.
      folder: the study's.
      store: of the replicas.
      ensemble: whether to average networks too.
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

    def write(
        self, replicas: Sequence[Replica], say: Callable[[str], None], is_last: bool = True
    ) -> list[str]:
        """Writes study.json, study.md and the pictures.

        Args:
          replicas: those that are finished.
          say: prints a line, if the pictures cannot be drawn.
          is_last: False leaves ensembles out.

        Returns:
          The findings in words, a line each.
        """
        rows = self._rows(replicas)
        if not rows:
            return []
        ensemble = self._ensemble and is_last
        draws = {row.name: self._ensembles_of(row) for row in rows} if ensemble else {}
        words = [self._words(row) for row in rows]
        words += [_words_of_ensemble(name, of_row[-1]) for name, of_row in draws.items() if of_row]
        now = datetime.datetime.now().astimezone()
        self._folder.write_json("study.json", self._content(rows, draws, now))
        self._folder.write("study.md", self._text(rows, draws, words, now))
        drawing = Background("drawing failed", say)
        drawing.submit(self._draw_figures, rows, draws)
        drawing.close()
        return words

    def _rows(self, replicas: Sequence[Replica]) -> list[Row]:
        """The recipes that have finished replicas, the best at the top."""
        ordered = sorted(replicas, key=lambda replica: replica.seed)
        by_name = {
            name: {replica.seed: replica for replica in ordered if replica.variant == name}
            for name in self._names
        }
        base = by_name[BASE]
        rows = []
        for name, of_variant in by_name.items():
            if not of_variant:
                continue
            difference = None
            shared = [seed for seed in of_variant if seed in base]
            if name != BASE and shared:
                difference = paired_difference(
                    [_errors(of_variant[seed]) for seed in shared],
                    [_errors(base[seed]) for seed in shared],
                    len(self._names) - 1,
                )
            of_variant = list(of_variant.values())
            errors = mean_interval([_errors(replica) for replica in of_variant])
            rows.append(Row(name, of_variant, errors, difference))
        return sorted(rows, key=lambda row: row.errors.mean)

    def _ensembles_of(self, row: Row) -> list[ensembles.Draws]:
        """Ensembles of a recipe's replicas, up to the size asked for, which comes last."""
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

    def _points(self, errors: float) -> float:
        """Test errors as percentage points of accuracy."""
        return 100 * errors / len(self._dataset.test)

    def _accuracy(self, errors: float) -> float:
        return 100 - self._points(errors)

    def _words(self, row: Row) -> str:
        """What a row says, and no more."""
        diverged = f"; {row.num_diverged} diverged" if row.num_diverged else ""
        if row.difference is None:
            return (
                f"{row.name}: {self._accuracy(row.errors.mean):.3f} % test accuracy "
                f"(n = {row.errors.n}){diverged}"
            )
        mean, low, high, p, n = row.difference
        if p is None:
            same = "the same for every seed" if n > 1 else "one seed"
            return f"{row.name}: not tested ({same}): {-self._points(mean):+.3f} points{diverged}"
        interval = f"{-self._points(high):+.3f} to {-self._points(low):+.3f}"
        numbers = f"{-self._points(mean):+.3f} points ({interval}), {_p_is(p)}"
        if not row.verdict:
            return f"{row.name}: no difference found (n = {n}): {numbers}{diverged}"
        verdict = "better" if row.verdict > 0 else "worse"
        return f"{row.name}: {verdict} than the base (n = {n}): {numbers}{diverged}"

    def _text(
        self,
        rows: Sequence[Row],
        draws: dict[str, list[ensembles.Draws]],
        words: Sequence[str],
        now: datetime.datetime,
    ) -> str:
        replicas = [replica for row in rows for replica in row.replicas]
        finished, wanted = len(replicas), len(self._names) * self._config.study.num_seeds
        epochs = " or ".join(
            _count(number, "epoch") for number in sorted({r.config["num_epochs"] for r in replicas})
        )
        part = "" if finished == wanted else f" **{finished} of {wanted} replicas are finished.**"
        devices = " or ".join(sorted({replica.device for replica in replicas}))
        versions = ", ".join(
            f"{name} {' or '.join(sorted({r.versions.get(name, '?') for r in replicas}))}"
            for name in ("python", "jax", "flax", "optax", "numpy")
        )
        versions = f"{versions}, scipy {importlib.metadata.version('scipy')}"
        sizes = f"{len(self._dataset.train):,} training images"
        lines = [
            f"# {self._folder.path.name}",
            "",
            f"{self._dataset.title}, {sizes}, {epochs}. "
            f"{devices}; {versions}; {now:%Y-%m-%d}.{part}",
            "",
            *self._table(rows),
            "",
            *(f"- {note}" for note in self._notes(rows)),
            "",
            "## In words",
            "",
            *(f"- {line}" for line in words),
            "",
            "![Test accuracy by recipe](figures/study.png)",
        ]
        for name, of_row in draws.items():
            if of_row:
                lines += ["", *self._ensemble_table(name, of_row)]
        if any(draws.values()):
            lines += ["", "![Test accuracy by the number of networks](figures/ensemble.png)"]
        return "\n".join(lines) + "\n"

    def _table(self, rows: Sequence[Row]) -> list[str]:
        has_validation = self._dataset.validation is not None
        columns = ["recipe", "n", *(["validation accuracy, %"] if has_validation else [])]
        columns += ["test accuracy, %", "test errors", "difference to the base, points", "p"]
        columns += ["training, s", "compiling, s"]
        lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
        for row in rows:
            errors = row.errors
            margin = "" if errors.low is None else f" ± {errors.high - errors.mean:.1f}"
            points = "" if errors.low is None else (
                f" ± {self._points(errors.high - errors.mean):.3f}"
            )  # fmt: skip
            cells = [row.name, str(errors.n)]
            if has_validation:
                mean = np.mean([replica.accuracy("validation") for replica in row.replicas])
                cells.append(f"{100 * mean:.3f}")
            cells += [
                f"{self._accuracy(errors.mean):.3f}{points}",
                f"{errors.mean:.1f}{margin}",
                *self._difference_cells(row.difference),
                f"{np.mean([replica.train_seconds for replica in row.replicas]):.3g}",
                f"{max(replica.compile_seconds for replica in row.replicas):.3g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return lines

    def _difference_cells(self, difference: Difference | None) -> list[str]:
        if difference is None:
            return ["", ""]
        mean = f"{-self._points(difference.mean):+.3f}"
        if difference.p is None:
            return [mean, "not tested"]
        low, high = -self._points(difference.high), -self._points(difference.low)
        return [f"{mean} ({low:+.3f} to {high:+.3f})", _p(difference.p)]

    def _notes(self, rows: Sequence[Row]) -> list[str]:
        num_comparisons = len(self._names) - 1
        validation = self._dataset.validation
        aside = (
            f"{len(validation):,} training images were set aside for decisions"
            if validation is not None
            else "No images were set aside (config.dataset.validation_size=0)"
        )
        notes = [
            f"{aside}. Each replica read the test set {self._when_read()}, for this report, whose "
            "rows it orders.",
            "± and brackets are 95 % confidence intervals, of the mean by Student's t.",
        ]
        if num_comparisons:
            notes.append(
                "Differences are between replicas of the same seed; intervals and p are the paired "
                f"t-test's (scipy.stats.ttest_rel) on the test errors, with Bonferroni's "
                f"correction for {num_comparisons} comparisons. They hold for numbers of seeds and "
                "variants that were fixed beforehand."
            )
        together = sorted({replica.num_together for row in rows for replica in row.replicas})
        notes.append(
            "Training: seconds a replica, without compiling and evaluation; "
            f"{' or '.join(map(str, together))} trained together. Compiling: of the recipe's "
            "program, the longest."
        )
        if validation is not None and len(rows) > 1:
            best = max(
                rows, key=lambda row: np.mean([r.accuracy("validation") for r in row.replicas])
            )
            notes.append(f"Best on the images set aside: {best.name}.")
        return notes

    def _when_read(self) -> str:
        number = self._config.study.num_final_epochs
        if number == 1:
            return "once, after its last epoch"
        return f"after each of its last {number} epochs; its result is their mean"

    def _ensemble_table(self, name: str, draws: Sequence[ensembles.Draws]) -> list[str]:
        lines = [
            f"## Ensembles of {name}",
            "",
            "Probabilities averaged over networks drawn from the replicas, without replacement; "
            "ensembles may share networks, so that the spread is that of the choice among these.",
            "",
            "| networks | ensembles | mean test accuracy, % | 2.5 % to 97.5 % of them |",
            "|---:|---:|---:|---:|",
        ]
        for of_size in draws:
            mean, low, high = _spread(of_size.num_errors)
            drawn = f"{len(of_size.num_errors):,}{', all' if of_size.is_all else ''}"
            lines.append(
                f"| {of_size.size} | {drawn} | {self._accuracy(mean):.3f} | "
                f"{self._accuracy(high):.2f} to {self._accuracy(low):.2f} |"
            )
        return lines

    def _content(
        self,
        rows: Sequence[Row],
        draws: dict[str, list[ensembles.Draws]],
        now: datetime.datetime,
    ) -> dict[str, Any]:
        """Every number, for programs."""
        variants = flatten(self._config.study.variants)
        return {
            "date": now.isoformat(timespec="seconds"),
            "data": self._dataset.title,
            "num_train": len(self._dataset.train),
            "num_validation": len(self._dataset.validation or ()),
            "num_test": len(self._dataset.test),
            "test": "scipy.stats.ttest_rel on test errors, paired by seed",
            "correction": f"Bonferroni, {len(self._names) - 1} comparisons",
            "config": self._config.to_dict(),
            "recipes": [
                {
                    "name": row.name,
                    "overrides": {
                        field.removeprefix(f"{row.name}."): value
                        for field, value in variants.items()
                        if field.startswith(f"{row.name}.")
                    },
                    "test_errors": row.errors._asdict(),
                    "difference_in_test_errors": row.difference and row.difference._asdict(),
                    "num_diverged": row.num_diverged,
                    "ensembles": [
                        {
                            "size": of_size.size,
                            "is_all": of_size.is_all,
                            "num_errors": of_size.num_errors.tolist(),
                        }
                        for of_size in draws.get(row.name, [])
                    ],
                    "replicas": [
                        {
                            "seed": replica.seed,
                            "run_id": replica.run_id,
                            "results": replica.results,
                            "records": replica.records,
                            "train_seconds": replica.train_seconds,
                            "compile_seconds": replica.compile_seconds,
                            "num_together": replica.num_together,
                            "device": replica.device,
                            "versions": replica.versions,
                        }
                        for replica in row.replicas
                    ],
                }
                for row in rows
            ],
        }

    def _draw_figures(self, rows: Sequence[Row], draws: dict[str, list[ensembles.Draws]]) -> None:
        from mnist_flax.report import figures
        from mnist_flax.study import figures as study_figures  # which import matplotlib

        bars = [
            study_figures.Bar(
                name=row.name,
                points=[self._accuracy(_errors(replica)) for replica in row.replicas],
                mean=self._accuracy(row.errors.mean),
                interval=None
                if row.errors.low is None
                else (self._accuracy(row.errors.high), self._accuracy(row.errors.low)),
                note=self._note(row),
                change=row.verdict,
                is_base=row.name == BASE,
            )
            for row in rows
        ]
        figure = study_figures.study(bars, self._dataset.title)
        write_whole(self._folder.figures / "study.png", figures.to_png(figure))
        curves = {
            name: [
                (of_size.size, *(self._accuracy(e) for e in _spread(of_size.num_errors)))
                for of_size in of_row
            ]
            for name, of_row in draws.items()
            if of_row
        }
        if curves:
            figure = study_figures.ensembles(curves, self._dataset.title)
            write_whole(self._folder.figures / "ensemble.png", figures.to_png(figure))

    def _note(self, row: Row) -> str:
        if row.difference is None:
            return "the base" if row.name == BASE else ""
        if row.difference.p is None:
            return "not tested"
        if not row.verdict:
            return f"no difference found, {_p_is(row.difference.p)}"
        return f"{-self._points(row.difference.mean):+.2f} points, {_p_is(row.difference.p)}"


def _errors(replica: Replica) -> float:
    return replica.results["test"]["num_errors"]


def _spread(num_errors: np.ndarray) -> tuple[float, float, float]:
    """Mean, and the quantiles about it, of errors."""
    low, high = np.quantile(num_errors, _QUANTILES)
    return float(num_errors.mean()), float(low), float(high)


def _words_of_ensemble(name: str, draws: ensembles.Draws) -> str:
    return f"{name}: ensembles of {draws.size}: {draws.num_errors.mean():.1f} test errors in mean"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _p_is(value: float) -> str:
    return f"p {_p(value)}" if value < 0.001 else f"p = {_p(value)}"

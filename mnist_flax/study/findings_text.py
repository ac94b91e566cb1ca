"""Puts what a study found into text: sentences, a table and notes on the method, in Markdown."""

import datetime
import importlib.metadata
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mnist_flax.data import Dataset
from mnist_flax.study.comparison import Comparison, Interval
from mnist_flax.study.ensemble import Draws
from mnist_flax.study.store import Replica

FIGURES = {
    "study.png": "Test accuracy by recipe",
    "ensemble.png": "Test accuracy by the number of networks",
}
_QUANTILES = (0.025, 0.975)  # the ends of the range shown for ensembles


class Row(NamedTuple):
    """A recipe of a study: a row of its table.

    Attributes:
      name: the name of the variant, or 'base'.
      replicas: its finished replicas.
      errors: the mean number of test errors over the replicas, with its confidence interval.
      comparison: the comparison with the base; None for the base itself, and while no replica of
        the base is finished.
    """

    name: str
    replicas: list[Replica]
    errors: Interval
    comparison: Comparison | None

    @property
    def verdict(self) -> int:
        """1 if the recipe was found to be better than the base, -1 if worse, else 0."""
        if self.comparison is None or not self.comparison.is_found:
            return 0
        return 1 if self.comparison.ratio < 1 else -1

    @property
    def num_diverged(self) -> int:
        """Number of replicas whose test loss is not finite."""
        return sum(not replica.is_finite for replica in self.replicas)

    @property
    def validation_accuracy(self) -> float:
        """Mean accuracy on the validation images, percent."""
        return 100 * float(np.mean([replica.accuracy("validation") for replica in self.replicas]))


class FindingsText:
    """Puts the findings of a study into text.

    Args:
      title: the heading of the document.
      dataset: the data of the study.
      num_replicas: number of replicas in the complete study.
      num_final_epochs: number of epochs over which each replica's results are averaged.
    """

    def __init__(self, title: str, dataset: Dataset, num_replicas: int, num_final_epochs: int):
        self.title = title
        self._dataset = dataset
        self._num_replicas = num_replicas
        self._num_final_epochs = num_final_epochs

    def accuracy(self, errors: float) -> float:
        """Converts a number of test errors to test accuracy, percent."""
        return 100 - self._points(errors)

    def words(self, row: Row) -> str:
        """Returns one sentence that claims no more than the numbers of `row` show."""
        number = row.num_diverged
        diverged = f"; {count(number, 'replica')} diverged" if number else ""
        comparison = row.comparison
        if comparison is None:
            return (
                f"{row.name}: {self.accuracy(row.errors.mean):.3f} % test accuracy "
                f"(n = {row.errors.n}){diverged}"
            )
        points = f"{self._gain(comparison, comparison.ratio):+.3f} points of accuracy"
        if comparison.p is None:
            reason = "one seed" if min(comparison.n, comparison.n_base) == 1 else "no spread"
            return f"{row.name}: not tested ({reason}): {points}{diverged}"
        n = f"n = {comparison.n}"
        if comparison.n != comparison.n_base:
            n += f", base {comparison.n_base}"
        detectable = "" if comparison.is_found else f"; {self._detectable(comparison)}"
        return (
            f"{row.name}: {_conclusion(comparison)} ({n}): it made {_ratio(comparison.ratio)} "
            f"times the base's errors ({_ratio(comparison.low)} to {_ratio(comparison.high)}), "
            f"{points}, {_p_is(comparison.p)}{detectable}{diverged}"
        )

    def note(self, row: Row) -> str:
        """Returns the label of `row` in the figure; empty for the base."""
        comparison = row.comparison
        if comparison is None:
            return ""
        if comparison.p is None:
            return "not tested"
        if comparison.is_found:
            points = self._gain(comparison, comparison.ratio)
            return f"{points:+.2f} points, {_p_is(comparison.p)}"
        conclusion = "undecided" if comparison.is_apart else "no difference found"
        return f"{conclusion}, {_p_is(comparison.p)}"

    def document(
        self,
        rows: Sequence[Row],
        draws: Mapping[str, Sequence[Draws]],
        words: Sequence[str],
        now: datetime.datetime,
    ) -> str:
        """Returns the whole document as Markdown.

        Args:
          rows: the recipes, in the order of the table.
          draws: the ensembles of each recipe, smallest first; a recipe may have none.
          words: the findings, one per line.
          now: the date of the document.
        """
        progress = self.progress(rows)
        lines = [
            f"# {self.title}",
            "",
            origin(self._dataset, rows, now) + (f" **{progress}**" if progress else ""),
            "",
            *_markdown(self.table(rows)),
            "",
            *(f"- {note}" for note in self.notes(rows)),
            "",
            "## In words",
            "",
            *(f"- {line}" for line in words),
            "",
            _picture("study.png"),
        ]
        for name, of_row in draws.items():
            if of_row:
                lines += ["", *_ensemble_table(name, of_row, self.accuracy)]
        if any(draws.values()):
            lines += ["", _picture("ensemble.png")]
        return "\n".join(lines) + "\n"

    def progress(self, rows: Sequence[Row]) -> str:
        """Returns a sentence on how many replicas are finished; empty once all are."""
        finished, total = sum(len(row.replicas) for row in rows), self._num_replicas
        return f"{finished} of {total} replicas are finished." if finished < total else ""

    def _points(self, errors: float) -> float:
        """Converts test errors to percentage points of accuracy."""
        return 100 * errors / len(self._dataset.test)

    def _gain(self, comparison: Comparison, ratio: float) -> float:
        """Returns the gain in accuracy over the base, in points, for a ratio of errors.

        The gain is limited to what it would be if every test image were misclassified.
        """
        most = len(self._dataset.test) - comparison.base
        return -self._points(min(comparison.difference(ratio), most))

    def _detectable(self, comparison: Comparison) -> str:
        if comparison.base + comparison.detectable > len(self._dataset.test):
            return "with so few replicas, no difference could have been found reliably"
        errors = count(math.ceil(comparison.detectable), "error")
        return f"a difference of {errors} or more would have been found four times in five"

    def table(self, rows: Sequence[Row]) -> list[list[str]]:
        """Returns the table: a list of column names, then a list of cells for each recipe."""
        has_validation = self._dataset.validation is not None
        columns = ["recipe", "n", *(["validation accuracy, %"] if has_validation else [])]
        columns += ["test accuracy, %", "test errors", "difference from the base, points", "p"]
        columns += ["training, s", "compiling, s"]
        table = [columns]
        for row in rows:
            errors, margins = row.errors, ("", "")
            if errors.low is not None:
                half = errors.high - errors.mean
                margins = f" ± {self._points(half):.3f}", f" ± {half:.1f}"
            table.append(
                [
                    row.name,
                    str(errors.n),
                    *([f"{row.validation_accuracy:.3f}"] if has_validation else []),
                    f"{self.accuracy(errors.mean):.3f}{margins[0]}",
                    f"{errors.mean:.1f}{margins[1]}",
                    *self._comparison_cells(row.comparison),
                    f"{np.mean([replica.train_seconds for replica in row.replicas]):,.1f}",
                    f"{max(replica.compile_seconds for replica in row.replicas):,.1f}",
                ]
            )
        return table

    def _comparison_cells(self, comparison: Comparison | None) -> list[str]:
        if comparison is None:
            return ["", ""]
        gain = f"{self._gain(comparison, comparison.ratio):+.3f}"
        if comparison.p is None:
            return [gain, "not tested"]
        low, high = (self._gain(comparison, end) for end in (comparison.high, comparison.low))
        return [f"{gain} ({low:+.3f} to {high:+.3f})", _p(comparison.p)]

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """Returns sentences on how the numbers were obtained."""
        validation, times = self._dataset.validation, "once, after its last epoch"
        aside = "No images were set aside (config.dataset.validation_size=0)"
        if validation is not None:
            aside = f"{len(validation):,} training images were set aside for validation"
        if self._num_final_epochs > 1:
            times = (
                f"after each of its last {self._num_final_epochs} epochs, and its result is the "
                "mean of these"
            )
        notes = [
            f"{aside}. Each replica was evaluated on the test set {times}. The test set was used "
            "for nothing but this report. The table is sorted by test errors.",
            "± is the 95 % confidence interval of the mean, by Student's t distribution.",
            *_notes_on_test([row.comparison for row in rows if row.comparison is not None]),
        ]
        together = sorted({replica.num_together for row in rows for replica in row.replicas})
        notes.append(
            "Training: mean seconds per replica, without compilation and evaluation; replicas were "
            f"trained {' or '.join(map(str, together))} at a time. Compiling: seconds of the "
            "recipe's longest compilation."
        )
        if validation is not None and len(rows) > 1:
            best = max(rows, key=lambda row: row.validation_accuracy)
            notes.append(f"Best on the validation images: {best.name}.")
        return notes


def origin(dataset: Dataset, rows: Sequence[Row], now: datetime.datetime) -> str:
    """Returns a line that names the data, the devices, the versions and the date."""
    replicas = [replica for row in rows for replica in row.replicas]
    numbers = sorted({replica.config["num_epochs"] for replica in replicas})
    epochs = " or ".join(count(number, "epoch") for number in numbers)
    devices = _alternatives(replica.device for replica in replicas)
    versions = ", ".join(
        f"{name} {_alternatives(r.versions.get(name, '?') for r in replicas)}"
        for name in ("python", "jax", "flax", "optax", "numpy")
    )
    return (
        f"{dataset.title}, {len(dataset.train):,} training images, {epochs}. "
        f"{devices}; {versions}, scipy {importlib.metadata.version('scipy')}; "
        f"{now:%Y-%m-%d}."
    )


def spread(num_errors: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean of the errors `[draws]`, and the limits of their middle 95 %."""
    low, high = np.quantile(num_errors, _QUANTILES)
    return float(num_errors.mean()), float(low), float(high)


def words_of_ensemble(name: str, draws: Draws) -> str:
    """Returns one sentence on the ensembles of a recipe."""
    mean = f"{draws.num_errors.mean():.1f}"
    size = count(draws.size, "network")
    return f"{name}: ensembles of {size} make {mean} test errors on average"


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
    head, *lines = [f"| {' | '.join(cells)} |" for cells in table]
    return [head, "|---|" + "---:|" * (len(table[0]) - 1), *lines]


def _picture(name: str) -> str:
    return f"![{FIGURES[name]}](figures/{name})"


def _ensemble_table(
    name: str, draws: Sequence[Draws], accuracy: Callable[[float], float]
) -> list[str]:
    lines = [
        f"## Ensembles of {name}",
        "",
        "Each ensemble averages the probabilities of different replicas, drawn at random. "
        "Ensembles may share replicas, so the range shows how much the choice among these "
        "replicas matters, not how much newly trained ones would differ.",
        "",
        "| networks | ensembles | mean test accuracy, % | range of the middle 95 % |",
        "|---:|---:|---:|---:|",
    ]
    for of_size in draws:
        mean, low, high = spread(of_size.num_errors)
        drawn = f"{len(of_size.num_errors):,}{', all' if of_size.is_all else ''}"
        lines.append(
            f"| {of_size.size} | {drawn} | {accuracy(mean):.3f} | "
            f"{accuracy(high):.2f} to {accuracy(low):.2f} |"
        )
    return lines


def _conclusion(comparison: Comparison) -> str:
    direction = "better" if comparison.ratio < 1 else "worse"
    if comparison.is_found:
        return f"{direction} than the base"
    # Nobody would believe "no difference" about results that do not even overlap.
    if comparison.is_apart:
        return f"undecided, although every replica is {direction} than all of the base's"
    return "no difference found"


def _notes_on_test(comparisons: Sequence[Comparison]) -> list[str]:
    number = sum(comparison.p is not None for comparison in comparisons)
    if not number:
        return []
    together = "this one comparison" if number == 1 else f"all {number} comparisons together"
    return [
        "Recipes are compared by the geometric mean of their test errors plus 0.5. The "
        "differences, their 95 % confidence intervals (in brackets) and p all come from one test "
        "on the logarithms: it computes Welch's t for each recipe and, as in Dunnett's test "
        "(1955), compares it with the largest |t| that chance alone would produce among recipes "
        f"that share a base. p and the intervals hold for {together}: if no recipe differs from "
        "the base, the chance of finding any difference is 5 %. Unlike Dunnett's test, this one "
        "does not assume that all recipes vary equally: it simulates the distribution of the "
        "largest |t| with the measured variances.",
        "Replicas with the same seed are not paired: their results are no more alike than those "
        "with different seeds, so pairing would only cost degrees of freedom.",
        "p and the intervals are valid only if the numbers of seeds and variants were fixed "
        "beforehand; those of an unfinished study are provisional.",
    ]


def _alternatives(values: Iterable[str]) -> str:
    return " or ".join(sorted(set(values)))


def count(number: int, noun: str) -> str:
    """Returns a number with its noun, such as '1 seed' or '1,000 seeds'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _p_is(value: float) -> str:
    return f"p {_p(value)}" if value < 0.001 else f"p = {_p(value)}"

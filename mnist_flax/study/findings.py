"""Writes what a study found: study.json, study.md, study.html and figures/study.png."""

import base64
import dataclasses
import datetime
import json
import math
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mnist_flax.data import Dataset
from mnist_flax.report import metrics
from mnist_flax.report.page import render
from mnist_flax.run.configs import flatten
from mnist_flax.run.resuming import to_json
from mnist_flax.run.workdir import Workdir
from mnist_flax.runtime import process
from mnist_flax.runtime.background import attempt
from mnist_flax.runtime.files import write_whole
from mnist_flax.study.comparison import Comparison, Interval, compare, mean_interval
from mnist_flax.study.recipes import BASE
from mnist_flax.study.store import Replica, ReplicaStore, finite

_INK, _BETTER, _WORSE, _SAME = "#222222", "#1a9850", "#d73027", "#7b8794"


@dataclasses.dataclass(frozen=True)
class Row:
    """A recipe of a study: a row of its table, and an entry of study.json."""

    name: str
    overrides: dict[str, Any]  # the fields that differ from the base
    test_errors: Interval  # the mean over its replicas
    comparison_with_base: Comparison | None  # None for the base, and without a common seed
    num_diverged: int  # replicas whose test loss is not finite
    ensemble_errors: int | None  # of all replicas' mean probabilities on the test images, if asked
    replicas: list[Replica]  # the finished ones, by seed


@dataclasses.dataclass(frozen=True)
class Findings:
    """Writes what the finished replicas of a study show."""

    config: ConfigDict  # the whole configuration
    dataset: Dataset
    folder: Workdir
    store: ReplicaStore  # holds the probabilities of the replicas

    def write(
        self,
        replicas: Collection[Replica],
        say: Callable[[str], None],
        ensemble: bool = False,
    ) -> list[str]:
        """Writes all files.

        Args:
          replicas: the finished replicas.
          say: prints a line; called if the figure or the page cannot be written.
          ensemble: whether to average the probabilities of each recipe's replicas too.

        Returns:
          The findings in words, a sentence for each recipe.
        """
        rows = self._rows(replicas, ensemble)
        if not rows:
            return []
        study = self._content(rows)
        self.folder.write_json("study.json", finite(study))
        figure = (self.folder.figures / "study.png", rows, study["num_test"], study["data"])
        png = attempt("drawing failed", say, draw, *figure) or b""
        keys = {key for replica in replicas for record in replica.records for key in record}
        values = {
            **study,
            "dataset": self.dataset,
            "name": self.folder.path.resolve().name,
            "call": process.repeating_command(),
            "num_replicas": (1 + len(self.config.study.variants)) * self.config.study.num_seeds,
            "replicas": replicas,
            "figure": base64.b64encode(png).decode(),
            "metrics": {k: metrics.look(k)._asdict() for k in sorted(keys) if "/" in k},
        }
        for name in ("words", "notes"):
            values[name] = _paragraphs(_fill(f"{name}.txt", values))
        values["table"] = _fill("table.md", values)
        self.folder.write("study.md", _fill("study.md", values))
        page = "study.html"
        attempt(f"writing {page} failed", say, lambda: self.folder.write(page, _fill(page, values)))
        return values["words"]

    def _content(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Returns what study.json holds; the other files show parts of it."""
        return {
            "date": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
            "data": self.dataset.title,
            "num_train": len(self.dataset.train),
            "num_validation": len(self.dataset.validation or ()),
            "num_test": len(self.dataset.test),
            "test": "paired t test by seed of log(test errors + 0.5)",
            "correction": "p by Holm's method, intervals by Bonferroni's",
            "config": json.loads(to_json(self.config.to_dict())),
            "recipes": rows,
        }

    def _rows(self, replicas: Collection[Replica], ensemble: bool) -> list[Row]:
        """Returns the recipes that have finished replicas, sorted by mean test errors."""
        of: dict[str, list[Replica]] = {BASE: []}
        for replica in sorted(replicas, key=lambda replica: replica.seed):
            of.setdefault(replica.variant, []).append(replica)
        errors = {name: {r.seed: r.num_errors for r in own} for name, own in of.items()}
        compared = compare(errors.pop(BASE), errors)
        rows = [
            Row(
                name,
                flatten(self.config.study.variants.get(name, {})),
                mean_interval([replica.num_errors for replica in own]),
                compared.get(name),
                sum(replica.results["test"]["loss"] is None for replica in own),
                self._ensemble_errors(own) if ensemble else None,
                own,
            )
            for name, own in of.items()
            if own
        ]
        return sorted(rows, key=lambda row: row.test_errors.mean)

    def _ensemble_errors(self, replicas: Sequence[Replica]) -> int:
        total = sum(self.store.probabilities(replica, "test").astype(float) for replica in replicas)
        return int(np.sum(total.argmax(axis=1) != self.dataset.test.labels))


def change(ratio: float) -> str:
    """Returns a ratio of errors in words, such as '22 % more'."""
    return f"{100 * abs(ratio - 1):,.0f} % {'fewer' if ratio < 1 else 'more'}"


def p_value(p: float) -> str:
    """Returns a p value as text, such as '= 0.012'."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _paragraphs(text: str) -> list[str]:
    """Returns the paragraphs of a text, each as one line."""
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


_TEMPLATES = render.templates(pathlib.Path(__file__).parent)


def _fill(template: str, values: dict[str, Any]) -> str:
    return _TEMPLATES.get_template(template).render(values, change=change, p_value=p_value)


def draw(path: pathlib.Path, rows: Sequence[Row], num_test: int, title: str) -> bytes:
    """Draws test accuracies: a row per recipe, with a point per seed and the mean's interval.

    Args:
      path: the file to write.
      rows: the recipes, from top to bottom.
      num_test: the number of test images.
      title: the title of the figure; it names the data.

    Returns:
      The figure as a PNG.
    """
    # Imported here because matplotlib takes a second.
    from mnist_flax.report import figures

    png = figures.own_style(_draw)(figures, rows, num_test, title)
    write_whole(path, png)
    return png


def _draw(figures: Any, rows: Sequence[Row], num_test: int, title: str) -> bytes:
    figure = figures.create_figure(10, 1.9 + 0.42 * len(rows))
    ax = figure.subplots()
    shown = [(y, row, row.name == BASE, *_verdict(row)) for y, row in enumerate(rows)]
    for y, row, is_base, color, note in shown:
        own = [100 - 100 * replica.num_errors / num_test for replica in row.replicas]
        # Points lie one above the other, so that they do not hide each other.
        heights = y + np.linspace(-0.22, 0.22, len(own)) if len(own) > 1 else [y]
        point = {"alpha": 0.45, "markersize": 4, "label": "one seed" * is_base}
        ax.plot(own, heights, "o", color=color, **point)
        place = {"va": "center", "transform": ax.get_yaxis_transform()}
        ax.text(1.01, y, note, color=color, fontsize=9, **place)
    ax.margins(x=0.5)
    ax.set_xlim(ax.get_xlim())  # an interval may run off the picture: of two seeds, it is very wide
    for y, row, is_base, color, _ in shown:
        mean, label = row.test_errors, "mean and its 95 % confidence interval" * is_base
        center, half = 100 - 100 * mean.mean / num_test, 100 * (mean.high - mean.mean) / num_test
        bar = {"xerr": half, "elinewidth": 2.2, "markersize": 7, "label": label}
        ax.errorbar(center, y, fmt="D", color=color, **bar)
        if is_base:
            ax.axvline(center, color=_INK, linewidth=0.8, linestyle=":")
            ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9)
    ax.set_yticks(range(len(rows)), [row.name for row in rows])
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel="test accuracy, %")
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    return figures.to_png(figure)


def _verdict(row: Row) -> tuple[str, str]:
    """Returns the colour of a row and the note beside it."""
    compared = row.comparison_with_base
    if compared is None:
        return (_INK, "the base") if row.name == BASE else (_SAME, "")
    if math.isnan(compared.p):
        return _SAME, "not tested"
    p = f"p {p_value(compared.p)}"
    if not compared.is_found:
        return _SAME, f"no difference found, {p}"
    return _BETTER if compared.ratio < 1 else _WORSE, f"{change(compared.ratio)} errors, {p}"

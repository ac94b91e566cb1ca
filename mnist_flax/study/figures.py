"""Draws the figures of a study with matplotlib."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mnist_flax.report.figures import INK, create_figure, to_png
from mnist_flax.study.ensemble import Draws
from mnist_flax.study.findings_text import FindingsText, Row, spread
from mnist_flax.study.recipes import BASE

_BETTER, _WORSE, _SAME = "#1a9850", "#d73027", "#7b8794"
_CURVES = ("#4575b4", "#d95f02", "#7570b3", "#1a9850", "#d73027", "#222222")


def draw(
    rows: Sequence[Row], draws: Mapping[str, Sequence[Draws]], text: FindingsText, title: str
) -> dict[str, bytes]:
    """Draws what a study found.

    Args:
      rows: the recipes, from top to bottom.
      draws: the ensembles of each recipe, smallest first; a recipe may have none.
      text: puts the findings into text.
      title: the title of the figures; it names the data.

    Returns:
      The figures as PNGs, by file name.
    """
    curves = {
        name: [
            (of_size.size, *(text.accuracy(errors) for errors in spread(of_size.num_errors)))
            for of_size in of_row
        ]
        for name, of_row in draws.items()
        if of_row
    }
    figures = {"study.png": study(rows, text, title)}
    if curves:
        figures["ensemble.png"] = ensembles(curves, title)
    return {name: to_png(figure) for name, figure in figures.items()}


def study(rows: Sequence[Row], text: FindingsText, title: str) -> Figure:
    """Draws test accuracies: a row per recipe, with a point per seed and the mean's interval.

    The arguments are those of `draw`.
    """
    figure = create_figure(10, 1.9 + 0.42 * len(rows))
    ax = figure.subplots()
    for y, row in enumerate(rows):
        is_base, errors, mean = row.name == BASE, row.errors, text.accuracy(row.errors.mean)
        color = INK if is_base else (_SAME, _BETTER, _WORSE)[row.verdict]
        points = [text.accuracy(replica.num_errors) for replica in row.replicas]
        # Points lie one above the other, so that they do not hide each other.
        offsets = np.linspace(-0.22, 0.22, len(points)) if len(points) > 1 else [0]
        ax.plot(points, y + np.array(offsets), "o", color=color, alpha=0.45, markersize=4)
        if errors.low is not None:
            interval = [text.accuracy(errors.high), text.accuracy(errors.low)]
            ax.plot(interval, [y, y], "-", color=color, linewidth=2.2)
        ax.plot(mean, y, "D", color=color, markersize=7)
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        style = {"va": "center", "fontsize": 9, "color": color}
        note = "the base" if is_base else text.note(row)
        ax.annotate(note, (1, y), xytext=(8, 0), **where, **style)
        if is_base:
            ax.axvline(mean, color=INK, linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(rows)), [row.name for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("test accuracy, %")
    ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.grid(axis="x", alpha=0.3)
    key = [
        Line2D([], [], marker="o", linestyle="", color=INK, alpha=0.45, markersize=4),
        Line2D([], [], marker="D", linestyle="-", color=INK, markersize=7),
    ]
    names = ["one seed", "mean and its 95 % confidence interval"]
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
    ax.legend(key, names, **place, frameon=False, fontsize=9)
    figure.suptitle(title)
    return figure


def ensembles(
    curves: Mapping[str, Sequence[tuple[int, float, float, float]]], title: str
) -> Figure:
    """Draws test accuracy against the number of networks that are averaged.

    Args:
      curves: for each recipe, in ascending size: the size, the ensembles' mean accuracy, and the
        limits of the middle 95 % of them, in percent.
      title: the title of the figure; it names the data.
    """
    figure = create_figure(8, 4.6)
    ax = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        size, mean, low, high = map(np.array, zip(*points, strict=True))
        color = _CURVES[index % len(_CURVES)]
        ax.fill_between(size, low, high, color=color, alpha=0.2, linewidth=0)
        ax.plot(size, mean, "o-", color=color, label=name)
    sizes = sorted({point[0] for points in curves.values() for point in points})
    ax.set_xscale("log")
    ax.set_xticks(sizes, list(map(str, sizes)))
    ax.set_xticks([], minor=True)
    ax.set(xlabel="networks averaged", ylabel="test accuracy, %")
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", frameon=False)
    figure.suptitle(f"{title}\nline: mean of the ensembles; band: the middle 95 % of them")
    return figure

"""Draws the figures of a run with matplotlib; every title names the data."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from mnist_flax.history import History
from mnist_flax.report import metrics

MAX_DIGITS = 100  # per figure

INK = "#222222"
_RIGHT = "#1a9850"
_WRONG = "#d73027"
_OTHER = "#9aa5b1"
_SPLITS = dict(zip(metrics.SPLITS, ("#4575b4", "#7570b3", "#d95f02"), strict=True))
_GREY = {"cmap": "gray", "vmin": 0, "vmax": 255}

# For every function that draws, so that a user's matplotlibrc does not reach our figures. They are
# drawn on another thread, so they must not touch pyplot and its backend either.
own_style = matplotlib.style.context("default")


@own_style
def create_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of the given size in inches, with a margin."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    return figure


@own_style
def to_png(figure: Figure) -> bytes:
    """Returns a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


@own_style
def augmentation_sheet(original: np.ndarray, augmented: np.ndarray, title: str) -> Figure:
    """Draws a digit and its augmentations, ten to a row.

    Args:
      original: `[height, width, 1]`, 0..255.
      augmented: `[n, height, width, 1]`, 0..255; n is 9, 19, 29 and so on.
      title: the title of the figure; it names the data.
    """
    images = np.concatenate([original[None], augmented])[..., 0]
    cells = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=255)  # gaps of 2 pixels
    rows, (height, width) = len(images) // 10, cells.shape[1:]
    figure = create_figure(10, rows + 0.7)
    ax = figure.subplots()
    ax.imshow(np.block([[*row] for row in cells.reshape(rows, 10, height, width)]), **_GREY)
    ax.add_patch(Rectangle((0, 0), width - 1, height - 1, fill=False, color=_WRONG, linewidth=2))
    ax.set_axis_off()
    figure.suptitle(f"{title}\none digit (framed red) and {len(augmented)} augmentations of it")
    return figure


@own_style
def digits_with_bars(
    images: np.ndarray,
    labels: np.ndarray | None,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """Draws digits above the bars of their class probabilities, in a grid.

    Args:
      images: `[n, height, width, 1]`, 0..255. If there are more than `MAX_DIGITS`, only the first
        are drawn, and the title says so. If there are none, the figure says "none".
      labels: int `[n]`; None if the true classes are not known.
      probabilities: `[n, classes]`, 0..1.
      class_names: the names of the classes.
      title: says what is shown, and names the data.
    """
    if len(images) == 0:
        figure = create_figure(9, 1.6)
        figure.suptitle(textwrap.fill(title, 100))
        figure.text(0.5, 0.35, "none", ha="center", fontsize=16, color=_RIGHT)
        return figure
    if len(images) > MAX_DIGITS:
        title += f" (the first {MAX_DIGITS:,} of {len(images):,})"
    images, probabilities = images[:MAX_DIGITS], probabilities[:MAX_DIGITS]
    predictions = probabilities.argmax(1)
    colors = {"true class": _RIGHT, "wrongly predicted": _WRONG}
    if labels is None:
        labels, colors = predictions, {"predicted class": _RIGHT}
    columns = min(len(images), 10)
    zoom = max(1, min(2.4, 5 / columns))  # enlarges the digits if there are only a few
    ax = _grid(len(images), columns, zoom, title, class_names, colors)
    # All cells share one pair of axes, 1 wide and `_CELL` high each: a hundred would take seconds.
    cells = np.arange(len(images))
    left, top = cells % columns, cells // columns * _CELL
    size = zoom * (6 if _are_long(class_names) else 9)
    for x, y, image, label, prediction in zip(left, top, images, labels, predictions, strict=False):
        ax.imshow(image[..., 0], extent=(x + 0.12, x + 0.88, y + 0.96, y + 0.2), **_GREY)
        name, color = class_names[label], _RIGHT
        if label != prediction:
            name, color = f"{name} → {class_names[prediction]}", _WRONG
        ax.text(x + 0.5, y + 0.11, name, ha="center", va="center", fontsize=size, color=color)
    _draw_bars(ax, left, top + 1.4, labels[: len(images)], probabilities, zoom)
    return ax.figure


@own_style
def curves(history: History, title: str) -> Figure:
    """Draws the metrics over the epochs, each in a panel of its own.

    Args:
      history: at least one epoch.
      title: the title of the figure; it names the data.
    """
    charts = metrics.charts(history)
    figure = create_figure(5.5 * len(charts), 4.7)
    panels = figure.subplots(1, len(charts), squeeze=False)[0]
    for ax, chart in zip(panels, charts, strict=True):
        _draw_chart(ax, chart)
        ax.set(xlabel="epoch", xlim=(0, 1.03 * history.epoch))
    faint = {line["name"] for chart in charts for line in chart["series"] if line["isFaint"]}
    title = f"{title}: after epoch {history.epoch}"
    figure.suptitle("\nfaint: ".join([title, *faint]))
    return figure


@own_style
def confusion(matrix: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Draws a confusion matrix: errors are coloured by their number, the diagonal is grey.

    Args:
      matrix: int `[classes, classes]`; the rows are the true classes.
      class_names: the names of the classes.
      title: the title of the figure; it names the data.
    """
    figure = create_figure(8, 7.4)
    ax = figure.subplots()
    is_diagonal = np.eye(len(matrix), dtype=bool)
    errors = np.ma.masked_where(is_diagonal, matrix)
    highest = max(int(errors.max()), 1)
    ax.imshow(errors, cmap="Oranges", vmin=0, vmax=highest)
    for row, column in np.argwhere((matrix > 0) | is_diagonal):
        count = matrix[row, column]
        if row == column:
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color="#e4e7eb"))
        dark = row != column and count > 0.6 * highest
        ax.text(column, row, f"{count:,}", ha="center", va="center", color="w" if dark else INK)
    recalls = np.diag(matrix) / np.maximum(matrix.sum(1), 1)
    names = [f"{name}  ({recall:.1%})" for name, recall in zip(class_names, recalls, strict=True)]
    ax.set_xticks(range(len(matrix)), class_names, rotation=45 if _are_long(class_names) else 0)
    ax.set_yticks(range(len(matrix)), names)
    ax.set(xlabel="predicted", ylabel="true class (share recognised)")
    figure.suptitle(title)
    return figure


def _draw_chart(ax: Axes, chart: dict[str, Any]) -> None:
    """Draws a metric of each split by epoch, with its axes and a legend of the last values."""
    unit, lowest = chart["unit"], float("inf")
    for line in chart["series"]:
        if line["isFaint"]:
            ax.plot(line["x"], line["y"], color=_SPLITS["train"], alpha=0.3, linewidth=1)
            continue
        last = f"{line['y'][-1]:.{chart['decimals']}f}{' %' if unit == '%' else ''}"
        style = {"color": _SPLITS[line["name"]], "label": f"{line['name']} {last}"}
        ax.plot(line["x"], line["y"], "o-", markersize=4, **style)
        lowest = min(lowest, *line["y"])
    if chart["scale"] == "log":
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    if unit == "%":
        # The climb from 10 % in the first steps would flatten everything after it.
        room = max(100 - lowest, 0.1)
        ax.set_ylim(max(0, lowest - 0.15 * room), 100 + 0.05 * room)
    ax.set_ylabel(", ".join(filter(None, (chart["title"].lower(), unit))))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    # The legend goes above the axes, where it covers nothing.
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(_SPLITS)}
    ax.legend(**place, frameon=False, fontsize=9, columnspacing=1.2)


_CELL = 1.62  # holds a header, a digit, its bars and the class digits


def _are_long(class_names: Sequence[str]) -> bool:
    return max(map(len, class_names)) > 3


def _grid(
    count: int,
    columns: int,
    zoom: float,
    title: str,
    class_names: Sequence[str],
    colors: dict[str, str],
) -> Axes:
    """Returns axes for cells that are `1.1 * zoom` inches wide, below a title and a legend."""
    colors = colors | {"other classes": _OTHER, "bars: softmax probability, 0 to 1": "none"}
    handles = [Patch(color=color, label=label) for label, color in colors.items()]
    rows, width = -(-count // columns), max(1.1 * zoom * columns, 4.2)
    has_names = list(class_names) != [str(label) for label in range(len(class_names))]
    names = "   ".join(f"{i} {name}".replace(" ", "\xa0") for i, name in enumerate(class_names))
    # Wrap lines at the width of the figure; a letter is about half as wide as it is high.
    title, names = textwrap.fill(title, int(10.5 * width)), textwrap.fill(names, int(15 * width))
    key_rows = 2 if width < 7 else 1
    num_lines = title.count("\n") + key_rows + has_names * (1 + names.count("\n"))
    figure = create_figure(width + 0.24, 1.1 * zoom * _CELL * rows + 0.65 + 0.22 * num_lines)
    figure.suptitle(title, fontsize=13)
    ax = figure.subplots()
    ax.set_axis_off()
    ax.set(xlim=(0, columns), ylim=(rows * _CELL, 0), aspect="equal", autoscale_on=False)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 4 // key_rows}
    heading = {"title": names, "title_fontsize": 9} if has_names else {}
    ax.legend(handles=handles, **place, **heading, frameon=False, fontsize=8)
    return ax


def _draw_bars(
    ax: Axes,
    left: np.ndarray,
    bottom: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    zoom: float,
) -> None:
    """Draws the bars of the cells at `left` and `bottom`, 0.38 high, and the class digits below."""
    width = 0.88 / probabilities.shape[1]
    x = left[:, None] + 0.06 + width * (np.arange(probabilities.shape[1]) + 0.42)
    y, cells = np.broadcast_to(bottom[:, None], x.shape), np.arange(len(x))
    colors = np.full(x.shape, _OTHER)
    colors[cells, probabilities.argmax(1)] = _WRONG
    colors[cells, labels] = _RIGHT
    ax.hlines(bottom, left + 0.06, left + 0.94, color=_OTHER, linewidth=0.5)
    # A bar is a thick line; its width is in points, 72 to the inch.
    points = 72 * 1.1 * zoom * 0.85 * width
    ax.vlines(x, y, y - 0.38 * probabilities, colors=colors.ravel(), linewidth=points)
    for label, centers in enumerate(x.T):
        ink = np.where(labels == label, _RIGHT, INK)
        style = {"s": 14 * zoom**2, "c": ink, "marker": f"${label}$", "linewidths": 0}
        ax.scatter(centers, bottom + 0.08, **style)

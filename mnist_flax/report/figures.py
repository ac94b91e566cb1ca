"""Draws the figures of a run with matplotlib; every title names the data."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

DPI = 130
MAX_DIGITS = 1_000  # per figure: 20 x 50, 10,000 pixels high; W&B's table holds all digits

INK = "#222222"
_RIGHT = "#1a9850"
_WRONG = "#d73027"
_OTHER = "#9aa5b1"
_SPLITS = {"train": "#4575b4", "validation": "#7570b3", "test": "#d95f02"}
_FAINT = {"color": _SPLITS["train"], "alpha": 0.3, "linewidth": 1}


def to_png(figure: Figure) -> bytes:
    """Returns a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def augmentation_sheet(original: np.ndarray, augmented: np.ndarray, title: str) -> Figure:
    """Draws a digit and its augmentations, ten to a row.

    Args:
      original: `[height, width, 1]`, 0..255.
      augmented: `[n, height, width, 1]`, 0..255.
      title: the title of the figure; it names the data.
    """
    images = np.concatenate([original[None], augmented])[..., 0]
    columns, gap = 10, 2  # the gap in pixels of the images
    rows = -(-len(images) // columns)
    height, width = images.shape[1] + gap, images.shape[2] + gap
    sheet = np.full((rows * height + gap, columns * width + gap), 255.0)
    for index, image in enumerate(images):
        top, left = index // columns * height + gap, index % columns * width + gap
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    figure = create_figure(10, rows + 0.7)
    ax = figure.subplots()
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=255)
    ax.add_patch(
        Rectangle((gap - 1, gap - 1), width - 1, height - 1, fill=False, color=_WRONG, linewidth=2)
    )
    ax.set_axis_off()
    figure.suptitle(f"{title}\none digit (framed red) and {len(augmented)} augmentations of it")
    return figure


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
    total, green = len(images), "predicted class" if labels is None else "true class"
    labels = probabilities.argmax(1) if labels is None else labels
    if total == 0:
        return _empty(title)
    if total > MAX_DIGITS:
        images, labels, probabilities = (a[:MAX_DIGITS] for a in (images, labels, probabilities))
        title += f" (the first {MAX_DIGITS:,} of {total:,})"
    columns = min(len(images), 10 if len(images) <= 100 else 20)
    rows = -(-len(images) // columns)
    zoom = max(1, min(2.4, 5 / columns))  # enlarges the digits if there are only a few
    figure, ax = _grid(rows, columns, zoom, title, class_names, green)
    for cell, image in enumerate(images):
        left, top = cell % columns, (cell // columns) * _CELL_HEIGHT
        ax.imshow(
            image[..., 0],
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=(left + 0.12, left + 0.88, top + 0.96, top + 0.2),
        )
    _draw_headers(ax, labels, probabilities.argmax(1), class_names, columns, zoom)
    _draw_bars(ax, labels, probabilities, columns, zoom)
    ax.set(xlim=(0, columns), ylim=(rows * _CELL_HEIGHT, 0), aspect="equal")
    return figure


def curves(
    steps_per_epoch: int,
    step_losses: np.ndarray,
    step_accuracies: np.ndarray,
    records: Sequence[dict[str, float]],
    title: str,
) -> Figure:
    """Draws loss and accuracy over the epochs.

    Args:
      steps_per_epoch: places the steps on the axis of epochs.
      step_losses: the training loss of each step, `[steps]`.
      step_accuracies: the training accuracy of each step, 0..1, `[steps]`.
      records: the lines of metrics.jsonl.
      title: the title of the figure; it names the data.
    """
    figure = create_figure(11, 4.7)
    # Thousands of steps would look like a cloud. 30 points per epoch, as many as the original has
    # steps, look like a line.
    group = -(-steps_per_epoch // 30)
    step_axis, step_losses, step_accuracies = (
        values[: len(values) // group * group].reshape(-1, group).mean(axis=1)
        for values in (np.arange(1, len(step_losses) + 1), step_losses, step_accuracies)
    )
    epochs = [record["epoch"] for record in records]
    panels = [("loss", "cross-entropy", step_losses, 1), ("accuracy", "%", step_accuracies, 100)]
    axes = figure.subplots(1, 2)
    _make_logarithmic(axes[0])
    for ax, (name, unit, step_values, factor) in zip(axes, panels, strict=True):
        ax.plot(step_axis / steps_per_epoch, step_values * factor, **_FAINT)
        lowest = _draw_epochs(ax, epochs, records, name, factor)
        if name == "accuracy":
            # The climb from 10 % in the first steps would flatten everything after it.
            ax.set_ylim(max(0, lowest - 0.15 * (100 - lowest)), 100 + 0.05 * (100 - lowest))
        ax.set(xlabel="epoch", ylabel=f"{name}, {unit}", xlim=(0, 1.03 * max(epochs)))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        # The legend goes above the axes, where it covers nothing.
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(_SPLITS)}
        ax.legend(**place, frameon=False, fontsize=9, columnspacing=1.2)
    faint = "each training step" if group == 1 else f"means of {group} training steps"
    figure.suptitle(f"{title}: after epoch {epochs[-1]}\nfaint: {faint}")
    return figure


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


def _make_logarithmic(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _draw_epochs(
    ax: Axes,
    epochs: Sequence[float],
    records: Sequence[dict[str, float]],
    name: str,
    factor: int,
) -> float:
    """Draws a metric of each split, multiplied by `factor`; returns the lowest value drawn."""
    lowest = float("inf")
    for split, color in _SPLITS.items():
        if f"{split}/{name}" in records[0]:
            series = [record[f"{split}/{name}"] * factor for record in records]
            lowest = min(lowest, *series)
            last = f"{series[-1]:.4f}" if factor == 1 else f"{series[-1]:.2f} %"
            ax.plot(epochs, series, "o-", color=color, markersize=4, label=f"{split} {last}")
    return lowest


_CELL_HEIGHT = 1.62  # holds a header, a digit, its bars and the class digits; the width is 1
_BAR_TOP, _BAR_BOTTOM = 1.02, 1.4


def create_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of the given size in inches, with a margin."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    return figure


def _are_long(class_names: Sequence[str]) -> bool:
    return max(map(len, class_names)) > 3


def _empty(title: str) -> Figure:
    figure = create_figure(9, 1.6)
    figure.suptitle(textwrap.fill(title, 100))
    figure.text(0.5, 0.35, "none", ha="center", fontsize=16, color=_RIGHT)
    return figure


def _grid(
    rows: int, columns: int, zoom: float, title: str, class_names: Sequence[str], green: str
) -> tuple[Figure, Axes]:
    """Returns a figure for cells `1.1 * zoom` inches wide, below a title and a legend."""
    handles = [
        Patch(color=_RIGHT, label=green),
        *([Patch(color=_WRONG, label="wrongly predicted")] if green == "true class" else []),
        Patch(color=_OTHER, label="other classes"),
        Line2D([], [], linestyle="", label="bars: softmax probability, 0 to 1"),
    ]
    names = "   ".join(f"{i}\N{NO-BREAK SPACE}{name}" for i, name in enumerate(class_names))
    has_names = [str(label) for label in range(len(class_names))] != list(class_names)
    width, height = max(1.1 * zoom * columns + 0.2, 4.2), 1.1 * zoom * _CELL_HEIGHT * rows
    is_narrow = width < 7
    # Wrap lines at the width of the figure; a letter is about half as wide as it is high.
    title = textwrap.fill(title, int(10.5 * width))
    names = textwrap.fill(names, int(15 * width)) if has_names else ""
    title_top = 0.12
    legend_top = title_top + 0.11 + 0.22 * (1 + title.count("\n"))
    names_top = legend_top + (0.55 if is_narrow else 0.4)
    head = names_top + (0.1 + 0.16 * (1 + names.count("\n")) if names else 0.1)
    figure = Figure(figsize=(width, height + head), dpi=DPI if rows <= 20 else 110)
    ax = figure.add_axes((0, 0, 1, height / (height + head)))
    ax.set_axis_off()
    for text, top, size in ((title, title_top, 13), (names, names_top, 9)):
        figure.text(0.5, 1 - top / (height + head), text, ha="center", va="top", fontsize=size)
    figure.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - legend_top / (height + head)),
        ncols=2 if is_narrow else 4,
        frameon=False,
        fontsize=8,
    )
    return figure, ax


def _draw_headers(
    ax: Axes,
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    columns: int,
    zoom: float,
) -> None:
    size = zoom * (6 if _are_long(class_names) else 9)
    for cell, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        is_right = label == prediction
        name = class_names[label]
        ax.text(
            cell % columns + 0.5,
            (cell // columns) * _CELL_HEIGHT + 0.11,
            name if is_right else f"{name} → {class_names[prediction]}",
            ha="center",
            va="center",
            fontsize=size,
            color=_RIGHT if is_right else _WRONG,
        )


def _draw_bars(
    ax: Axes, labels: np.ndarray, probabilities: np.ndarray, columns: int, zoom: float
) -> None:
    """Draws all bars as one collection, and each class's digits as one scatter plot, for speed."""
    count, num_classes = probabilities.shape
    cells = np.arange(count)
    width = 0.88 / num_classes
    left = (cells % columns)[:, None] + 0.06 + width * np.arange(num_classes)
    bottom = ((cells // columns) * _CELL_HEIGHT + _BAR_BOTTOM)[:, None] + np.zeros_like(left)
    top = bottom - probabilities * (_BAR_BOTTOM - _BAR_TOP)
    right = left + 0.85 * width
    corners = np.stack([(left, bottom), (left, top), (right, top), (right, bottom)])
    vertices = corners.transpose(2, 3, 0, 1).reshape(-1, 4, 2)
    colors = np.full((count, num_classes), _OTHER)
    predictions = probabilities.argmax(1)
    colors[cells, predictions] = _WRONG
    colors[cells, labels] = _RIGHT
    ax.hlines(bottom[:, 0], left[:, 0], right[:, -1], color=_OTHER, linewidth=0.5)
    ax.add_collection(PolyCollection(vertices, facecolors=colors.ravel()))
    for label in range(num_classes):
        is_true = labels == label
        for part, color in ((is_true, _RIGHT), (~is_true, INK)):
            ax.scatter(
                left[part, label] + 0.42 * width,
                bottom[part, label] + 0.08,
                marker=f"${label}$",
                s=14 * zoom**2,
                color=color,
                linewidths=0,
            )

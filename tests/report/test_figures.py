import io
import itertools

import numpy as np
import pytest
from PIL import Image

from mnist_flax.report import figures

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
FASHION += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = tuple("0123456789")
LONG_TITLE = "SAMPLE of 5,000 MNIST digits, not MNIST: the first 20 test images after epoch 1000"


def draw(figure) -> np.ndarray:
    """Returns the pixels of a figure's PNG, `[height, width, 3]`."""
    return np.asarray(Image.open(io.BytesIO(figures.to_png(figure))).convert("RGB"))


def assert_nothing_is_cropped(pixels):
    """Asserts that the edges are white: anything that touches them may be cut off."""
    edges = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    assert all((edge == 255).all() for edge in edges)
    assert (pixels < 128).any()


def predictions(count, num_wrong, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    probabilities = rng.dirichlet(np.full(10, 0.1), count)
    predicted = np.where(np.arange(count) < num_wrong, (labels + 1) % 10, labels)
    highest = probabilities.argmax(1)
    rows = np.arange(count)
    probabilities[rows, highest], probabilities[rows, predicted] = (
        probabilities[rows, predicted].copy(),
        probabilities[rows, highest].copy(),
    )
    images = rng.integers(0, 256, (count, 28, 28, 1)).astype(np.uint8)
    return images, labels, probabilities


@pytest.mark.parametrize("names", [DIGITS, FASHION], ids=["digits", "fashion"])
@pytest.mark.parametrize("count", [0, 1, 3, 20, 101, 250])
def test_digits_with_bars(count, names):
    title = f"{LONG_TITLE}, /and/the/long/path/of/a/run"
    figure = figures.digits_with_bars(*predictions(count, count // 2), names, title)
    assert_nothing_is_cropped(draw(figure))
    if count:
        head = [figure.texts[0], figure.legends[0], *figure.texts[1:2], *figure.axes]
        boxes = [part.get_window_extent() for part in head]
        for upper, lower in itertools.pairwise(boxes):
            assert upper.y0 >= lower.y1


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_few_digits_fill_the_figure(count):
    images, _, probabilities = predictions(count, 0)
    black = np.zeros_like(images)
    pixels = draw(figures.digits_with_bars(black, None, probabilities, DIGITS, "runs/1"))
    assert (pixels == 0).all(axis=-1).mean() > 0.15


def test_more_digits_than_are_drawn(monkeypatch):
    assert figures.MAX_DIGITS == 1_000
    monkeypatch.setattr(figures, "MAX_DIGITS", 110)  # drawing a thousand takes seconds
    figure = figures.digits_with_bars(*predictions(1_001, 1_001), DIGITS, "MNIST")
    assert "(the first 110 of 1,001)" in figure.texts[0].get_text()
    assert len(figure.axes[0].images) == 110
    assert_nothing_is_cropped(draw(figure))


def test_bars_are_the_probabilities():
    images, labels, probabilities = predictions(23, 5)
    figure = figures.digits_with_bars(images, labels, probabilities, DIGITS, "MNIST")
    (ax,) = figure.axes
    (bars,) = (c for c in ax.collections if len(c.get_paths()) == 230)
    heights = np.array([np.ptp(path.vertices[:, 1]) for path in bars.get_paths()])
    expected = probabilities.ravel() / probabilities.max()
    np.testing.assert_allclose(heights / heights.max(), expected, atol=1e-9)
    colors = bars.get_facecolors().reshape(23, 10, 4)
    true = colors[np.arange(23), labels]
    wrong = colors[np.arange(5), probabilities[:5].argmax(1)]
    for part, others in ((true, wrong), (wrong, true)):
        assert (part == part[0]).all()
        assert not (others == part[0]).all(axis=-1).any()
    headers = [text.get_text() for text in ax.texts]
    assert headers[0] == f"{labels[0]} → {(labels[0] + 1) % 10}"
    assert headers[22] == str(labels[22])


def test_digits_stand_above_their_bars():
    images, labels, probabilities = predictions(12, 0)
    figure = figures.digits_with_bars(images, labels, probabilities, DIGITS, "MNIST")
    (ax,) = figure.axes
    bars = next(c for c in ax.collections if len(c.get_paths()) == 120)
    for cell, image in enumerate(ax.images):
        left, right, bottom, _ = image.get_extent()
        spans = [path.vertices for path in bars.get_paths()[cell * 10 : cell * 10 + 10]]
        assert min(s[:, 1].min() for s in spans) > bottom  # the vertical axis points down
        assert (left + right) / 2 == pytest.approx(
            np.mean([s[:, 0].mean() for s in spans]), abs=0.02
        )
        np.testing.assert_array_equal(image.get_array(), images[cell, ..., 0])


def test_augmentation_sheet():
    images = np.full((30, 28, 28, 1), 100, np.uint8)
    images[:, 0, 0, 0] = np.arange(30)
    figure = figures.augmentation_sheet(images[0], images[1:], LONG_TITLE)
    assert_nothing_is_cropped(draw(figure))
    sheet = figure.axes[0].images[0].get_array()
    corners = sheet[2::30, 2::30][:3, :10]
    np.testing.assert_array_equal(corners, np.arange(30).reshape(3, 10))


@pytest.mark.parametrize("num_epochs", [1, 20])
@pytest.mark.parametrize("validation", [False, True])
def test_curves(num_epochs, validation):
    records = []
    for epoch in range(1, num_epochs + 1):
        record = {"epoch": epoch}
        for split in ("train", "test", *(["validation"] if validation else [])):
            record |= {f"{split}/loss": 1 / epoch, f"{split}/accuracy": 1 - 0.1 / epoch}
        records.append(record)
    steps = np.linspace(2.3, 0.1, num_epochs * 30)
    figure = figures.curves(30, steps, 1 - steps / 2.4, records, LONG_TITLE)
    assert_nothing_is_cropped(draw(figure))
    for ax in figure.axes:
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert len(labels) == 2 + validation
    assert "test 99.50 %" in labels or num_epochs == 1


@pytest.mark.parametrize("names", [DIGITS, FASHION], ids=["digits", "fashion"])
@pytest.mark.parametrize("errors", [0, 3_000])
def test_confusion(names, errors):
    matrix = np.diag(np.full(10, 1_000))
    matrix[3, 5] = errors
    figure = figures.confusion(matrix, names, LONG_TITLE)
    assert_nothing_is_cropped(draw(figure))
    shown = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert shown[(3, 3)] == "1,000"
    assert shown.get((5, 3)) == ("3,000" if errors else None)  # x is the prediction


def test_titles_carry_the_data():
    """Every figure shows the title that its caller gives."""
    images, labels, probabilities = predictions(2, 1)
    record = {f"{s}/{m}": 0.5 for s in ("train", "test") for m in ("loss", "accuracy")}
    drawn = [
        figures.digits_with_bars(images, labels, probabilities, DIGITS, "DATA"),
        figures.digits_with_bars(images[:0], labels[:0], probabilities[:0], DIGITS, "DATA"),
        figures.augmentation_sheet(images[0], images, "DATA"),
        figures.curves(1, np.ones(1), np.ones(1), [{"epoch": 1, **record}], "DATA"),
        figures.confusion(np.eye(10, dtype=int), DIGITS, "DATA"),
    ]
    for figure in drawn:
        texts = [figure.get_suptitle(), *(text.get_text() for text in figure.texts)]
        assert any(text.startswith("DATA") for text in texts)

import io
import itertools

import matplotlib
import numpy as np
import pytest
from PIL import Image

from mnist_flax.history import History
from mnist_flax.report import figures
from tests.report.pages import history

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
FASHION += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = tuple("0123456789")
LONG_TITLE = "SAMPLE of 5,000 MNIST digits, not MNIST: the first 20 test images after epoch 1000"

names = pytest.mark.parametrize("names", [DIGITS, FASHION], ids=["digits", "fashion"])


def draw(figure) -> np.ndarray:
    """Returns the pixels of a figure's PNG, `[height, width, 3]`."""
    return np.asarray(Image.open(io.BytesIO(figures.to_png(figure))).convert("RGB"))


def assert_nothing_is_cropped(pixels):
    """Asserts that the edges are white: anything that touches them may be cut off."""
    edges = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    assert all((edge == 255).all() for edge in edges)
    assert (pixels < 128).any()


def predictions(count, num_wrong):
    """Returns images, labels and probabilities; the first `num_wrong` are taken for the next."""
    rng = np.random.default_rng(0)
    labels, rows = rng.integers(0, 10, count), np.arange(count)
    probabilities = np.sort(rng.dirichlet(np.full(10, 0.1), count))
    probabilities = np.roll(probabilities, 1, axis=1)  # the highest one is the first
    shift = labels + (rows < num_wrong)
    probabilities = probabilities[rows[:, None], (np.arange(10) - shift[:, None]) % 10]
    return rng.integers(0, 256, (count, 28, 28, 1)).astype(np.uint8), labels, probabilities


@names
@pytest.mark.parametrize("count", [0, 1, 3, 20, 101])
def test_digits_with_bars(count, names):
    title = f"{LONG_TITLE}, /and/the/long/path/of/a/run"
    figure = figures.digits_with_bars(*predictions(count, count // 2), names, title)
    assert_nothing_is_cropped(draw(figure))
    if count:
        (ax,) = figure.axes
        boxes = [part.get_window_extent() for part in (figure._suptitle, ax.get_legend(), ax)]
        for upper, lower in itertools.pairwise(boxes):
            assert upper.y0 >= lower.y1 - 1


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_few_digits_fill_the_figure(count):
    images, _, probabilities = predictions(count, 0)
    black = np.zeros_like(images)
    pixels = draw(figures.digits_with_bars(black, None, probabilities, DIGITS, "runs/1"))
    assert (pixels == 0).all(axis=-1).mean() > 0.15


def test_no_more_than_a_hundred_digits():
    figure = figures.digits_with_bars(*predictions(1_001, 1_001), DIGITS, "MNIST")
    assert figure.get_suptitle() == "MNIST (the first 100 of 1,001)"
    assert len(figure.axes[0].images) == 100


def test_digits_stand_above_the_bars_of_their_probabilities():
    images, labels, probabilities = predictions(23, 5)
    figure = figures.digits_with_bars(images, labels, probabilities, DIGITS, "MNIST")
    (ax,) = figure.axes
    (bars,) = (c for c in ax.collections if len(c.get_paths()) == 230)
    ends = np.array([path.vertices for path in bars.get_paths()]).reshape(23, 10, 2, 2)
    heights = ends[..., 0, 1] - ends[..., 1, 1]  # the vertical axis points down
    np.testing.assert_allclose(
        heights / heights.max(), probabilities / probabilities.max(), atol=1e-9
    )
    for image, pixels, own in zip(ax.images, images, ends, strict=True):
        left, right, bottom, _ = image.get_extent()
        assert own[..., 1].min() > bottom
        assert (left + right) / 2 == pytest.approx(own[..., 0].mean(), abs=0.02)
        np.testing.assert_array_equal(image.get_array(), pixels[..., 0])
    colors = bars.get_colors().reshape(23, 10, 4)
    true = colors[np.arange(23), labels]
    wrong = colors[np.arange(5), probabilities[:5].argmax(1)]
    for part, others in ((true, wrong), (wrong, true)):
        assert (part == part[0]).all()
        assert not (others == part[0]).all(axis=-1).any()
    headers = [text.get_text() for text in ax.texts]
    assert headers[0] == f"{labels[0]} → {(labels[0] + 1) % 10}"
    assert headers[22] == str(labels[22])


def test_augmentation_sheet():
    images = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((28, 28, 1), np.uint8)
    figure = figures.augmentation_sheet(images[0], images[1:], LONG_TITLE)
    assert_nothing_is_cropped(draw(figure))
    sheet = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(sheet[1::30, 1::30], np.arange(30).reshape(3, 10))


@pytest.mark.parametrize("num_epochs", [1, 20])
def test_curves(num_epochs):
    figure = figures.curves(history(num_epochs), LONG_TITLE)
    assert_nothing_is_cropped(draw(figure))
    loss, accuracy = figure.axes
    assert (loss.get_ylabel(), loss.get_yscale()) == ("loss, cross-entropy", "log")
    assert (accuracy.get_ylabel(), accuracy.get_yscale()) == ("accuracy, %", "linear")
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    last = 100 - 25 / num_epochs
    assert labels == [f"train {100 - 12.5 / num_epochs:.2f} %", f"test {last:.2f} %"]
    assert "faint: train, each step" in figure.get_suptitle()


def test_a_panel_for_every_metric():
    records = tuple(r | {"validation/top3_accuracy": 1.0} for r in history(2).records)
    figure = figures.curves(History("anid", "MNIST", records), "MNIST")
    assert_nothing_is_cropped(draw(figure))
    panels = [ax.get_ylabel() for ax in figure.axes]
    assert panels == ["loss, cross-entropy", "accuracy, %", "top3 accuracy, %"]


@names
@pytest.mark.parametrize("errors", [0, 3_000])
def test_confusion(names, errors):
    matrix = np.diag(np.full(10, 1_000))
    matrix[3, 5] = errors
    figure = figures.confusion(matrix, names, LONG_TITLE)
    assert_nothing_is_cropped(draw(figure))
    shown = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert shown[(3, 3)] == "1,000"
    assert shown.get((5, 3)) == ("3,000" if errors else None)  # x is the prediction


def every(title):
    images, labels, probabilities = predictions(2, 1)
    yield figures.digits_with_bars(images, labels, probabilities, DIGITS, title)
    yield figures.digits_with_bars(images[:0], labels[:0], probabilities[:0], DIGITS, title)
    yield figures.augmentation_sheet(images[0], images.repeat(5, 0)[:9], title)
    yield figures.curves(history(1), title)
    yield figures.confusion(np.eye(10, dtype=int), DIGITS, title)


def test_titles_carry_the_data():
    assert all(figure.get_suptitle().startswith("DATA") for figure in every("DATA"))


def test_settings_of_the_user_do_not_reach_the_figures():
    """LaTeX, which is not installed, would fail; another origin would turn the digits over."""
    expected = [figures.to_png(figure) for figure in every("DATA")]
    own = {"text.usetex": True, "image.origin": "lower", "font.size": 30, "axes.grid": True}
    with matplotlib.rc_context({**own, "backend": "svg"}):
        assert [figures.to_png(figure) for figure in every("DATA")] == expected
        assert matplotlib.rcParams["backend"] == "svg" and matplotlib.rcParams["font.size"] == 30

"""Pictures like those that people have, made from MNIST's digits: the right answer is known."""

import io

import numpy as np
import pytest
from PIL import Image

from mnist_flax.errors import UserError
from mnist_flax.predict import pictures
from mnist_flax.sources import sample


@pytest.fixture(scope="module")
def digits():
    return sample.load().test.images[::50, ..., 0]


def enlarged(digit, side=200, margin=80):
    """Returns a digit as a large picture, bright on black, with unequal margins."""
    large = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC))
    return np.pad(large, ((margin, margin // 2), (margin // 4, margin)))


def save(tmp_path, picture, name="digit.png", **options):
    path = tmp_path / name
    Image.fromarray(picture).save(path, **options)
    return path


def assert_alike(ours, digit):
    """Asserts that two digits correlate, allowing for resampling and a shift by a pixel."""
    shifted = [np.roll(ours[..., 0], (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    correlations = [np.corrcoef(x.ravel(), digit.ravel())[0, 1] for x in shifted]
    assert max(correlations) > 0.85


def test_mnists_own_digits_stay_as_they_are():
    """One of the sample's 5,000 digits does change: its box is a pixel too small."""
    images = np.concatenate([split.images[..., 0] for split in sample.load()[:2]])
    same = [(pictures.center(image.astype(float)) == image).all() for image in images]
    assert (sum(same), len(same)) == (4_999, 5_000)


def test_a_box_and_a_centre_worked_out_by_hand():
    """A bar of 40x10 becomes 20x5; rows 5 to 24 and columns 12 to 16 centre it best on (14, 14)."""
    ink = np.zeros((100, 60))
    ink[10:50, 45:55] = 255
    expected = np.zeros((28, 28), np.uint8)
    expected[5:25, 12:17] = 255  # 14 - 9.5 = 4.5 is rounded up
    centred = pictures.center(ink)
    assert centred.dtype == np.uint8
    np.testing.assert_array_equal(centred, expected)


def test_the_centre_of_mass_counts_not_that_of_the_box():
    ink = np.zeros((20, 20))
    ink[:, :4] = 255  # 80 pixels around column 1.5, and a row of 16 around column 11.5
    ink[19, 4:] = 255
    left = 14 - (80 * 1.5 + 16 * 11.5) / 96  # 10.8, but the box must stay in the image
    assert left > 8
    assert np.flatnonzero(pictures.center(ink).any(0)).tolist() == list(range(8, 28))


KINDS = {
    "light on dark": lambda ink: ink,
    "dark on light": lambda ink: 255 - ink,
    "red on cream": lambda ink: np.uint8(240 - ink[..., None] / 255 * np.array([40.0, 210, 210])),
    "black on nothing": lambda ink: np.dstack([np.zeros((*ink.shape, 3), np.uint8), ink]),
    "white on nothing": lambda ink: np.dstack([np.full((*ink.shape, 3), 255, np.uint8), ink]),
    "16 bits": lambda ink: ink.astype(np.uint16) * 256,
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_pictures(digits, tmp_path, kind):
    for index, digit in enumerate(digits[:5]):
        ink = enlarged(digit)
        ours = pictures.read(save(tmp_path, KINDS[kind](ink), f"{index}.png"))
        expected = pictures.center(ink.astype(float))[..., None]
        assert np.abs(ours.astype(int) - expected).max() <= 2, kind
        assert_alike(ours, digit)


@pytest.mark.parametrize("quality", [50, 90])
def test_a_photograph(digits, tmp_path, quality):
    """The picture is a JPEG of pencil on paper, unevenly lit, with noise and a speck of dirt."""
    random = np.random.default_rng(0)
    for digit in digits:
        ink = enlarged(digit) / 255
        light = np.linspace(0.75, 1, ink.shape[1])[None, :] * np.linspace(1, 0.9, len(ink))[:, None]
        paper = 215 * light * (1 - 0.75 * ink) + random.normal(0, 4, ink.shape)
        paper[20:23, 100:103] = 60
        picture = np.uint8(np.clip(paper, 0, 255))
        ours = pictures.read(save(tmp_path, picture, "photo.jpg", quality=quality))
        assert_alike(ours, digit)


def test_a_picture_that_is_turned_by_its_camera(digits, tmp_path):
    ink = enlarged(digits[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture is stored turned by a quarter
    path = save(tmp_path, np.ascontiguousarray(np.rot90(ink)), "turned.png", exif=exif)
    np.testing.assert_array_equal(
        pictures.read(path), pictures.center(ink.astype(float))[..., None]
    )


def test_raw(digits, tmp_path):
    path = save(tmp_path, digits[3])
    np.testing.assert_array_equal(pictures.read(path, raw=True)[..., 0], digits[3])
    path = save(tmp_path, enlarged(digits[3]))
    with pytest.raises(UserError, match="300x320 pixels; allowed with --raw: 28x28"):
        pictures.read(path, raw=True)


@pytest.mark.parametrize("highest", [1, 255])
def test_floats(digits, tmp_path, highest):
    path = save(tmp_path, np.float32(digits[3] / 255 * highest), "0.tiff")
    np.testing.assert_array_equal(pictures.read(path, raw=True)[..., 0], digits[3])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"", "not a picture"),
        (b"some text", "not a picture"),
        ("folder", "Is a directory"),
        ("truncated", "truncated|broken"),
        ("unknown pixels", "pixel format"),
        ("blank", "nothing is drawn on it"),
        ("transparent", "nothing is drawn on it"),
    ],
)
def test_bad_pictures_are_one_line(digits, tmp_path, content, expected):
    path = tmp_path / "bad.png"
    if content == "folder":
        path.mkdir()
    elif content == "blank":
        save(tmp_path, np.full((50, 50), 77, np.uint8), "bad.png")
    elif content == "transparent":
        save(tmp_path, np.zeros((50, 50, 4), np.uint8), "bad.png")
    elif content == "truncated":
        buffer = io.BytesIO()
        Image.fromarray(enlarged(digits[0])).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue()[:-500])
    elif content == "unknown pixels":  # for which Pillow raises NotImplementedError
        buffer = io.BytesIO()
        Image.fromarray(digits[0]).save(buffer, "DDS")
        path.write_bytes(buffer.getvalue()[:80] + bytes(4) + buffer.getvalue()[84:])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as error:
        pictures.read(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)

"""Converts pictures of single digits, scanned, photographed or drawn, to MNIST's format.

MNIST's digits are bright on black, fit a box of 20x20 pixels, and are placed in 28x28 by their
centre of mass (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist), which is nearest to row
14 and column 14, counted from 0, in every digit.
"""

import math
import pathlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from mnist_flax.errors import UserError
from mnist_flax.runtime.files import explain
from mnist_flax.sources import SIDE

_BOX = 20
# In lossy formats or on an uneven background, anything fainter than this share of the ink is paper.
_PAPER = 0.3
_FLAT = 2.0  # grey levels by which a flat background may vary
_LOSSY = ("JPEG", "WEBP", "AVIF", "MPO")  # formats that leave traces around strokes
_TRACES = 10.0  # how strong these traces may be, in grey levels
_SPECK = 0.1  # share of the largest stroke's area; anything smaller is dirt


def read(path: str | pathlib.Path, raw: bool = False) -> np.ndarray:
    """Reads a picture of one digit, uint8 `[28, 28, 1]`.

    Args:
      path: a PNG, JPEG or other file that Pillow reads, in colour, grey or transparent, dark on
        light or light on dark.
      raw: whether the picture is in MNIST's form already, and is used as it is.

    Raises:
      UserError: the picture cannot be read, shows nothing, or is `raw` but not 28x28.
    """
    try:
        with Image.open(path) as picture:
            is_lossy = picture.format in _LOSSY
            grey = _grey(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture") from None
    except Exception as error:  # Pillow raises many types of errors for damaged files
        raise UserError(f"{path}: {explain(error)}") from None
    if raw:
        if grey.shape != (SIDE, SIDE):
            size = "x".join(map(str, grey.shape[::-1]))
            raise UserError(f"{path}: {size} pixels; allowed with --raw: {SIDE}x{SIDE}")
        return np.round(grey).astype(np.uint8)[..., None]
    ink = _ink(grey, is_lossy)
    if not ink.any():
        raise UserError(f"{path}: nothing is drawn on it")
    return center(ink)[..., None]


def center(ink: np.ndarray) -> np.ndarray:
    """Converts ink on an empty background to MNIST's format, uint8 `[28, 28]`.

    Args:
      ink: float `[height, width]`, 0..255; not empty.
    """
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = _BOX / max(cropped.shape)
    height, width = (max(1, math.floor(length * scale + 0.5)) for length in cropped.shape)
    picture = Image.fromarray(cropped.astype(np.float32))
    box = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (
        _offset(box.sum(axis), length) for axis, length in ((1, height), (0, width))
    )  # fmt: skip
    canvas = np.zeros((SIDE, SIDE), np.float32)
    canvas[top : top + height, left : left + width] = box
    return np.floor(np.clip(canvas, 0, 255) + 0.5).astype(np.uint8)


def _offset(mass: np.ndarray, length: int) -> int:
    """Returns the offset that brings the box's centre of mass nearest to the middle pixel."""
    centre = np.average(np.arange(length), weights=mass)
    return min(max(math.floor(SIDE // 2 - centre + 0.5), 0), SIDE - length)


def _grey(picture: Image.Image) -> np.ndarray:
    """Returns luminance `[height, width]`, float 0..255; transparency becomes contrasting paper."""
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits or more
        values = np.asarray(picture, np.float64)
        highest = values.max()
        if picture.mode == "F" and highest <= 1:  # the usual range of floats
            return 255 * values
        return 255 * values / highest if highest > 255 else values
    bands = np.asarray(picture.convert("RGBA").convert("LA"), np.float64)
    luminance, opacity = bands[..., 0], bands[..., 1] / 255
    if not opacity.any():
        return np.zeros(luminance.shape)
    paper = 0 if np.average(luminance, weights=opacity) > 127 else 255
    return luminance * opacity + paper * (1 - opacity)


def _ink(grey: np.ndarray, is_lossy: bool) -> np.ndarray:
    """Returns each pixel's contrast with the background, taken from the border, 0..255."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    background = np.median(border)
    distance = np.abs(grey - background)
    strongest = distance.max()
    noise = np.percentile(np.abs(border - background), 95)
    if strongest <= max(_FLAT, noise):
        return np.zeros_like(grey)
    if noise == 0 and not is_lossy:
        return distance * 255 / strongest
    strongest = np.percentile(distance[distance > strongest / 2], 90)
    paper = max(_PAPER * strongest, 1.5 * noise, _TRACES)
    ink = np.clip((distance - paper) / max(strongest - paper, 1), 0, 1) * 255
    return _without_specks(ink)


def _without_specks(ink: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(ink > 0, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    return np.where(areas[labels] >= _SPECK * areas.max(), ink, 0)

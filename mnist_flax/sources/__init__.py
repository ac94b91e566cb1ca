"""Where images come from. Each source is a module whose `load` returns a `Loaded`.

A new source needs a module here and a branch in `data.load`.
"""

import itertools
import zlib
from typing import NamedTuple

import numpy as np

SIDE = 28  # height and width of all images, in pixels


class Split(NamedTuple):
    """Images, uint8 `[n, height, width, channels]`, and labels, int32 `[n]` from 0."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def moments(self) -> tuple[float, float]:
        """Returns mean and standard deviation of the pixels scaled to 0..1, to four decimals."""
        mean = self.images.mean() / 255
        mean_square = np.square(self.images, dtype=np.uint16).mean() / 255**2
        std = np.sqrt(mean_square - mean**2)
        return round(float(mean), 4), round(float(std), 4)


def checksum(*splits: Split) -> str:
    """Returns the CRC-32 of the images and labels of all splits, as 8 hexadecimal digits."""
    crc = 0
    for array in itertools.chain(*splits):
        crc = zlib.crc32(array.tobytes(), crc)
    return f"{crc:08x}"


class Loaded(NamedTuple):
    """A training split, a test split, and the names of the classes."""

    train: Split
    test: Split
    class_names: tuple[str, ...]


class UnreachableError(Exception):
    """The host of a data set cannot be reached; the message says why."""

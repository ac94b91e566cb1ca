"""Reads IDX files, MNIST's own format (yann.lecun.com/exdb/mnist)."""

import gzip
import math
import struct

import numpy as np


def unpack(content: bytes) -> bytes:
    """Returns the content of a file without gzip, whatever the name of the file.

    Browsers may unpack a file and keep the name.

    Raises:
      EOFError, OSError, zlib.error: the file is damaged.
    """
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def parse(content: bytes, shape: tuple[int, ...], num_values: int = 256) -> np.ndarray:
    """Returns the array in an unpacked file, uint8 of the given shape, in 0..num_values - 1.

    Raises:
      ValueError: this is not an IDX file of such an array.
    """
    header = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)  # 8: unsigned bytes
    if not content.startswith(header) or len(content) != len(header) + math.prod(shape):
        raise ValueError(f"not an IDX file of shape {shape}")
    values = np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
    if values.max(initial=0) >= num_values:
        raise ValueError(f"expected values below {num_values}, found {values.max()}")
    return values

"""Reads IDX files, MNIST's own format (yann.lecun.com/exdb/mnist)."""

import gzip
import pathlib
import zlib

import numpy as np

from mnist_flax.errors import UserError

_IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions
_LABELS_MAGIC = 0x00000801  # unsigned bytes, one dimension


def read_images(path: pathlib.Path, count: int, side: int) -> np.ndarray:
    """Reads an IDX file of images, gzipped or not, uint8 `[count, side, side, 1]`.

    Raises:
      UserError: the file cannot be read, or its magic number, count or shape is wrong.
    """
    return _read(path, _IMAGES_MAGIC, (count, side, side))[..., None]


def read_labels(path: pathlib.Path, count: int, num_classes: int) -> np.ndarray:
    """Reads an IDX file of labels, gzipped or not, int32 `[count]` in 0..num_classes - 1.

    Raises:
      UserError: the file cannot be read, or its magic number, count or a label is wrong.
    """
    labels = _read(path, _LABELS_MAGIC, (count,))
    if labels.max(initial=0) >= num_classes:
        raise UserError(
            f"{path}: expected labels from 0 to {num_classes - 1}, found {labels.max()}"
        )
    return labels.astype(np.int32)


def is_gzip(content: bytes) -> bool:
    """Whether content is gzipped. The file's name does not tell, since browsers may unpack it."""
    return content.startswith(b"\x1f\x8b")


def _read(path: pathlib.Path, magic: int, shape: tuple[int, ...]) -> np.ndarray:
    try:
        content = path.read_bytes()
        if is_gzip(content):
            content = gzip.decompress(content)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    size = 4 * (1 + len(shape))
    header = np.frombuffer(content[:size], ">u4") if len(content) >= size else np.empty(0, ">u4")
    if len(header) == 0 or header[0] != magic:
        found = f"{header[0]:#010x}" if len(header) else f"{len(content)} bytes"
        raise UserError(f"{path}: expected magic number {magic:#010x}, found {found}")
    if tuple(header[1:]) != shape:
        raise UserError(f"{path}: expected shape {shape}, found {tuple(map(int, header[1:]))}")
    values = np.frombuffer(content, np.uint8, offset=header.nbytes)
    if values.size != np.prod(shape):
        raise UserError(f"{path}: expected {np.prod(shape):,} values, found {values.size:,}")
    return values.reshape(shape)

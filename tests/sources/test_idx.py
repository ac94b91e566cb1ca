import gzip
import pathlib
import struct

import numpy as np
import pytest

from mnist_flax.errors import UserError
from mnist_flax.sources import idx


def content_of(magic: int, *shape: int, values: bytes) -> bytes:
    return gzip.compress(struct.pack(f">{1 + len(shape)}I", magic, *shape) + values, mtime=0)


def write(tmp_path, content: bytes) -> pathlib.Path:
    path = tmp_path / "some-idx.gz"
    path.write_bytes(content)
    return path


def test_images_and_labels(tmp_path):
    content = content_of(0x803, 2, 3, 3, values=bytes(range(2 * 3 * 3)))
    images = idx.read_images(write(tmp_path, content), 2, 3)
    np.testing.assert_array_equal(images, np.arange(18, dtype=np.uint8).reshape(2, 3, 3, 1))
    content = content_of(0x801, 9, values=bytes(range(9)))
    for unpacked in (content, gzip.decompress(content)):
        labels = idx.read_labels(write(tmp_path, unpacked), 9, 10)
        np.testing.assert_array_equal(labels, np.arange(9))
    assert images.dtype == np.uint8 and labels.dtype == np.int32


@pytest.mark.parametrize(
    ("content", "side", "expected"),
    [
        (b"not gzip", None, "expected magic number 0x00000801, found 0x6e6f7420"),
        (content_of(0x801, 9, values=bytes(9))[:-9], None, "cannot be read: "),
        (gzip.compress(b"", mtime=0), None, "magic number"),
        (gzip.compress(bytes(3), mtime=0), None, "magic number"),
        (
            content_of(0x803, 9, values=bytes(9)),
            None,
            "expected magic number 0x00000801, found 0x00000803",
        ),
        (
            content_of(0x801, 9, values=bytes(9)),
            3,
            "expected magic number 0x00000803, found 0x00000801",
        ),
        (content_of(0x801, 8, values=bytes(8)), None, r"expected shape \(9,\), found \(8,\)"),
        (content_of(0x803, 9, 3, 4, values=bytes(108)), 3, r"found \(9, 3, 4\)"),
        (content_of(0x801, 9, values=bytes(10)), None, "expected 9 values, found 10"),
        (content_of(0x801, 9, values=bytes(8)), None, "expected 9 values, found 8"),
        (content_of(0x801, 9, values=b"\x0a" + bytes(8)), None, "labels from 0 to 9, found 10"),
    ],
)
def test_wrong_content(tmp_path, content, side, expected):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=expected) as error:
        if side is None:
            idx.read_labels(path, 9, 10)
        else:
            idx.read_images(path, 9, side)
    assert str(path) in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.gz: cannot be read: .*No such file"):
        idx.read_labels(tmp_path / "none.gz", 9, 10)

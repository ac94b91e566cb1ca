import gzip
import struct

import numpy as np
import pytest

from mnist_flax.sources import idx


def content_of(magic: int, *shape: int, values: bytes) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + values


def test_images_and_labels():
    images = idx.parse(content_of(0x803, 2, 3, 3, values=bytes(range(18))), (2, 3, 3))
    np.testing.assert_array_equal(images, np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    labels = idx.parse(content_of(0x801, 9, values=bytes(range(9))), (9,), 10)
    np.testing.assert_array_equal(labels, np.arange(9))
    assert images.dtype == labels.dtype == np.uint8


def test_gzip_is_recognised_by_its_content():
    content = content_of(0x801, 9, values=bytes(9))
    assert idx.unpack(content) == content == idx.unpack(gzip.compress(content))


NOT_NINE = r"not an IDX file of shape \(9,\)"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", NOT_NINE),
        (bytes(3), NOT_NINE),
        (b"<html>", NOT_NINE),
        (content_of(0x803, 9, values=bytes(9)), NOT_NINE),
        (content_of(0x901, 9, values=bytes(9)), NOT_NINE),  # signed bytes
        (content_of(0x803, 9, 1, 1, values=bytes(9)), NOT_NINE),
        (content_of(0x801, 8, values=bytes(8)), NOT_NINE),
        (content_of(0x801, 9, values=bytes(10)), NOT_NINE),
        (content_of(0x801, 9, values=bytes(8)), NOT_NINE),
        (content_of(0x801, 9, values=b"\x0a" + bytes(8)), "expected values below 10, found 10"),
    ],
)
def test_wrong_content(content, expected):
    with pytest.raises(ValueError, match=expected):
        idx.parse(content, (9,), 10)

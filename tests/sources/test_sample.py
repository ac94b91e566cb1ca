import numpy as np

from mnist_flax.sources import sample
from tests.sources.make_sample import create


def test_is_stratified():
    loaded = sample.load()
    assert loaded.train.images.shape == (sample.TRAIN_SIZE, 28, 28, 1) == (4_000, 28, 28, 1)
    assert loaded.test.images.shape == (1_000, 28, 28, 1)
    for split in (loaded.train, loaded.test):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        np.testing.assert_array_equal(split.labels, np.arange(len(split)) % 10)
    assert loaded.class_names == tuple("0123456789")
    seen = {image.tobytes() for image in (*loaded.train.images, *loaded.test.images)}
    assert len(seen) == 5_000


def test_is_what_the_script_writes(whole_mnist):
    train, test = sample.load()[:2]
    for written, ours in zip(create(whole_mnist), zip(train, test, strict=True), strict=True):
        np.testing.assert_array_equal(written, np.concatenate(ours))

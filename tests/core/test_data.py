import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from mnist_flax import data
from mnist_flax.errors import UserError
from mnist_flax.sources import tfds


def dataset_config(**fields) -> ConfigDict:
    config = default.get_config().dataset
    config.update(fields)
    return config


@pytest.fixture
def closed_network(monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)


class TestSample:
    def test_is_fixed(self):
        first, second = (data.load(dataset_config(source="sample"), seed) for seed in (0, 1))
        np.testing.assert_array_equal(first.train.images, second.train.images)
        np.testing.assert_array_equal(first.test.images, second.test.images)
        assert first.validation is None
        assert list(first.eval_splits) == ["test"]

    def test_says_what_it_is(self):
        sample = data.load(dataset_config(source="sample"), 0)
        assert sample.title == "SAMPLE of 5,000 MNIST digits, not MNIST"
        assert sample.source == "sample"
        assert sample.description == (
            "Data: SAMPLE of 5,000 MNIST digits, not MNIST! 4,000 training and 1,000 test images "
            "(asked for by config.dataset.source=sample)"
        )


def test_mnist(mnist_dir, closed_network):
    mnist = data.load(dataset_config(manual_dir=str(mnist_dir), validation_size=100), 0)
    assert (mnist.name, mnist.source, mnist.title) == ("mnist", "tfds", "MNIST")
    # These come from all training images; every MNIST tutorial quotes them.
    assert (mnist.mean, mnist.std) == (0.1307, 0.3081)
    assert mnist.description == (
        "Data: MNIST, 59,900 training and 10,000 test images, 100 set aside"
    )


@pytest.mark.parametrize("source", ["auto", "tfds"])
def test_a_damaged_file_is_named(mnist_dir, tmp_path, source):
    """The sample must not silently replace files that the user has."""
    for path in mnist_dir.glob("*.gz"):
        (tmp_path / path.name).symlink_to(path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.unlink()
    with pytest.raises(UserError, match=f"^{labels}: No such file"):
        data.load(dataset_config(manual_dir=str(tmp_path), source=source), 0)


class TestUnreachable:
    def test_auto_falls_back_within_seconds(self, tmp_path, closed_network):
        started = time.monotonic()
        dataset = data.load(dataset_config(data_dir=str(tmp_path)), 0)
        assert time.monotonic() - started < 30
        assert dataset.source == "sample"
        assert "storage.googleapis.com cannot be reached" in dataset.note
        assert "manual_dir" in dataset.note

    @pytest.mark.parametrize(
        ("name", "source", "host"),
        [
            ("mnist", "tfds", "storage.googleapis.com"),
            ("fashion_mnist", "auto", "fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
            ("kmnist", "auto", "codh.rois.ac.jp"),
        ],
    )
    def test_otherwise_stops(self, tmp_path, closed_network, name, source, host):
        started = time.monotonic()
        with pytest.raises(UserError) as error:
            data.load(dataset_config(name=name, source=source, data_dir=str(tmp_path)), 0)
        assert time.monotonic() - started < 30
        assert host in str(error.value)
        assert "config.dataset.manual_dir" in str(error.value)


@pytest.mark.parametrize(
    ("field", "allowed"),
    [("name", ", ".join(tfds.TITLES)), ("source", "auto, tfds, sample")],
)
def test_an_unknown_choice_is_refused(field, allowed):
    with pytest.raises(UserError, match=f"^{field}.*one of {allowed}"):
        data.load(dataset_config(**{field: "mnits"}), 0)


class TestValidation:
    def split(self, size, seed=0):
        return data.load(dataset_config(source="sample", validation_size=size), seed)

    @pytest.mark.parametrize("size", [1, 7, 10, 999])
    def test_is_stratified_and_disjoint(self, size):
        whole = data.load(dataset_config(source="sample"), 0)
        dataset = self.split(size)
        assert len(dataset.validation) == size
        assert len(dataset.train) == 4_000 - size
        counts = np.bincount(dataset.validation.labels, minlength=10)
        assert counts.max() - counts.min() <= 1
        both = np.concatenate([dataset.train.images, dataset.validation.images])
        rows = lambda images: sorted(image.tobytes() for image in images)  # noqa: E731
        assert rows(both) == rows(whole.train.images)
        assert (dataset.mean, dataset.std, dataset.title) == (whole.mean, whole.std, whole.title)
        assert dataset.eval_splits == {"validation": dataset.validation, "test": dataset.test}
        assert f", {size} set aside " in dataset.description

    def test_must_leave_images_of_the_sample(self, tmp_path, closed_network):
        """The size is too large only after the run has fallen back on the sample."""
        config = dataset_config(validation_size=4_000, data_dir=str(tmp_path))
        with pytest.raises(UserError, match=r"validation_size.* below the 4,000 training"):
            data.load(config, 0)

    def test_is_proportional(self):
        labels = np.repeat([0, 1, 2], [600, 300, 100]).astype(np.int32)
        images = np.arange(1_000).reshape(-1, 1, 1, 1)
        left, held_out = data.split_validation(data.Split(images, labels), 105, seed=3)
        assert np.bincount(held_out.labels).tolist() == [63, 32, 10]  # from 63, 31.5 and 10.5
        for split in (left, held_out):
            np.testing.assert_array_equal(split.labels, labels[split.images.ravel()])

    def test_is_fixed_by_the_seed(self):
        first, again, other = (self.split(100, seed).validation.images for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_normalize():
    pixels = np.array([0, 255], np.uint8)
    normalized = data.normalize(pixels, 0.1307, 0.3081)
    np.testing.assert_allclose(normalized, [-0.42421296, 2.8214867], rtol=1e-6)
    assert normalized.dtype == np.float32

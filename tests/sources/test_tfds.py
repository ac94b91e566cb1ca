import gzip
import hashlib
import http.server
import os
import pathlib
import socket
import subprocess
import sys
import threading
import types
import unittest.mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_datasets import public_api
from tensorflow_datasets.core.download.checksums import UrlInfo

from mnist_flax.errors import UserError
from mnist_flax.sources import UnreachableError, checksum, tfds
from tests.runs import run

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = tfds.FILES


def unpacked(path: pathlib.Path) -> bytes:
    return gzip.decompress(path.read_bytes())


class TestMnist:
    """The real files, in a folder."""

    def test_is_what_is_well_known(self, whole_mnist):
        assert whole_mnist.train.images.shape == (tfds.TRAIN_SIZE, 28, 28, 1) == (60_000, 28, 28, 1)
        assert whole_mnist.test.images.shape == (tfds.TEST_SIZE, 28, 28, 1) == (10_000, 28, 28, 1)
        assert whole_mnist.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert np.bincount(whole_mnist.test.labels).tolist() == [
            *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
        ]
        assert whole_mnist.class_names == tuple("0123456789")

    @pytest.mark.parametrize(
        ("name", "pack"),
        [
            ("{}.idx{}", bytes),
            ("{}-idx{}.gz", bytes),  # unpacked by a browser, which kept the name
            ("{}.idx{}.gz", lambda content: gzip.compress(content, 1)),
            ("raw/{}-idx{}", bytes),
            ("MNIST/raw/{}-idx{}.gz", lambda content: gzip.compress(content, 0)),
        ],
    )
    def test_may_be_packed_in_any_way(self, mnist_dir, whole_mnist, tmp_path, name, pack):
        (tmp_path / "train-images-idx3-ubyte").mkdir()  # as in Kaggle's archive
        for file in tfds.FILES:
            path = tmp_path / name.format(*file.removesuffix(".gz").split("-idx"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pack(unpacked(mnist_dir / file)))
        loaded = tfds.load("mnist", "gs://bucket", tmp_path)  # the cache plays no part
        assert checksum(*loaded[:2]) == checksum(*whole_mnist[:2])

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda packed: packed[:-100], "Compressed file ended before"),
            (lambda packed: packed[:2000] + bytes([packed[2000] ^ 1]) + packed[2001:], ""),
            (
                lambda packed: gzip.decompress(packed)[:-1] + b"\0",
                "expected MNIST's content, found",
            ),
        ],
    )
    def test_a_damaged_file_is_named(self, mnist_dir, tmp_path, damage, reason):
        for file in tfds.FILES:
            (tmp_path / file).symlink_to(mnist_dir / file)
        path = tmp_path / TEST_LABELS
        content = damage(path.read_bytes())
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            tfds.load("mnist", "", tmp_path)
        assert str(error.value).startswith(f"{path}: {reason}") and "\n" not in str(error.value)

    def test_is_not_kmnist(self, mnist_dir, tmp_path):
        for path in (mnist_dir, tmp_path):
            with pytest.raises(UserError, match=r"gz: expected KMNIST's content, found MNIST's"):
                tfds.load("kmnist", "", path)
            for file in tfds.FILES:
                (tmp_path / file).write_bytes(unpacked(mnist_dir / file))


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """The content of the files of a small data set: 30 training and 20 test images."""
    monkeypatch.setattr(tfds, "TRAIN_SIZE", 30)
    monkeypatch.setattr(tfds, "TEST_SIZE", 20)
    files = {}
    for n, images, labels in ((30, TRAIN_IMAGES, TRAIN_LABELS), (20, TEST_IMAGES, TEST_LABELS)):
        header = np.array([0x803, n, 28, 28], ">u4").tobytes()
        files[images] = gzip.compress(header + bytes(range(196)) * 4 * n, mtime=0)
        header = np.array([0x801, n], ">u4").tobytes()
        files[labels] = gzip.compress(header + bytes(range(10)) * (n // 10), mtime=0)
    return files


@pytest.fixture(scope="module")
def any_server():
    """A server, for all tests, because TFDS tries on behind a download that has failed."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = server.files[pathlib.Path(self.path).name]
            status, headers, sent = server.answer or (200, {}, content)
            self.send_response(status)
            for header, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(sent)
            self.wfile.flush()
            server.may_end.wait()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.may_end = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(any_server, files, monkeypatch):
    """A server with `files`, which TFDS takes for KMNIST's.

    `answer` is the status, headers and content that it sends instead of every file.
    """
    any_server.files, any_server.answer = files, None
    any_server.may_end.set()
    url = f"http://127.0.0.1:{any_server.server_address[1]}"
    infos = {
        f"{url}/{file}": UrlInfo(len(content), hashlib.sha256(content).hexdigest(), file)
        for file, content in files.items()
    }
    builder = public_api.builder

    def replaced(name: str, **options):
        real = builder(name, **options)
        is_ours = name == "kmnist"
        return types.SimpleNamespace(info=real.info, url_infos=infos) if is_ours else real

    monkeypatch.setattr(public_api, "builder", replaced)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield any_server
    any_server.may_end.set()


class TestFolder:
    """Of a data set whose unpacked content is not known."""

    def load(self, folder, name, files):
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return tfds.load(name, "", str(folder))

    def test_files_of_the_right_form_are_accepted(self, files, tmp_path):
        original = self.load(tmp_path, "kmnist", files)
        assert original.train.labels.tolist() == [*range(10)] * 3
        assert original.class_names[:2] == ("o", "ki")
        repacked = {file: gzip.compress(gzip.decompress(x), 1) for file, x in files.items()}
        again = self.load(tmp_path, "kmnist", repacked)
        assert checksum(*again[:2]) == checksum(*original[:2])

    def test_others_are_not(self, files, tmp_path):
        changed = gzip.decompress(files[TEST_LABELS])[:-1]
        for last, reason in (
            (b"\x0a", "expected values below 10, found 10"),
            (b"", "not an IDX file of shape (20,)"),
        ):
            with pytest.raises(UserError) as error:
                self.load(tmp_path, "kmnist", files | {TEST_LABELS: changed + last})
            assert str(error.value) == f"{tmp_path / TEST_LABELS}: {reason}"

    def test_the_files_of_another_set_are_refused(self, files, server, tmp_path):
        with pytest.raises(UserError, match="expected Fashion-MNIST's content, found KMNIST's"):
            self.load(tmp_path, "fashion_mnist", files)


class TestDownload:
    """Downloads through TFDS's own DownloadManager from a real server on loopback."""

    def test_is_cached(self, server, files, tmp_path):
        first = tfds.load("kmnist", tmp_path)
        server.answer = 404, {}, b""
        again = tfds.load("kmnist", str(tmp_path))
        assert checksum(*first[:2]) == checksum(*again[:2])
        assert first.train.images.shape == (30, 28, 28, 1)

    def test_wrong_bytes_are_refused_and_not_cached(self, server, files, tmp_path):
        server.answer = 200, {"Content-Length": "1"}, b"x"
        with pytest.raises(UserError, match="has wrong checksum") as error:
            tfds.load("kmnist", tmp_path)
        assert "\n" not in str(error.value)
        server.answer = None
        assert len(tfds.load("kmnist", tmp_path).test) == 20

    def test_damage_in_the_cache_is_found(self, server, files, tmp_path):
        tfds.load("kmnist", tmp_path)
        for path in tmp_path.rglob("*labels*.gz"):
            path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(UserError, match=r"labels.*gz: Compressed file ended"):
            tfds.load("kmnist", tmp_path)

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            ((403, {}, b""), "127.0.0.1 cannot be reached (403 Client Error: Forbidden"),
            ((302, {"Location": f"/{TRAIN_IMAGES}"}, b""), "(Exceeded 30 redirects"),
            (
                (200, {"Content-Type": "text/html; charset=utf-8"}, b""),
                "(it answered with a web pa",
            ),
            ((200, {}, b"short"), "the download failed (IncompleteRead"),
        ],
    )
    def test_an_answer_that_is_no_file(self, server, tmp_path, answer, reason):
        server.answer = answer
        with pytest.raises(UnreachableError) as error:
            tfds.load("kmnist", tmp_path)
        assert reason in str(error.value)

    def test_a_download_that_stalls(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(tfds, "_DOWNLOAD_SECONDS", 2.0)
        server.may_end.clear()
        server.answer = 200, {}, b"half"
        with pytest.raises(UnreachableError, match=r"the download failed \(TimeoutError"):
            tfds.load("kmnist", tmp_path)

    def test_a_proxy_that_wants_a_password(self, server, tmp_path, monkeypatch):
        server.answer = 407, {}, b""
        host = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("http_proxy", f"http://{host}")
        with pytest.raises(UnreachableError, match="407 Client Error: Proxy Authentication"):
            tfds.load("kmnist", tmp_path)

    def test_a_full_disk_is_no_network(self, server, tmp_path, monkeypatch):
        full = unittest.mock.mock_open()
        full.return_value.write.side_effect = OSError(28, os.strerror(28))
        monkeypatch.setattr("etils.epath.gpath.PosixGPath.open", full)
        with pytest.raises(UserError, match=r"config.dataset.data_dir=.*: No space left on device"):
            tfds.load("kmnist", tmp_path)


@pytest.mark.parametrize(
    ("data_dir", "reason"),
    [
        ("{tmp}/file", "Not a directory"),
        ("/proc/nothing", "No such file or directory"),
        ("gs://bucket", "Please install gcsfs"),
    ],
)
def test_a_cache_that_cannot_be_used(tmp_path, monkeypatch, data_dir, reason):
    (tmp_path / "file").touch()
    data_dir = data_dir.format(tmp=tmp_path)
    with pytest.raises(UserError) as error:
        tfds.load("mnist", data_dir)
    assert str(error.value).startswith(f"config.dataset.data_dir={data_dir}: {reason}")
    assert "\n" not in str(error.value)


def test_a_python_without_bz2(tmp_path):
    """TFDS imports it. That is the reason then, and neither the network nor a folder."""
    code = "import sys; sys.modules['_bz2'] = None; from mnist_flax.sources import tfds; "
    code += f"tfds.load('mnist', {str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "UserError: TensorFlow Datasets cannot be imported: " in last and "_bz2" in last


@pytest.fixture
def no_names(monkeypatch):
    """Name look-ups fail, and the only proxy variable set is for https, whose proxy refuses."""
    look_up = socket.getaddrinfo

    def refuse(host, *args, **options):
        if host == "127.0.0.1":
            return look_up(host, *args, **options)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


def problem(name: str, data_dir: pathlib.Path) -> str:
    """Returns why the host of a data set cannot be reached."""
    with pytest.raises(UnreachableError) as error:
        tfds.load(name, data_dir)
    host, _, reason = str(error.value).partition(" cannot be reached (")
    assert "/" not in host and reason and "\n" not in reason and "TimeoutError" not in reason
    return reason


GONE = "Could not find a suitable TLS CA certificate bundle, invalid path: /gone"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"REQUESTS_CA_BUNDLE": "/gone"}, GONE),
        ({"CURL_CA_BUNDLE": "/gone"}, GONE),
        ({"REQUESTS_CA_BUNDLE": "/dev/null"}, "Connection refused"),
        ({"SSL_CERT_FILE": "/gone"}, "Connection refused"),
        ({"https_proxy": "http://127.0.0.1:9"}, "Connection refused"),
        ({"https_proxy": "http://nowhere.invalid"}, "not known"),
        ({"https_proxy": "http://127.0.0.1:port"}, "'127.0.0.1:port' is not a valid host or port"),
        ({"https_proxy": f"http://{'a' * 70}"}, "label too long"),
        ({"https_proxy": "http://a..b"}, "label empty"),
        ({"https_proxy": "http://"}, "Please check proxy URL"),
        ({"https_proxy": "ftp://127.0.0.1"}, "Proxy URL had unsupported scheme ftp"),
        ({"https_proxy": "socks5://127.0.0.1"}, "SOCKS"),
        ({"no_proxy": "*"}, "not known"),
    ],
    ids=str,
)
def test_the_reason_is_the_reason(monkeypatch, no_names, tmp_path, variables, reason):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert reason in problem("mnist", tmp_path)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.text("a1é.:/@[]%#? \n\\ﬀ-", max_size=12), st.sampled_from(["", "http://", "//", "socks5://"])
)
def test_no_proxy_is_too_odd(no_names, tmp_path, text, scheme):
    """Whatever the proxy variable holds, the problem is reported in one line."""
    with unittest.mock.patch.dict("os.environ", http_proxy=f"{scheme}{text}"):
        assert problem("kmnist", tmp_path)


def test_a_look_up_that_never_ends(monkeypatch, tmp_path):
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: end.wait())
    monkeypatch.setattr(tfds, "_PROBE_SECONDS", 0.5)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(UnreachableError, match=r"googleapis.com cannot be reached \(TimeoutError"):
        tfds.load("mnist", tmp_path)
    end.set()


def test_a_certificate_bundle_that_is_gone(tmp_path):
    """The real command reports it as one line."""
    done = run(
        "--config.dataset.source=tfds",
        f"--config.dataset.data_dir={tmp_path}",
        f"--workdir={tmp_path}/run",
        REQUESTS_CA_BUNDLE="/gone",
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: storage.googleapis.com cannot be reached ({GONE}); set ")
    assert done.stderr.count("\n") == 1

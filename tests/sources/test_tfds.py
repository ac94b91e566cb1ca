import errno
import gzip
import hashlib
import http.server
import pathlib
import shutil
import socket
import socketserver
import threading
import types
import unittest.mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnist_flax.errors import UserError
from mnist_flax.sources import UnreachableError, checksum, tfds

OPTIONS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}
NAMES = [
    f"{prefix}-{kind}-ubyte.gz"
    for prefix in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]


def test_mnist(whole_mnist):
    assert whole_mnist.train.images.shape == (tfds.TRAIN_SIZE, 28, 28, 1) == (60_000, 28, 28, 1)
    assert whole_mnist.test.images.shape == (tfds.TEST_SIZE, 28, 28, 1) == (10_000, 28, 28, 1)
    # MNIST's first labels and the sizes of its test classes are well known.
    assert whole_mnist.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(whole_mnist.test.labels).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert whole_mnist.class_names == tuple("0123456789")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "other"])
def test_damaged_files_are_named(mnist_dir, tmp_path, name, damage):
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
    with pytest.raises(UserError) as error:
        tfds.load("mnist", "", str(tmp_path))
    message = str(error.value)
    assert str(tmp_path / name) in message
    assert "\n" not in message
    expected = {"missing": "No such file", "flipped": "SHA-256"}.get(damage, " bytes, found")
    assert expected in message
    if damage != "missing":
        assert (tmp_path / name).exists()  # the user's own file is kept


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("", "{}"),
        ("", "{}.gz"),  # unpacked by a browser, which kept the name
        ("raw", "{}"),
        ("MNIST/raw", "{}"),  # torchvision's folder, which also has the gzipped files
    ],
)
def test_unpacked_files(mnist_dir, whole_mnist, tmp_path, place, name):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    for file in NAMES:
        unpacked = gzip.decompress((mnist_dir / file).read_bytes())
        (folder / name.format(file.removesuffix(".gz"))).write_bytes(unpacked)
    loaded = tfds.load("mnist", "", str(tmp_path))
    assert checksum(loaded.train, loaded.test) == checksum(whole_mnist.train, whole_mnist.test)


def test_unpacked_files_are_checked_by_content(mnist_dir, tmp_path):
    for file in NAMES:
        content = bytearray(gzip.decompress((mnist_dir / file).read_bytes()))
        # Some copies have a dot in the name instead of a hyphen.
        (tmp_path / file.removesuffix(".gz").replace("-idx", ".idx")).write_bytes(content)
    with pytest.raises(UserError, match=r"idx3-ubyte: this is MNIST's file, not kmnist's"):
        tfds.load("kmnist", "", str(tmp_path))
    content[-1] = (content[-1] + 1) % 10
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=r"t10k-labels.idx1-ubyte: expected SHA-256 ff7bcfd4"):
        tfds.load("mnist", "", str(tmp_path))


def test_a_host_that_never_answers(monkeypatch):
    """The host accepts connections and is silent, so only a time limit helps."""
    monkeypatch.setattr(tfds, "_REACH_SECONDS", 0.5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:
        reason = tfds._find_problem(f"http://127.0.0.1:{silent.server_address[1]}/")
    assert reason == "cannot be reached (no answer within 0 s)" or "timed out" in reason


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
def test_the_reason_is_the_reason(monkeypatch, no_names, variables, reason):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    problem = tfds._find_problem("https://nowhere.invalid/digits.gz")
    assert problem.startswith("cannot be reached (") and reason in problem, problem
    assert "\n" not in problem and "no answer" not in problem


@settings(max_examples=100, **OPTIONS)
@given(
    st.text("a1é.:/@[]%#? \n\\ﬀ-", max_size=12), st.sampled_from(["", "http://", "//", "socks5://"])
)
def test_no_proxy_is_too_odd(no_names, text, scheme):
    """Whatever the proxy variable holds, the problem is reported in one line."""
    with unittest.mock.patch.dict("os.environ", http_proxy=f"{scheme}{text}"):
        problem = tfds._find_problem("http://127.0.0.1:9/digits.gz")
    assert problem.startswith("cannot be reached (") and "\n" not in problem, problem
    assert "no answer" not in problem


def test_a_certificate_bundle_that_is_gone(fork_main, tmp_path):
    """The real command reports it as one line."""
    done = fork_main(
        "--config.dataset.source=tfds",
        f"--config.dataset.data_dir={tmp_path}",
        f"--workdir={tmp_path}/run",
        REQUESTS_CA_BUNDLE="/gone",
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: storage.googleapis.com cannot be reached ({GONE}); set ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("data_dir", "reason"),
    [
        ("{tmp}/file", "config.dataset.data_dir={tmp}/file: Not a directory"),
        ("/proc/nothing", "config.dataset.data_dir=/proc/nothing: No such file or directory"),
        ("gs://bucket", "TensorFlow Datasets cannot use gs://bucket: Please install gcsfs"),
        ("{tmp}/cache", "TensorFlow Datasets cannot use {tmp}/cache: Failed to load JSON"),
    ],
)
def test_a_cache_that_cannot_be_used(tmp_path, data_dir, reason):
    info = tmp_path / "cache" / "mnist" / "3.0.1" / "dataset_info.json"
    info.parent.mkdir(parents=True)
    info.write_text("no JSON")
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        tfds.load("mnist", data_dir.format(tmp=tmp_path), "")
    assert str(error.value).startswith(reason.format(tmp=tmp_path))
    assert "\n" not in str(error.value)


def test_a_folder_of_files_needs_no_cache(mnist_dir, tmp_path):
    assert len(tfds.load("mnist", "gs://bucket", str(mnist_dir)).train) == 60_000


class TestDownload:
    """Downloads through TFDS's own DownloadManager from a real server on loopback."""

    CONTENT = gzip.compress(b"some digits")

    @pytest.fixture
    def server(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(self.server.status)
                for header, value in self.server.headers.items():
                    self.send_header(header, value)
                self.send_header(
                    "Content-Length", str(self.server.length or len(self.server.content))
                )
                self.end_headers()
                self.wfile.write(self.server.content)
                self.server.may_go_on.wait()

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.content, server.status = self.CONTENT, 200
            server.headers, server.length, server.may_go_on = {}, 0, threading.Event()
            server.may_go_on.set()
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server
            server.shutdown()

    @pytest.fixture
    def builder(self, server, tmp_path, monkeypatch):
        """A fake TFDS builder, with one file that is on the server."""
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
        return tfds._download(builder, {"digits.gz": next(iter(builder.url_infos))})["digits.gz"]

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
        with pytest.raises(UserError, match="removed: run again"):
            tfds._verify(path, "mnist", info.size, info.checksum, discard=True)
        assert self.download(builder).read_bytes() == self.CONTENT

    def test_a_host_without_the_file_is_told_from_no_host(self, builder, server):
        server.status = 403
        with pytest.raises(UnreachableError, match=r"127.0.0.1 answered HTTP 403") as error:
            self.download(builder)
        assert error.value.files == ("digits.gz",)

    def test_a_network_that_wants_a_login(self, builder, server):
        """The network answers every request with its own page."""
        server.content = b"<html>Welcome! Please log in</html>"
        server.headers = {"Content-Type": "text/html; charset=utf-8"}
        with pytest.raises(UnreachableError, match=r"answered with a web page, not with a file"):
            self.download(builder)

    def test_a_proxy_that_wants_a_password(self, server, monkeypatch):
        server.status = 407
        host = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("http_proxy", f"http://{host}")
        assert tfds._find_problem("http://nowhere.invalid/digits.gz") == "answered HTTP 407"

    def test_a_redirection_without_an_end(self, builder, server):
        server.status, server.headers = 302, {"Location": "/digits.gz"}
        with pytest.raises(UnreachableError, match=r"cannot be reached \(Exceeded 30 redirects"):
            self.download(builder)

    def test_a_connection_that_breaks(self, builder, server):
        server.length = len(self.CONTENT) + 1
        with pytest.raises(UnreachableError, match=r"the download failed \(.*IncompleteRead"):
            self.download(builder)

    def test_a_download_that_stalls(self, builder, server, monkeypatch):
        """The host answers, and then stops halfway."""
        monkeypatch.setattr(tfds, "_STALL_SECONDS", 0.5)
        server.length = len(self.CONTENT) + 1
        server.may_go_on.clear()
        with pytest.raises(UnreachableError, match=r"the download failed \(no data arrived for"):
            self.download(builder)
        server.may_go_on.set()

    def test_a_full_disk_is_no_network(self, builder, monkeypatch):
        def write(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("tensorflow_datasets.download.DownloadManager.download", write)
        with pytest.raises(UserError, match=r"config.dataset.data_dir=.*: No space left on device"):
            self.download(builder)

    def test_unwritable_folder(self, builder, tmp_path):
        (tmp_path / "downloads").write_text("in the way")
        with pytest.raises(UserError, match=r"config.dataset.data_dir=.*File exists"):
            self.download(builder)

"""MNIST, Fashion-MNIST and KMNIST through TensorFlow Datasets (TFDS), without TensorFlow.

TFDS needs TensorFlow to prepare these sets, but not to know the addresses and checksums of their
files, nor to download and cache them. Only these parts of it are used; NumPy reads the files.
"""

import hashlib
import os
import pathlib
import sys
import urllib.parse
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mnist_flax.errors import UserError
from mnist_flax.runtime.files import explain
from mnist_flax.sources import SIDE, Loaded, Split, UnreachableError, idx

# To add a data set that TFDS has in MNIST's format, add its name there and its title here.
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "kmnist": "KMNIST"}
TRAIN_SIZE, TEST_SIZE = 60_000, 10_000
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
# SHA-256 of MNIST's files once they are unpacked; TFDS registers only those of the .gz files.
_UNPACKED_MNIST = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
_PROBE_SECONDS = 5.0  # a host that has not answered by then counts as unreachable
_DOWNLOAD_SECONDS = 600.0  # TFDS would wait for ever for a host that falls silent


def load(name: str, data_dir: str | os.PathLike = "", manual_dir: str | os.PathLike = "") -> Loaded:
    """Downloads a data set, or finds it in TFDS's cache or in a folder, and reads it.

    What counts is the content of a file, not how it is packed. MNIST's must have the right SHA-256.
    For the other sets, only the checksums of the original .gz files are known. A file that was
    compressed again or unpacked must therefore have the right form, and not be known as a file of
    another set; whether it is really this set's cannot be told.

    Args:
      name: one of `TITLES`.
      data_dir: TFDS's cache; if empty, its default.
      manual_dir: a folder with the four files, gzipped or unpacked, or a folder in which
        torchvision keeps them; empty to download them.

    Raises:
      UnreachableError: the files would have to be downloaded, and their host cannot be reached.
      UserError: a file is missing, damaged or not the expected one.
    """
    # Imported here because it takes a second, which the sample does not need. The package itself
    # hides the reason when it cannot be imported; `public_api` does not.
    try:
        from tensorflow_datasets import public_api as tfds
    except ImportError as error:  # as in a Python without bz2
        raise UserError(f"TensorFlow Datasets cannot be imported: {error}") from None

    # No folder, because what TFDS may have prepared in its cache is of no use here.
    builders = {other: tfds.builder(other, data_dir=os.devnull) for other in TITLES}
    owners = dict.fromkeys(_UNPACKED_MNIST, "mnist")
    for other, builder in builders.items():
        owners |= {info.checksum: other for info in builder.url_infos.values()}
    class_names = tuple(builders[name].info.features["label"].names)
    if manual_dir:
        paths = _find(pathlib.Path(manual_dir).expanduser(), TITLES[name])
    else:
        paths = _download(name, data_dir, builders[name].url_infos)
    train, test = (
        Split(
            _read(paths[images], name, owners, (size, SIDE, SIDE))[..., None],
            _read(paths[labels], name, owners, (size,), len(class_names)).astype(np.int32),
        )
        for images, labels, size in ((*FILES[:2], TRAIN_SIZE), (*FILES[2:], TEST_SIZE))
    )
    return Loaded(train, test, class_names)


def _find(folder: pathlib.Path, title: str) -> dict[str, pathlib.Path]:
    """Returns the paths of a data set's files, which may have several names and places.

    A file that is nowhere gets the path that it should have.
    """
    places = (folder, folder / "raw", folder / title.replace("-", "") / "raw")
    paths = {}
    for file in FILES:
        dotted = file.replace("-idx", "?idx")  # some copies have a dot there
        patterns = (dotted, dotted.removesuffix(".gz"))
        found = (path for place in places for name in patterns for path in place.glob(name))
        paths[file] = next(filter(os.path.isfile, found), folder / file)
    return paths


def _read(path: pathlib.Path, name: str, owners: Mapping[str, str], *form: Any) -> np.ndarray:
    """Returns the array in a file of a data set.

    Args:
      path: the file, gzipped or not.
      name: the data set.
      owners: data sets by the SHA-256 of their files.
      *form: the arguments of `idx.parse`.
    """
    try:
        packed = path.read_bytes()
        content = idx.unpack(packed)
        array = idx.parse(content, *form)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: {explain(error)}") from None
    digests = (hashlib.sha256(data).hexdigest() for data in (packed, content))
    owner = next(filter(None, map(owners.get, digests)), "")
    if owner != name and (owner or name == "mnist"):
        found = f"{TITLES[owner]}'s" if owner else "other"
        raise UserError(f"{path}: expected {TITLES[name]}'s content, found {found}")
    return array


def _download(
    name: str, data_dir: str | os.PathLike, url_infos: Mapping[str, Any]
) -> dict[str, pathlib.Path]:
    """Downloads the files of a data set, or finds them in TFDS's own cache."""
    import requests
    from tensorflow_datasets import public_api as tfds
    from tensorflow_datasets.core.constants import DATA_DIR
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    class Manager(tfds.download.DownloadManager):
        def _download(self, resource: Any) -> Any:
            # Called for files that are not cached. By itself, TFDS retries for minutes.
            _probe(resource.url)
            return super()._download(resource)

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    folder = data_dir or DATA_DIR
    urls = {info.filename: url for url, info in url_infos.items()}
    try:
        manager = Manager(
            download_dir=f"{folder}/downloads", url_infos=url_infos, dataset_name=name
        )
        return _within(_DOWNLOAD_SECONDS, lambda: manager.download(urls))
    except (TimeoutError, requests.RequestException, tfds.download.DownloadError) as error:
        raise UnreachableError(f"the download failed ({_cause(error)})") from None
    except NonMatchingChecksumError as error:
        raise UserError(_cause(error)) from None
    except (OSError, ImportError) as error:  # an ImportError for a bucket
        raise UserError(f"config.dataset.data_dir={folder}: {explain(error)}") from None


def _probe(url: str) -> None:
    """Raises an `UnreachableError` unless a host answers with a file within a few seconds."""
    # TFDS downloads with it too, so the same proxies and certificates apply.
    import requests

    def ask() -> None:
        with requests.get(url, stream=True, timeout=_PROBE_SECONDS) as response:
            response.raise_for_status()
            if response.headers.get("Content-Type", "").startswith("text/html"):
                # A hotel's network does so until somebody logs in.
                raise ValueError("it answered with a web page, not with a file")

    try:
        _within(_PROBE_SECONDS, ask)
    except Exception as error:  # requests does not wrap all that its layers raise
        host = urllib.parse.urlsplit(url).hostname
        raise UnreachableError(f"{host} cannot be reached ({_cause(error)})") from None


def _within(seconds: float, job: Callable[[], Any]) -> Any:
    """Returns `job()`; raises a `TimeoutError` if it takes longer, and leaves it behind."""
    executor = ThreadPoolExecutor(1)
    try:
        return executor.submit(job).result(seconds)
    finally:
        executor.shutdown(wait=False)


def _cause(error: BaseException) -> str:
    """Returns the root cause of an error in one line, such as the system's message."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).split()) or type(error).__name__

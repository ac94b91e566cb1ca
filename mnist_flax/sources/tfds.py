"""MNIST, Fashion-MNIST and KMNIST through TensorFlow Datasets (TFDS), without TensorFlow.

TFDS needs TensorFlow to prepare these sets, but not to know where their files are and what their
checksums are, nor to download and cache them. That much is taken from it; NumPy reads the files.
"""

import hashlib
import pathlib
import sys
import urllib.parse
from collections.abc import Mapping
from typing import Any

from mnist_flax.errors import UserError
from mnist_flax.runtime.background import Background
from mnist_flax.sources import Loaded, Split, UnreachableError, idx

TRAIN_SIZE = 60_000
TEST_SIZE = 10_000
_SIDE = 28
_REACH_SECONDS = 5.0  # a host that has not answered by then counts as unreachable


def load(name: str, data_dir: str, manual_dir: str) -> Loaded:
    """Downloads a data set, or finds it in TFDS's cache or in a folder, and reads it.

    Args:
      name: one of TFDS's that have MNIST's form.
      data_dir: TFDS's cache; empty for its default.
      manual_dir: a folder with the four IDX files; empty to download them.

    Raises:
      UnreachableError: the files would have to be downloaded, and their host cannot be reached.
      UserError: a file is missing, damaged or not what it should be.
    """
    # Imported here because it takes a second, which the sample saves.
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir or None)
    infos = {info.filename: (url, info) for url, info in builder.url_infos.items()}
    if manual_dir:
        folder = pathlib.Path(manual_dir).expanduser()
        paths = {file: folder / file for file in infos}
    else:
        paths = _download(builder, {file: url for file, (url, _) in infos.items()})
    for file, (_, info) in infos.items():
        _verify(paths[file], int(info.size), info.checksum, discard=not manual_dir)
    class_names = tuple(builder.info.features["label"].names)
    train, test = (
        Split(
            idx.read_images(paths[f"{prefix}-images-idx3-ubyte.gz"], count, _SIDE),
            idx.read_labels(paths[f"{prefix}-labels-idx1-ubyte.gz"], count, len(class_names)),
        )
        for prefix, count in (("train", TRAIN_SIZE), ("t10k", TEST_SIZE))
    )
    return Loaded(train, test, class_names)


def _download(builder: Any, urls: Mapping[str, str]) -> dict[str, pathlib.Path]:
    """Downloads files, or finds them in the cache that TFDS itself uses."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    class Manager(tfds.download.DownloadManager):
        def _download(self, resource: Any) -> Any:
            # Called for files that are not cached. TFDS alone retries for minutes.
            problem = _find_problem(resource.url)
            if problem:
                host = urllib.parse.urlsplit(resource.url).hostname
                raise UnreachableError(f"{host} {problem}", tuple(urls))
            return super()._download(resource)

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    downloads = builder.data_path.parent.parent / "downloads"
    try:
        manager = Manager(
            download_dir=downloads, url_infos=builder.url_infos, dataset_name=builder.name
        )
        paths = manager.download(dict(urls))
    except NonMatchingChecksumError as error:
        message = str(error).partition("\nTo debug")[0].replace("\n*", ";")
        raise UserError(message) from None
    except tfds.download.DownloadError as error:
        raise UnreachableError(f"the download failed ({error})", tuple(urls)) from None
    except OSError as error:
        if error.filename is None:  # of the network, not of a file
            raise UnreachableError(f"the download failed ({error})", tuple(urls)) from None
        raise UserError(f"config.dataset.data_dir={downloads.parent}: {error.strerror}") from None
    return {name: pathlib.Path(path) for name, path in paths.items()}


def _find_problem(url: str) -> str:
    """Tries a URL for a few seconds; returns what is wrong with its host, empty if nothing is."""
    # What TFDS downloads with, so that proxies and certificates are those of the download.
    import requests

    def reach() -> str:
        try:
            with requests.get(url, stream=True, timeout=_REACH_SECONDS) as response:
                status = response.status_code
            return "" if status == 200 else f"answered HTTP {status}"
        except (requests.RequestException, OSError) as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # down to what the system said
                cause = cause.__context__
            return f"cannot be reached ({cause})"

    # In the background, because looking up a name has no timeout of its own.
    background = Background("reach")
    answer = background.submit(reach)
    if not background.close(_REACH_SECONDS):
        return f"cannot be reached (no answer within {_REACH_SECONDS:.0f} s)"
    return answer.result()


def _verify(path: pathlib.Path, size: int, checksum: str, discard: bool) -> None:
    """Compares a file with its registered size and SHA-256; `discard` removes one that differs."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if len(content) == size and found == checksum:
        return
    if discard:
        path.unlink()
    mismatch = (
        f"{size:,} bytes expected, {len(content):,} found"
        if len(content) != size
        else f"SHA-256 {checksum[:12]}… expected, {found[:12]}… found"
    )
    removed = "; removed, run again to download it anew" if discard else ""
    raise UserError(f"{path}: {mismatch}{removed}")

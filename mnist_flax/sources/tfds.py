"""MNIST, Fashion-MNIST and KMNIST through TensorFlow Datasets (TFDS), without TensorFlow.

TFDS needs TensorFlow to prepare these sets, but not to know the addresses and checksums of their
files, nor to download and cache them. Only these parts of it are used; NumPy reads the files.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import sys
import urllib.parse
from collections.abc import Mapping
from typing import Any

from mnist_flax.errors import UserError
from mnist_flax.runtime.background import Background
from mnist_flax.sources import SIDE, Loaded, Split, UnreachableError, idx

TRAIN_SIZE = 60_000
TEST_SIZE = 10_000
# SHA-256 of MNIST's files once they are unpacked; TFDS registers only those of the .gz files.
_UNPACKED_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # others without a file name: the network's
_REACH_SECONDS = 5.0  # a host that has not answered by then counts as unreachable
_STALL_SECONDS = 30.0  # so does one that sends nothing for so long; TFDS would wait for ever


def load(name: str, data_dir: str, manual_dir: str) -> Loaded:
    """Downloads a data set, or finds it in TFDS's cache or in a folder, and reads it.

    Args:
      name: a TFDS data set in MNIST's format.
      data_dir: TFDS's cache; if empty, its default.
      manual_dir: a folder with the four IDX files, gzipped or unpacked, or a folder in which
        torchvision keeps them; empty to download them.

    Raises:
      UnreachableError: the files would have to be downloaded, and their host cannot be reached.
      UserError: a file is missing, damaged or not the expected one.
    """
    builder = _builder(name, manual_dir or data_dir)
    infos = {info.filename: (url, info) for url, info in builder.url_infos.items()}
    if manual_dir:
        folder = pathlib.Path(manual_dir).expanduser()
        paths = {file: _find(folder, file, name) for file in infos}
    else:
        paths = _download(builder, {file: url for file, (url, _) in infos.items()})
    for file, (_, info) in infos.items():
        _verify(paths[file], name, int(info.size), info.checksum, discard=not manual_dir)
    class_names = tuple(builder.info.features["label"].names)
    train, test = (
        Split(
            idx.read_images(paths[f"{prefix}-images-idx3-ubyte.gz"], count, SIDE),
            idx.read_labels(paths[f"{prefix}-labels-idx1-ubyte.gz"], count, len(class_names)),
        )
        for prefix, count in (("train", TRAIN_SIZE), ("t10k", TEST_SIZE))
    )
    return Loaded(train, test, class_names)


def _find(folder: pathlib.Path, file: str, name: str) -> pathlib.Path:
    """Returns the path of a data set's file, which may have several names and places."""
    unpacked = file.removesuffix(".gz")
    names = (file, unpacked, unpacked.replace("-idx", ".idx"))
    try:
        folders = [x for x in folder.iterdir() if x.name.lower() == name.replace("_", "")]
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    for place in (folder, *(x / "raw" for x in (folder, *folders))):
        for path in (place / name for name in names):
            if path.is_file():
                return path
    raise UserError(f"{folder / file}: No such file; allowed: this file, or {unpacked} there")


def _builder(name: str, data_dir: str) -> Any:
    """Returns TFDS's builder for a data set; it also reads `data_dir`, by default TFDS's cache.

    Raises:
      UserError: the folder is not on this machine, or TFDS cannot read its own files in it.
    """
    # Imported here because it takes a second, which the sample does not need.
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except Exception as error:  # from the system, from JSON, or from TFDS
        given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        reason = " ".join(str(error).split()).rpartition('}": ')[2].rstrip(".")
        raise UserError(
            f"TensorFlow Datasets cannot use {given}: {reason}; allowed: another folder"
        ) from None


def _download(builder: Any, urls: Mapping[str, str]) -> dict[str, pathlib.Path]:
    """Downloads files, or finds them in TFDS's own cache."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    class Manager(tfds.download.DownloadManager):
        def _download(self, resource: Any) -> Any:
            # Called for files that are not cached. By itself, TFDS retries for minutes.
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
        background = Background("download")
        paths = background.submit(manager.download, dict(urls))
        if not _finishes(background, downloads):
            reason = f"no data arrived for {_STALL_SECONDS:.0f} s"
            raise UnreachableError(f"the download failed ({reason})", tuple(urls))
        return {name: pathlib.Path(path) for name, path in paths.result().items()}
    except NonMatchingChecksumError as error:
        message = str(error).partition("\nTo debug")[0].replace("\n*", ";")
        raise UserError(message) from None
    except UnreachableError:
        raise
    except Exception as error:  # from the system, TFDS, or the libraries it downloads with
        if isinstance(error, OSError) and (error.filename or error.errno in _OF_DISKS):
            where = f"config.dataset.data_dir={downloads.parent}"
            raise UserError(f"{where}: {error.strerror}") from None
        raise UnreachableError(f"the download failed ({_cause(error)})", tuple(urls)) from None


def _finishes(background: Background, folder: pathlib.Path) -> bool:
    """Waits for a download into a folder; returns False if no data has arrived for a while."""
    try:
        before = _size(folder)
        while not background.close(_STALL_SECONDS):
            before, last = _size(folder), before
            if before == last:
                return False
        return True
    finally:
        background.close(timeout=0)  # abandons the download if a signal has ended the wait


def _size(folder: pathlib.Path) -> int:
    """Returns the bytes that TFDS has written to unfinished files in its folder."""
    total = 0
    for path in folder.glob("*.tmp.*/*"):
        with contextlib.suppress(OSError):  # it may be finished by now
            total += path.stat().st_size
    return total


def _find_problem(url: str) -> str:
    """Tries a URL for a few seconds; returns what is wrong with its host, or an empty string."""
    # TFDS downloads with it too, so the same proxies and certificates apply.
    import requests

    def reach() -> str:
        try:
            with requests.get(url, stream=True, timeout=_REACH_SECONDS) as response:
                if response.status_code != 200:
                    return f"answered HTTP {response.status_code}"
                # A hotel's network answers like this until somebody logs in.
                is_page = response.headers.get("Content-Type", "").startswith("text/html")
                return "answered with a web page, not with a file" if is_page else ""
        except Exception as error:  # from the system, or any layer of requests
            return f"cannot be reached ({_cause(error)})"

    # In the background, because looking up a name has no timeout of its own.
    background = Background("reach")
    answer = background.submit(reach)
    if not background.close(_REACH_SECONDS):
        return f"cannot be reached (no answer within {_REACH_SECONDS:.0f} s)"
    return answer.result()


def _cause(error: BaseException) -> str:
    """Returns the root cause of an error in one line, such as the system's message."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).split()) or type(error).__name__


def _verify(path: pathlib.Path, name: str, size: int, checksum: str, discard: bool) -> None:
    """Checks a file's size and checksum; with `discard`, removes a file that differs.

    Args:
      path: the file, gzipped or not.
      name: the data set.
      size: the gzipped file's size in bytes.
      checksum: the SHA-256 of the gzipped file.
      discard: whether the file can be downloaded again.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not discard and not idx.is_gzip(content):
        _verify_unpacked(path, name, content)
        return
    found = hashlib.sha256(content).hexdigest()
    if len(content) == size and found == checksum:
        return
    if discard:
        path.unlink()
    mismatch = (
        f"expected {size:,} bytes, found {len(content):,}"
        if len(content) != size
        else f"expected SHA-256 {checksum[:12]}…, found {found[:12]}…"
    )
    removed = "; it was removed: run again to download it" if discard else ""
    raise UserError(f"{path}: {mismatch}{removed}")


def _verify_unpacked(path: pathlib.Path, name: str, content: bytes) -> None:
    """Checks an unpacked file against MNIST's; for the other sets, no checksum is known."""
    found = hashlib.sha256(content).hexdigest()
    expected = _UNPACKED_MNIST[path.name.replace(".idx", "-idx").removesuffix(".gz")]
    if name == "mnist" and found != expected:
        mismatch = f"expected SHA-256 {expected[:12]}…, found {found[:12]}…"
        raise UserError(f"{path}: {mismatch}")
    if name != "mnist" and found == expected:
        raise UserError(f"{path}: this is MNIST's file, not {name}'s")

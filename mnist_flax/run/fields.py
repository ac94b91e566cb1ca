"""The allowed values of a configuration, which is checked before anything else happens.

A new field gets a row in `FIELDS`.
"""

import difflib
import math
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mnist_flax import augment, data, model, optimizer
from mnist_flax.errors import UserError, refused
from mnist_flax.run.configs import flatten
from mnist_flax.sources import SIDE, sample, tfds


class Field(NamedTuple):
    """The allowed values of a configuration field, as a predicate and in words."""

    accepts: Callable[[Any], bool]
    allowed: str  # reads after "must be"


def _number(interval: str, kind: Any = numbers.Real, words: str = "") -> Field:
    """Allows finite numbers in an interval in mathematical notation: '[0, 1)', '(0, inf)'."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def accepts(value: Any) -> bool:
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        try:
            number = float(value)
        except OverflowError:  # an integer that no float can hold
            return False
        above = number >= low if interval[0] == "[" else number > low
        below = number <= high if interval[-1] == "]" else number < high
        return math.isfinite(number) and above and below

    return Field(accepts, words or f"a number in {interval}")


def _integer(low: int, high: int) -> Field:
    words = f"an integer from {low:,} to {high:,}"
    return _number(f"[{low}, {high}]", numbers.Integral, words)


def _choice(*names: str) -> Field:
    return Field(lambda v: v in names, "one of " + ", ".join(names))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_range(value: Any) -> bool:
    is_pair = _is_list(value) and len(value) == 2
    return is_pair and all(map(_number("(0, inf)").accepts, value)) and value[0] <= value[1]


def _blocks(high: int) -> Field:
    accepts_item = _integer(1, high).accepts

    def accepts(value: Any) -> bool:
        blocks = value if _is_list(value) else ()
        return len(blocks) > 0 and all(
            _is_list(block) and len(block) > 0 and all(map(accepts_item, block)) for block in blocks
        )

    return Field(accepts, f"a tuple of blocks, each a tuple of integers from 1 to {high:,}")


def _name(low: int, reserved: str = "") -> Field:
    """Allows the names that W&B accepts."""

    def accepts(value: Any) -> bool:
        is_text = isinstance(value, str) and low <= len(value) <= 128
        return is_text and value.isprintable() and not set(value) & set(reserved)

    without = f" without {' '.join(reserved)}" if reserved else ""
    return Field(accepts, f"printable text of {low} to 128 characters{without}")


def _are_tags(value: Any) -> bool:
    texts = value if _is_list(value) else (None,)
    return all(
        isinstance(text, str) and text.isprintable() and max(map(len, text.split(","))) <= 64
        for text in texts
    )


_BOOLEAN = Field(lambda v: isinstance(v, bool), "True or False")
_PATH = Field(lambda v: isinstance(v, str | os.PathLike), "empty or a folder")
_RESERVED = "/\\#?%:"  # in W&B's URLs

FIELDS: dict[str, Field] = {
    "seed": _integer(0, 2**32 - 1),
    "num_epochs": _integer(1, 1_000_000),
    "batch_size": _integer(1, tfds.TRAIN_SIZE),
    "label_smoothing": _number("[0, 1)"),
    "dataset.name": _choice(*tfds.TITLES),
    "dataset.source": _choice(*data.SOURCES),
    "dataset.data_dir": _PATH,
    "dataset.manual_dir": _PATH,
    "dataset.validation_size": _integer(0, tfds.TRAIN_SIZE - 1),
    "augment.enabled": _BOOLEAN,
    "augment.rotation": _number("[0, 180]"),
    "augment.translation": _number("[0, 1]"),
    "augment.scale": Field(_is_range, "a pair (low, high) with 0 < low <= high"),
    "augment.interpolation": _choice(*augment.INTERPOLATIONS),
    "model.channels": _blocks(4096),
    "model.kernel_sizes": _blocks(SIDE),
    "model.downsample": _choice(*model.DOWNSAMPLES),
    "model.norm": _choice(*model.NORMS),
    "model.norm_position": _choice(*model.NORM_POSITIONS),
    "model.num_groups": _integer(1, 4096),
    "model.padding": _choice(*model.PADDINGS),
    "model.dtype": _choice(*model.DTYPES),
    "optimizer.learning_rate": _number("(0, inf)"),
    "optimizer.schedule": _choice(*optimizer.SCHEDULES),
    "optimizer.learning_rate_decay": _number("(0, 1]"),
    "optimizer.warmup": _number("[0, 1)"),
    "optimizer.b1": _number("[0, 1)"),
    "optimizer.b2": _number("[0, 1)"),
    "optimizer.eps": _number("(0, inf)"),
    "optimizer.weight_decay": _number("[0, inf)"),
    "optimizer.decoupled": _BOOLEAN,
    "optimizer.ema_decay": _number("[0, 1)"),
    "evaluation.num_views": _integer(1, 1_000),
    "evaluation.strength": _number("[0, 1]"),
    "checkpoint.keep": _integer(1, 1_000_000),
    "wandb.mode": _choice("auto", "online", "offline", "disabled"),
    "wandb.project": _name(1, _RESERVED),
    "wandb.entity": _name(0, _RESERVED),
    "wandb.group": _name(0),
    "wandb.tags": Field(_are_tags, "a tuple of printable texts of up to 64 characters"),
    "wandb.job_type": _name(0),
    "wandb.notes": Field(lambda v: isinstance(v, str), "text"),
    "wandb.log_model": _choice("none", "best", "all"),
    "study.num_seeds": _integer(1, 100_000),
    "study.num_together": _integer(0, 100_000),
    "study.num_final_epochs": _integer(1, 1_000_000),
}


def check(config: ConfigDict) -> None:
    """Checks a whole configuration: its fields, their values, and how they fit together.

    Raises:
      UserError: names the first field that is wrong, its value and what is allowed.
    """
    values = flatten(config)
    for name in values:
        if name not in FIELDS and not name.startswith("study.variants."):
            raise unknown(name)
    for name, field in FIELDS.items():
        if name not in values:
            raise UserError(f"config.{name} is missing; it must be {field.allowed}")
        if not field.accepts(values[name]):
            raise refused(f"config.{name}", values[name], field.allowed)
    _check_network(config.model)
    _check_images(config.dataset, config.batch_size)


def _check_network(network: ConfigDict) -> None:
    channels, kernels = network.channels, network.kernel_sizes
    if [*map(len, channels)] != [*map(len, kernels)]:
        allowed = f"one kernel for each of channels={channels}"
        raise refused("config.model.kernel_sizes", kernels, allowed)
    groups = network.num_groups
    odd = [width for block in channels for width in block if width % groups]
    if network.norm == "group" and odd:
        raise refused("config.model.num_groups", groups, f"a divisor of {odd[0]} channels")
    try:
        model.create_model(network, num_classes=10).check_side(SIDE)
    except UserError as error:
        raise UserError(f"config.model.{error}") from None


def _check_images(dataset: ConfigDict, batch_size: int) -> None:
    is_sample = dataset.source == "sample"
    if is_sample and dataset.name != "mnist":
        raise refused("config.dataset.source", "sample", f"auto or tfds for {dataset.name}")
    if is_sample and dataset.manual_dir:
        allowed = "empty with config.dataset.source=sample"
        raise refused("config.dataset.manual_dir", dataset.manual_dir, allowed)
    train_size = sample.TRAIN_SIZE if is_sample else tfds.TRAIN_SIZE
    if (num_images := train_size - dataset.validation_size) < 1:
        allowed = f"below the {train_size:,} training images"
        raise refused("config.dataset.validation_size", dataset.validation_size, allowed)
    if batch_size > num_images:
        allowed = f"at most the {num_images:,} training images"
        raise refused("config.batch_size", batch_size, allowed)


def unknown(name: str) -> UserError:
    """Returns the error for a field that does not exist."""
    by_last_word = {field.rpartition(".")[2]: field for field in FIELDS}
    close = difflib.get_close_matches(name.rpartition(".")[2], by_last_word, n=1)
    hint = f"did you mean config.{by_last_word[close[0]]}?" if close else "docs/flags.md lists them"
    return UserError(f"config.{ascii(name)[1:-1]} is not a field; {hint}")

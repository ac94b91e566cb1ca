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
from mnist_flax.runtime.files import is_url
from mnist_flax.sources import SIDE, sample, tfds


class Field(NamedTuple):
    """The allowed values of a configuration field, as a predicate and in words."""

    accepts: Callable[[Any], bool]
    allowed: str


def _integer(low: int, high: int) -> Field:
    return Field(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
        f"an integer from {low} to {high}",
    )


def _number(interval: str) -> Field:
    """Allows finite numbers in an interval in mathematical notation: '[0, 1)', '(0, inf)'."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def accepts(value: Any) -> bool:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        try:
            value = float(value)
        except OverflowError:  # an integer that no float can hold
            return False
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        return math.isfinite(value) and above and below

    return Field(accepts, f"a number in {interval}")


def _choice(*names: str) -> Field:
    return Field(lambda v: v in names, "one of " + ", ".join(names))


def _is_range(value: Any) -> bool:
    is_pair = isinstance(value, Sequence) and len(value) == 2
    return is_pair and all(map(_number("(0, inf)").accepts, value)) and value[0] <= value[1]


def _blocks(high: int) -> Field:
    accepts_item = _integer(1, high).accepts

    def accepts(value: Any) -> bool:
        blocks = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
        return len(blocks) > 0 and all(
            isinstance(block, Sequence) and len(block) > 0 and all(map(accepts_item, block))
            for block in blocks
        )

    return Field(accepts, f"a tuple of blocks, each a tuple of integers from 1 to {high}")


_BOOLEAN = Field(lambda v: isinstance(v, bool), "True or False")
_TEXT = Field(lambda v: isinstance(v, str), "text")
_FOLDER = Field(
    lambda v: isinstance(v, str) and (v == "" or os.path.isdir(os.path.expanduser(v))),
    "empty or an existing folder",
)


def _name(low: int, reserved: str = "") -> Field:
    """Allows the names that W&B accepts."""

    def accepts(value: Any) -> bool:
        is_text = isinstance(value, str) and low <= len(value) <= 128 and value.isprintable()
        return is_text and value == value.strip() and not set(value) & set(reserved)

    without = f" without {' '.join(reserved)}" if reserved else ""
    return Field(accepts, f"printable text of {low} to 128 characters{without}")


def _tags(high: int) -> Field:
    def accepts(value: Any) -> bool:
        texts = value if isinstance(value, Sequence) and not isinstance(value, str) else (None,)
        return all(
            isinstance(text, str) and text.isprintable() and max(map(len, text.split(","))) <= high
            for text in texts
        )

    return Field(accepts, f"a tuple of printable texts of up to {high} characters")


_RESERVED = "/\\#?%:"  # in W&B's URLs

FIELDS: dict[str, Field] = {
    "seed": _integer(0, 2**32 - 1),
    "num_epochs": _integer(1, 1_000_000),
    "batch_size": _integer(1, tfds.TRAIN_SIZE),
    "label_smoothing": _number("[0, 1)"),
    "dataset.name": _choice(*data.NAMES),
    "dataset.source": _choice(*data.SOURCES),
    "dataset.data_dir": Field(lambda v: isinstance(v, str) and not is_url(v), "empty or a folder"),
    "dataset.manual_dir": _FOLDER,
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
    "wandb.tags": _tags(64),
    "wandb.job_type": _name(0),
    "wandb.notes": _TEXT,
    "wandb.log_model": _choice("none", "best", "all"),
    "study.num_seeds": _integer(1, 100_000),
    "study.num_together": _integer(0, 100_000),
    "study.num_final_epochs": _integer(1, 1_000_000),
    "study.ensemble_size": _integer(1, 100_000),
}


def check(config: ConfigDict) -> None:
    """Checks a whole configuration: its fields, their values, and how they fit together.

    Raises:
      UserError: names the first field that is wrong, its value and what is allowed.
    """
    _check_fields(config)
    _check_dataset(config.dataset)
    try:
        model.create_model(config.model, num_classes=10).check_side(SIDE)
    except UserError as error:
        raise UserError(f"config.model.{error}") from None
    is_sample = config.dataset.source == "sample"
    train_size = sample.TRAIN_SIZE if is_sample else tfds.TRAIN_SIZE
    data.check_validation_size(config.dataset.validation_size, train_size)
    num_images = train_size - config.dataset.validation_size
    if config.batch_size > num_images:
        allowed = f"at most the {num_images:,} training images"
        raise refused("config.batch_size", config.batch_size, allowed)


def _check_fields(config: ConfigDict) -> None:
    values = flatten(config)
    for name in values:
        if name not in FIELDS and not name.startswith("study.variants."):
            raise unknown(name)
    for name, field in FIELDS.items():
        if name not in values:
            raise UserError(f"config.{name} is missing; allowed: {field.allowed}")
        if not field.accepts(values[name]):
            raise refused(f"config.{name}", values[name], field.allowed)


def _check_dataset(dataset: ConfigDict) -> None:
    if dataset.source == "sample" and dataset.name != "mnist":
        raise refused("config.dataset.source", "sample", f"auto or tfds for {dataset.name}")
    if dataset.source == "sample" and dataset.manual_dir:
        allowed = "empty with dataset.source=sample"
        raise refused("config.dataset.manual_dir", dataset.manual_dir, allowed)


def unknown(name: str) -> UserError:
    """Returns the error for a field that does not exist."""
    group = name.rpartition(".")[0]
    siblings = [field for field in FIELDS if field.rpartition(".")[0] == group] or list(FIELDS)
    shown = name if name.isprintable() else ascii(name)  # an error is one line
    allowed = f"{suggest(name.rpartition('.')[2])}allowed: {', '.join(siblings)}"
    return UserError(f"config.{shown} is not a field; {allowed}")


def suggest(name: str) -> str:
    """Returns a question that names the field most like `name`, or an empty string."""
    if any(field.startswith(f"{name}.") for field in FIELDS):
        return ""  # a group
    by_name = {field.rpartition(".")[2]: field for field in FIELDS}
    close = difflib.get_close_matches(name, by_name, n=1)
    return f"did you mean --config.{by_name[close[0]]}? " if close else ""

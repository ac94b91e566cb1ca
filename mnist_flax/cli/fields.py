"""What a configuration may hold, checked as a whole before anything else happens."""

import math
import numbers
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from mnist_flax import data
from mnist_flax.errors import UserError


class Field(NamedTuple):
    """One configuration value: a predicate, and the same in words."""

    accepts: Callable[[Any], bool]
    allowed: str


def _integer(low: int, high: int) -> Field:
    return Field(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
        f"an integer from {low} to {high}",
    )


def _number(interval: str) -> Field:
    """A finite number in an interval written as in mathematics: '[0, 1)', '(0, inf)'."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def accepts(value: Any) -> bool:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        try:
            value = float(value)
        except OverflowError:  # of an integer beyond the floats
            return False
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        return math.isfinite(value) and above and below

    return Field(accepts, f"a number in {interval}")


def _choice(*names: str) -> Field:
    return Field(lambda v: v in names, "one of " + ", ".join(names))


def _is_range(value: Any) -> bool:
    positive = _number("(0, inf)").accepts
    return isinstance(value, Sequence) and len(value) == 2 and all(map(positive, value)) and (
        value[0] <= value[1]
    )  # fmt: skip


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
_NAME = Field(lambda v: isinstance(v, str) and v != "", "text, not empty")
_FOLDER = Field(
    lambda v: isinstance(v, str) and (v == "" or os.path.isdir(os.path.expanduser(v))),
    "empty or an existing folder",
)
_TEXTS = Field(
    lambda v: isinstance(v, Sequence) and all(isinstance(item, str) for item in v),
    "a tuple of texts",
)

BASE = "base"  # the recipe of a study that has no overrides
_VARIANT_NAME = r"[\w,+=-][\w ,+=-]*"  # also that of a folder
_SHARED = r"(seed$|dataset\.|checkpoint\.|wandb\.|study\.)"  # fields that no variant may change

FIELDS: dict[str, Field] = {
    "seed": _integer(0, 2**32 - 1),
    "num_epochs": _integer(1, 1_000_000),
    "batch_size": _integer(1, data.TRAIN_SIZE),
    "label_smoothing": _number("[0, 1)"),
    "dataset.name": _choice(*data.NAMES),
    "dataset.source": _choice("auto", "tfds", "sample"),
    "dataset.data_dir": _TEXT,
    "dataset.manual_dir": _FOLDER,
    "dataset.validation_size": _integer(0, data.TRAIN_SIZE - 1),
    "augment.enabled": _BOOLEAN,
    "augment.rotation": _number("[0, 180]"),
    "augment.translation": _number("[0, 1]"),
    "augment.scale": Field(_is_range, "a pair (low, high) with 0 < low <= high"),
    "augment.interpolation": _choice("nearest", "bilinear"),
    "model.channels": _blocks(4096),
    "model.kernel_sizes": _blocks(data.IMAGE_SIDE),
    "model.downsample": _choice("strided", "max", "avg"),
    "model.norm": _choice("batch", "layer", "group", "none"),
    "model.norm_position": _choice("before", "after"),
    "model.num_groups": _integer(1, 4096),
    "model.padding": _choice("VALID", "SAME"),
    "model.dtype": _choice("float32", "bfloat16"),
    "optimizer.learning_rate": _number("(0, inf)"),
    "optimizer.schedule": _choice("exponential", "linear", "cosine"),
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
    "wandb.project": _NAME,
    "wandb.entity": _TEXT,
    "wandb.group": _TEXT,
    "wandb.tags": _TEXTS,
    "study.num_seeds": _integer(1, 100_000),
    "study.num_together": _integer(0, 100_000),
    "study.num_final_epochs": _integer(1, 1_000_000),
    "study.ensemble_size": _integer(1, 100_000),
}


def check_overrides(arguments: Sequence[str]) -> None:
    """Checks that every `--config.FIELD` argument names a field.

    Raises:
      UserError: names the unknown field and the fields of its group.
    """
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in FIELDS:
            raise _unknown(match[1])


def explain(error: Exception) -> str:
    """One line for an error that parsing flags or loading a recipe raised."""
    text = str(error).strip()
    if "Traceback" in text:  # of a recipe; its last line says what is wrong
        text = text.splitlines()[-1]
    text = " ".join(text.split())
    match = re.search(r"--config\.([\w.]+)=", text)
    if match and match[1] in FIELDS:
        return f"{text}; allowed: {FIELDS[match[1]].allowed}"
    return text if isinstance(error, flags.Error) else f"{type(error).__name__}: {text}"


def check(config: ConfigDict) -> None:
    """Checks a whole configuration: its fields, their values, and how they fit together.

    Raises:
      UserError: names the first field that is wrong, its value and what is allowed.
    """
    _check_fields(config)
    _check_dataset(config.dataset)
    _check_network(config.model)
    is_sample = config.dataset.source == "sample"
    check_sizes(config, data.SAMPLE_TRAIN_SIZE if is_sample else data.TRAIN_SIZE)
    recipes(config)


def recipes(config: ConfigDict) -> dict[str, ConfigDict]:
    """What a study compares: 'base', which is `config`, and `config.study.variants`, by name.

    Raises:
      UserError: names the variant, what is wrong with it and what is allowed.
    """
    named = {BASE: _without_variants(config)}
    variants = config.get("study", {}).get("variants", {})
    if not isinstance(variants, ConfigDict):
        raise _refused("study.variants", variants, "a name and the fields that differ, for each")
    for name, overrides in variants.items():
        where = f"config.study.variants[{name!r}]"
        if name == BASE or not re.fullmatch(_VARIANT_NAME, name):
            raise UserError(
                f"{where} is not allowed; allowed: other names than {BASE!r}, of letters, digits, "
                "spaces and ,+=-_"
            )
        if not isinstance(overrides, ConfigDict) or not len(overrides):
            raise UserError(f"{where} is not allowed; allowed: the fields that differ, in groups")
        try:
            named[name] = _overridden(named[BASE], flatten(overrides))
            check(named[name])
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return named


def _without_variants(config: ConfigDict) -> ConfigDict:
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        copy.study.variants = ConfigDict()
    return copy


def _overridden(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    copy = config.copy_and_resolve_references()
    for name, value in values.items():
        if name not in FIELDS:
            raise _unknown(name)
        if re.match(_SHARED, name):
            raise _refused(name, value, "the same in all variants")
        with copy.ignore_type():
            copy.update_from_flattened_dict({name: value})
    return copy


def _check_fields(config: ConfigDict) -> None:
    values = flatten(config)
    for name in values:
        if name not in FIELDS and not name.startswith("study.variants."):
            raise _unknown(name)
    for name, field in FIELDS.items():
        if name not in values:
            raise UserError(f"config.{name} is missing; allowed: {field.allowed}")
        if not field.accepts(values[name]):
            raise _refused(name, values[name], field.allowed)


def check_sizes(config: ConfigDict, train_size: int, num_devices: int = 1) -> None:
    """Checks batch and validation sizes against the images and the devices that there are.

    Raises:
      UserError: names the field, its value and the largest that works, or the nearest.
    """
    data.check_validation_size(config.dataset.validation_size, train_size)
    left = train_size - config.dataset.validation_size
    if config.batch_size > left:
        raise _refused("batch_size", config.batch_size, f"at most the {left:,} training images")
    if config.batch_size % num_devices:
        below = config.batch_size // num_devices * num_devices
        nearest = [str(size) for size in (below, below + num_devices) if 0 < size <= left]
        raise _refused(
            "batch_size",
            config.batch_size,
            f"a multiple of the {num_devices} devices, nearest {' and '.join(nearest) or 'none'}",
        )


def _check_dataset(dataset: ConfigDict) -> None:
    if dataset.source == "sample" and dataset.name != "mnist":
        raise _refused("dataset.source", "sample", f"auto or tfds for {dataset.name}")
    if dataset.source == "sample" and dataset.manual_dir:
        raise _refused("dataset.manual_dir", dataset.manual_dir, "empty with dataset.source=sample")


def _check_network(model: ConfigDict) -> None:
    """Follows the feature map's side through the network; see `mnist_flax.model`."""
    lengths = [len(block) for block in model.channels]
    if lengths != [len(block) for block in model.kernel_sizes]:
        raise _refused(
            "model.kernel_sizes",
            model.kernel_sizes,
            f"one kernel for each of config.model.channels={model.channels}",
        )
    if model.norm == "group":
        indivisible = [c for block in model.channels for c in block if c % model.num_groups]
        if indivisible:
            raise _refused(
                "model.num_groups", model.num_groups, f"a divisor of {indivisible[0]} channels"
            )
    side = data.IMAGE_SIDE
    for index, kernels in enumerate(model.kernel_sizes):
        for kernel in kernels:
            if kernel > side:
                raise _refused(
                    "model.kernel_sizes",
                    model.kernel_sizes,
                    f"kernels within their feature maps; {kernel}x{kernel} of block {index + 1} "
                    f"meets {side}x{side}",
                )
            side -= kernel - 1 if model.padding == "VALID" else 0
        if index < len(model.kernel_sizes) - 1:
            if side < 2:
                raise _refused(
                    "model.kernel_sizes",
                    model.kernel_sizes,
                    f"feature maps of 2x2 or more at the end of block {index + 1}, to downsample",
                )
            side //= 2


def flatten(config: ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by field, as in 'model.norm'."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _refused(name: str, value: Any, allowed: str) -> UserError:
    return UserError(f"config.{name}={value!r} is not allowed; allowed: {allowed}")


def _unknown(name: str) -> UserError:
    group = name.rpartition(".")[0]
    siblings = [field for field in FIELDS if field.rpartition(".")[0] == group] or list(FIELDS)
    return UserError(f"config.{name} is not a field; allowed: {', '.join(siblings)}")

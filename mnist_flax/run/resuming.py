"""What may change when a run resumes in its folder: the configuration and the data are compared."""

import json
from collections.abc import Callable
from typing import Any

from mnist_flax.errors import UserError
from mnist_flax.run.configs import default_values, flatten

# Whether a field, given by name, may differ between flat configurations: the old and the new one.
MayDiffer = Callable[[str, dict[str, Any], dict[str, Any]], bool]


def is_free(name: str) -> bool:
    """Whether no result depends on a field, so that it may change whenever a run resumes.

    The source of the data may change because the data themselves are compared.
    """
    free = ("checkpoint.keep", "dataset.data_dir", "dataset.manual_dir", "dataset.source")
    return name in free or name.startswith(("study.", "wandb."))


def may_extend(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a run may resume with another value of a field: a free field, or more epochs.

    More epochs are refused if the learning rate depends on their number.
    """
    if name != "num_epochs":
        return is_free(name)
    is_extensible = now["optimizer.schedule"] == "exponential" and not now["optimizer.warmup"]
    return is_extensible and isinstance(before.get(name), int) and 0 < before[name] < now[name]


def check_same(
    where: str,
    before: dict[str, Any],
    config: dict[str, Any],
    may_differ: MayDiffer,
    way_out: str = "use the same configuration, or a new folder",
) -> None:
    """Checks that two configurations are the same, except for fields that may differ.

    A field that `before` lacks, because the field is newer, counts as having its default.

    Args:
      where: what holds `before`, for the error.
      before: the existing configuration.
      config: the configuration to compare with it.
      may_differ: which fields may differ.
      way_out: what to do about it, for the error.

    Raises:
      UserError: names `where`, and the fields that differ.
    """
    now, defaults = flatten(json.loads(to_json(config))), json.loads(to_json(default_values()))
    before = {name: defaults[name] for name in now if name in defaults} | flatten(before)
    differing = [
        f"config.{name}={before.get(name)!r} (now {now.get(name)!r})"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name) and not may_differ(name, before, now)
    ]
    if differing:
        raise UserError(f"{where} has {', '.join(differing)}; {way_out}")


def check_data(where: str, before: str, now: str, way_out: str = "a new folder") -> None:
    """Checks that the run in `where` was trained on the same data.

    Args:
      where: what holds the run, for the error.
      before: the identity of its data, or only their title, as older versions wrote it.
      now: the identity of the present data.
      way_out: what to use if not the same data, for the error.

    Raises:
      UserError: the data differ.
    """
    if not now.startswith(before):
        raise UserError(
            f"{where} holds a run on {before}, but the data are now {now}; use the same data, or "
            f"{way_out}"
        )


def to_json(values: dict[str, Any]) -> str:
    """Returns finite values as JSON; NumPy's numbers become Python's, paths become text."""

    def plain(value: Any) -> Any:
        return value.item() if hasattr(value, "item") else str(value)

    return json.dumps(values, indent=2, allow_nan=False, default=plain)

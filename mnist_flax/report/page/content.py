"""Prepares what a page says about a run, as plain data for the template and the scripts."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mnist_flax.data import Dataset
from mnist_flax.evaluate import Evaluation
from mnist_flax.history import History

_NOT_SHOWN = "study."  # prefix of the fields that do not concern a run
_DECIMALS = {"learning_rate": 6, "seconds": 2, "images_per_second": 0}  # 4 for all others


class Run(NamedTuple):
    """A finished run."""

    config: Mapping[str, Any]  # by field name, such as 'model.norm'
    default: Mapping[str, Any]  # the default recipe in the same form; empty if it is missing
    command: str  # the command line that started the run; empty if Python code did
    dataset: Dataset
    create_examples: Callable[[], tuple[np.ndarray, np.ndarray]] | None  # as of `Pictures`
    history: History
    test: Evaluation
    summary: Mapping[str, Any]  # the contents of summary.json
    variables: Mapping[str, Any]  # the evaluated parameters and statistics, as NumPy arrays


def configuration(run: Run) -> dict[str, dict[str, Any]]:
    """Returns the fields of a run by group and name: a value and, if it differs, the default."""
    groups: dict[str, dict[str, Any]] = {}
    for field, value in run.config.items():
        if not field.startswith(_NOT_SHOWN):
            group, _, name = field.rpartition(".")
            entry = {"value": _text(value)}
            if differs(run, field):
                entry["default"] = _text(run.default[field])
            groups.setdefault(group or "run", {})[name] = entry
    return groups


def differs(run: Run, field: str) -> bool:
    """Whether a field differs from the default recipe."""
    value = run.config[field]
    return _text(value) != _text(run.default.get(field, value))


def call(run: Run) -> str:
    """Returns how to repeat a run: its command, or Python code if that is what started it."""
    if run.command:
        return run.command
    start = ["from configs import default", "from mnist_flax import train", ""]
    differing = [
        f"config.{field} = {value!r}"
        for field, value in run.config.items()
        if differs(run, field) and not field.startswith(_NOT_SHOWN)
    ]
    lines = [*start, "config = default.get_config()", *differing, "train.run(config)"]
    return "\n".join(lines)


def percent(share: float | None, decimals: int = 2) -> str:
    """Returns a share, 0..1, such as '98.76 %'; 'none' for None."""
    return "none" if share is None else f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """Returns a time in words: '1 h 2 min', '1 min 5 s', '4.2 s'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def number(value: float | None, key: str = "") -> str:
    """Returns a number with the decimals that its column of the records needs; '' for None."""
    decimals = 0 if isinstance(value, int) else _DECIMALS.get(key, 4)
    return "" if value is None else f"{value:,.{decimals}f}"


def _text(value: Any) -> str:
    """Returns a value as one writes it in a flag; a list looks like a tuple."""
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_text, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value) if isinstance(value, str) and not value else str(value)

"""Finds the recipes, and turns configurations into flat dictionaries."""

import importlib
import pathlib
import sys
import types
from typing import Any

from ml_collections import ConfigDict

RECIPES = pathlib.Path(__file__).parents[2] / "configs"  # next to the package, installed or not


def make_importable(*folders: pathlib.Path) -> None:
    """Makes `from configs import default` find the recipes of `folders`, then the project's.

    Otherwise the result depends on the current folder, which may hold another `configs` package.
    """
    package = sys.modules.setdefault("configs", types.ModuleType("configs"))
    package.__path__ = list(dict.fromkeys(map(str, (*folders, RECIPES))))


def default_values() -> dict[str, Any]:
    """Returns the values of configs/default.py, by field."""
    make_importable()
    return flatten(importlib.import_module("configs.default").get_config())


def flatten(config: ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values by field name, such as 'model.norm'."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat

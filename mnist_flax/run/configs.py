"""Finds the recipes, and turns configurations into flat dictionaries."""

import importlib
import pathlib
import sys
import types
from typing import Any

from flax import traverse_util
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


def flatten(config: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """Returns the values by field name, such as 'model.norm'."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    return traverse_util.flatten_dict(values, sep=".")

"""Finds the recipes, and turns configurations into flat dictionaries."""

import importlib.util
import pathlib
import sys
import types
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

RECIPES = pathlib.Path(__file__).parents[2] / "configs"  # next to the package, installed or not


def make_importable() -> None:
    """Makes `from configs import default` find the project's recipes, then the current folder's.

    Only for a command of this project: another program may have a package `configs` of its own.
    """
    package = sys.modules.setdefault("configs", types.ModuleType("configs"))
    package.__path__ = [str(RECIPES), "configs"]


def default_values() -> dict[str, Any]:
    """Returns the values of configs/default.py, by field."""
    spec = importlib.util.spec_from_file_location("mnist_flax.default", RECIPES / "default.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return flatten(module.get_config())


def flatten(config: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """Returns the values by field name, such as 'model.norm'."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    return traverse_util.flatten_dict(values, sep=".")

"""The recipes of a study: the base and its variants."""

import re
from typing import Any

from ml_collections import ConfigDict

from mnist_flax.errors import UserError, refused
from mnist_flax.run import fields
from mnist_flax.run.configs import flatten

BASE = "base"  # the recipe without overrides
_VARIANT_NAME = r"[\w,+=-][\w ,+=-]*"  # also used as the name of a folder
_SHARED = r"(seed$|dataset\.|checkpoint\.|wandb\.|study\.)"  # fields that no variant may change


def recipes(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the recipes of a study by name: 'base', which is `config`, and its variants.

    Raises:
      UserError: a field or a variant is invalid.
    """
    variants = config.get("study", {}).get("variants", {})
    if not isinstance(variants, ConfigDict):
        allowed = "the fields that differ from the base, by the name of the variant"
        raise refused("config.study.variants", variants, allowed)
    fields.check(config)
    base = config.copy_and_resolve_references()
    with base.unlocked():
        base.study.variants = ConfigDict()
    named = {BASE: base}
    for name, overrides in variants.items():
        where = f"config.study.variants[{name!r}]"
        if name == BASE or not re.fullmatch(_VARIANT_NAME, name):
            raise UserError(
                f"{where} must have a name of letters, digits, spaces and ,+=-_ that is not 'base'"
            )
        if not isinstance(overrides, ConfigDict) or not len(overrides):
            raise UserError(f"{where} must hold the fields that differ from the base, in groups")
        try:
            named[name] = _overridden(base, flatten(overrides))
            fields.check(named[name])
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return named


def _overridden(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    copy = config.copy_and_resolve_references()
    for name, value in values.items():
        if name not in fields.FIELDS:
            raise fields.unknown(name)
        if re.match(_SHARED, name):
            raise refused(f"config.{name}", value, "the same in all variants")
        with copy.ignore_type():
            copy.update_from_flattened_dict({name: value})
    return copy

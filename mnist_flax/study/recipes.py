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
      UserError: a variant is invalid.
    """
    variants = config.get("study", {}).get("variants", {})
    if not isinstance(variants, ConfigDict):
        allowed = "for each variant, a name and the fields that differ"
        raise refused("config.study.variants", variants, allowed)
    named = {BASE: _without_variants(config)}
    fields.check(named[BASE])
    for name, overrides in variants.items():
        where = f"config.study.variants[{name!r}]"
        if name == BASE or not re.fullmatch(_VARIANT_NAME, name):
            raise UserError(
                f"{where} is not allowed; allowed: any name except {BASE!r}, made of letters, "
                "digits, spaces and ,+=-_"
            )
        if not isinstance(overrides, ConfigDict) or not len(overrides):
            allowed = "the fields that differ from the base, in their groups"
            raise UserError(f"{where} is not allowed; allowed: {allowed}")
        try:
            named[name] = _overridden(named[BASE], flatten(overrides))
            fields.check(named[name])
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
        if name not in fields.FIELDS:
            raise fields.unknown(name)
        if re.match(_SHARED, name):
            raise refused(f"config.{name}", value, "the same in all variants")
        with copy.ignore_type():
            copy.update_from_flattened_dict({name: value})
    return copy

"""Commands that take a recipe: `--config FILE`, overrides of its fields, and flags of their own."""

import re
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mnist_flax.cli import program
from mnist_flax.errors import UserError

flags.disclaim_key_flags()  # --config belongs to the command that calls `start`


def start(main: Callable[[ConfigDict], None], default_recipe: str = "default.py") -> None:
    """Calls `main` with the configuration that the command line asks for, and exits.

    Args:
      main: the command's own function.
      default_recipe: the file in `configs/` to use if `--config` is not given.
    """

    def parse(argv: list[str]) -> list[str]:
        from mnist_flax.run import configs, fields  # imports JAX

        configs.make_importable()
        for argument in argv:
            match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
            if match and match[1] not in fields.FIELDS:
                raise fields.unknown(match[1])
        holder = config_flags.DEFINE_config_file(
            "config",
            str(configs.RECIPES / default_recipe),
            "The recipe: a Python file, such as configs/quick.py. --config.FIELD=VALUE after it "
            "changes a field; docs/flags.md lists them.",
        )
        positional = flags.FLAGS(argv)[1:]
        if positional:
            raise UserError(f"{positional[0]!r} is not a flag; see --help")
        if not isinstance(holder.value, ConfigDict):
            getattr(holder.value, "lock", None)  # raises the error of a file that was not loaded
            flag: Any = flags.FLAGS["config"]
            raise UserError(f"{flag.config_filename}: get_config() does not return a ConfigDict")
        fields.check(holder.value)
        return [holder]

    program.run(lambda arguments: main(arguments[0].value), parse)

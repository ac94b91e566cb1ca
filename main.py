"""Trains a digit classifier: python main.py --config configs/default.py."""

import os
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from mnist_flax import config as config_lib
from mnist_flax import huge_pages
from mnist_flax.errors import UserError

_DEFAULT = pathlib.Path(__file__).parent / "configs" / "default.py"
_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="The recipe; configs/default.py if none.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "A new folder for the results; empty: a dated one under runs/."
)


def main(argv: Sequence[str]) -> None:
    """Runs the training that the flags ask for."""
    del argv
    logging.set_verbosity(logging.WARNING)  # else JAX tells of every backend that it does not find
    huge_pages.use()
    # Imported once the flags are known to be right, for it takes seconds.
    from mnist_flax import train

    train.run(_CONFIG.value, _WORKDIR.value)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses and checks everything that was asked for.

    Raises:
      UserError: says in one line what is wrong and what is allowed.
    """
    config_lib.check_overrides(argv)
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={_DEFAULT}", *argv[1:]]
    try:
        positional = flags.FLAGS(argv)[1:]
        recipe = config_flags.get_config_filename(flags.FLAGS["config"])
        if not os.path.isfile(recipe):
            raise UserError(f"--config={recipe}: no such file; allowed: a recipe of configs/")
        config_lib.check(_CONFIG.value)
    except UserError:
        raise
    except Exception as error:  # of absl, of ml_collections, or in the recipe itself
        raise UserError(config_lib.explain(error)) from None
    if positional:
        raise UserError(f"{positional[0]!r} is not a flag; allowed: --config, --workdir")
    return argv[:1]


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the finished epochs are in the workdir", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as shells count

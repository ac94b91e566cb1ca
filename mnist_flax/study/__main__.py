"""Compares a recipe's variants over seeds: python -m mnist_flax.study --config configs/study.py."""

from mnist_flax.runtime import huge_pages

if __name__ == "__main__":
    huge_pages.use()  # it restarts Python, so it comes before anything that takes time

from absl import flags
from ml_collections import ConfigDict

from mnist_flax.cli import command

flags.adopt_module_key_flags(command)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "The folder for the results: a new one, or that of the study to resume; empty: a dated one "
    "under runs/.",
)
_ENSEMBLE = flags.DEFINE_boolean(
    "ensemble", False, "Average networks too, config.study.ensemble_size at a time."
)


def main(config: ConfigDict) -> None:
    """Runs the study that the flags ask for."""
    # Imported here because it takes seconds: invalid flags are reported before.
    from mnist_flax.study import laboratory

    laboratory.run(config, _WORKDIR.value, _ENSEMBLE.value)


if __name__ == "__main__":
    command.start(main, default_recipe="study.py")

"""Compares a recipe's variants over seeds: python -m mnist_flax.study --config configs/study.py."""

from mnist_flax.runtime import huge_pages

if __name__ == "__main__":
    huge_pages.use()  # may restart Python, so it runs before anything slow

from absl import flags
from ml_collections import ConfigDict

from mnist_flax.cli import command

_WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "The folder for the results: a new one, or that of a study to resume. By default, a dated one "
    "under runs/.",
)
_ENSEMBLE = flags.DEFINE_boolean(
    "ensemble", False, "Also average the outputs of all networks of a recipe."
)


def main(config: ConfigDict) -> None:
    """Runs the study that the flags ask for."""
    # Imported here because it takes seconds, and invalid flags should be reported at once.
    from mnist_flax.study import laboratory

    laboratory.run(config, _WORKDIR.value, _ENSEMBLE.value)


if __name__ == "__main__":
    command.start(main, default_recipe="study.py")

"""Trains a digit classifier: python main.py --config configs/default.py."""

from mnist_flax import huge_pages

if __name__ == "__main__":
    huge_pages.use()  # it starts Python anew, so before anything that takes time

from absl import flags
from ml_collections import ConfigDict

from mnist_flax import command

flags.adopt_module_key_flags(command)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "A new folder for the results; empty: a dated one under runs/."
)


def main(config: ConfigDict) -> None:
    """Runs the training that the flags ask for."""
    # Imported once the flags are known to be right, for it takes seconds.
    from mnist_flax import train

    train.run(config, _WORKDIR.value)


if __name__ == "__main__":
    command.start(main, "interrupted; the finished epochs are in the workdir")

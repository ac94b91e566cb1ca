"""Trains a digit classifier: python main.py --config configs/default.py."""

from mnist_flax.runtime import huge_pages

if __name__ == "__main__":
    huge_pages.use()  # may restart Python, so it runs before anything slow

from absl import flags
from ml_collections import ConfigDict

from mnist_flax.cli import command
from mnist_flax.errors import UserError

_WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "The folder for the results: a new one, or that of a run to resume. By default, a dated one "
    "under runs/.",
)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "Join the other processes of a run on several hosts."
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    "",
    "HOST:PORT of process 0, with --distributed where JAX does not find the others by itself.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Rank of this process, from 0.")


def main(config: ConfigDict) -> None:
    """Runs the training that the flags ask for."""
    # Imported here because it takes seconds, and invalid flags should be reported at once.
    from mnist_flax import train
    from mnist_flax.runtime import hosts

    cluster = (_COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _DISTRIBUTED.value:
        hosts.join(*cluster)
    elif cluster != ("", None, None):
        raise UserError(
            "--coordinator_address, --num_processes and --process_id need --distributed"
        )
    train.run(config, _WORKDIR.value)


if __name__ == "__main__":
    command.start(main)

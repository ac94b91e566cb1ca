"""Recognises the launcher of a run, Slurm, Open MPI or another MPI, by its variables."""

import glob
import os
from typing import NamedTuple

from mnist_flax.errors import UserError

# The number of processes, and the rank of this one: in all, and on its host.
_SIZES = {
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "Slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "MPI": ("PMI_SIZE", "PMI_RANK"),  # MPICH, Intel MPI
}
_LOCAL_SIZES = {
    "Open MPI": ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "Slurm": ("SLURM_STEP_TASKS_PER_NODE", "SLURM_LOCALID"),
    "MPI": ("MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
}
# Set where Slurm itself gives each task GPUs of its own.
_BOUND = ("SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_TRES_PER_TASK")


class Launcher(NamedTuple):
    """What started this process.

    Attributes:
      name: its name in messages.
      size: how many processes it started.
      size_variable: the environment variable with that number.
      rank_variable: the one with this process's rank.
    """

    name: str
    size: int
    size_variable: str
    rank_variable: str


def find() -> Launcher | None:
    """Returns the launcher of this process, preferably one that started others too; or None."""
    found = [
        Launcher(name, int(os.environ[size]), size, rank)
        for name, (size, rank) in _SIZES.items()
        if os.environ.get(size, "").isdecimal() and rank in os.environ
    ]
    return max(found, key=lambda launcher: launcher.size > 1, default=None)


def own_gpus(launcher: Launcher) -> list[int]:
    """Returns the GPUs to use, as indices into those that this process sees; empty for all.

    JAX would use one per process. Here, processes on the same host get equal shares of its GPUs,
    unless each sees only its own.

    Raises:
      UserError: the GPUs cannot be shared equally among the processes on this host.
    """
    size_variable, rank_variable = _LOCAL_SIZES[launcher.name]
    try:
        size = _here(os.environ.get(size_variable, "1"))
        rank = int(os.environ.get(rank_variable, 0))
    except (ValueError, IndexError):
        given = [f"{name}={os.environ.get(name)}" for name in (size_variable, rank_variable)]
        raise UserError(f"{' and '.join(given)} are not a number of processes and a rank") from None
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", os.environ.get("ROCR_VISIBLE_DEVICES"))
    count = len(glob.glob("/dev/nvidia[0-9]*") if seen is None else seen.split(","))
    is_bound = any(name in os.environ for name in _BOUND)
    if size == 1 or count < size or (is_bound and launcher.name == "Slurm"):
        return []
    if count % size:
        raise UserError(
            f"{size} processes cannot share the {count} GPUs of this host equally; allowed: a "
            "number of processes per host that divides the GPUs"
        )
    share = count // size
    return list(range(rank * share, (rank + 1) * share))


def _here(sizes: str) -> int:
    """Returns this host's number from Slurm's list for all hosts, such as '2(x3),1'."""
    numbers = []
    for part in sizes.split(","):
        number, _, times = part.rstrip(")").partition("(x")
        numbers += [int(number)] * int(times or 1)
    return numbers[int(os.environ.get("SLURM_NODEID", 0)) if len(numbers) > 1 else 0]

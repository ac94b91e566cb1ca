"""Compiles for TPUs without using one: python -m mnist_flax.benchmark.tpu [--topology=v5e:2x2].

The compiler of libtpu needs no TPU. This command lets it compile the training step and the
evaluation of a recipe as a run would, for a chip, a host or a slice of several hosts, and prints
what it reports. Nothing is run.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from unittest import mock

import jax
from absl import flags
from jax.experimental import topologies
from ml_collections import ConfigDict

from mnist_flax.benchmark.jax_worker import noise
from mnist_flax.cli import command
from mnist_flax.errors import UserError, refused
from mnist_flax.runtime import devices, memory
from mnist_flax.trainer import Trainer

_TOPOLOGY = flags.DEFINE_list(
    "topology",
    "v5e:1x1,v5e:2x2,v5e:4x4",  # a chip, a host, a slice of four hosts
    "What to compile for, as TYPE:SHAPE.",
)

# These keep libtpu from looking for its host and from refusing to be loaded twice.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_HEAD = (
    "GFLOP and MB are the compiler's, for one device; a loop counts as a single pass.\n\n"
    "| topology | program | devices | hosts | images | GFLOP "
    "| MB accessed | MB of arguments | MB of temporaries |\n"
    f"| --- | --- {'| ---: ' * 7}|"
)


def main(config: ConfigDict) -> None:
    """Compiles the programs and prints a row of a table for each.

    Raises:
      UserError: libtpu is missing or does not know a topology, or the recipe does not suit it.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu; pip install -e '.[tpu]'")
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")  # for the constants in a program
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot load programs for a TPU
    found = {name: find_devices(name) for name in _TOPOLOGY.value}
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu", "flax")]
    print(f"Compiled with {', '.join(versions)}, not run.", _HEAD, flush=True)
    for name, chips in found.items():
        for row in compile_for(config, chips):
            print(f"| {name} |", " | ".join(row), "|", flush=True)


def find_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a topology such as 'v5e:2x2'.

    Raises:
      UserError: libtpu does not know the topology.
    """
    # A TPU host has four chips, unless the topology is a single chip.
    is_chip = topology.endswith((":1x1", ":1x1x1"))
    options = {"chips_per_host_bounds": (1, 1, 1)} if is_chip else {}
    try:
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        known = f"one that libtpu knows, such as v5e:2x2 ({str(error).splitlines()[0]})"
        raise refused("--topology", topology, known) from None


def compile_for(config: ConfigDict, chips: list[jax.Device]) -> Iterator[list[str]]:
    """Compiles the training step and the evaluation as a run on these devices would.

    The project asks JAX for its devices through the functions replaced here; JAX's own lowering
    looks only at the mesh. Nothing can be put on devices that do not exist, but to compile, shapes
    suffice.

    Yields:
      A row of the table for each program, without the topology.

    Raises:
      UserError: the recipe does not suit the devices, or they have too little memory.
    """
    most = 60_000 - config.dataset.validation_size
    # Only whole batches, so that there is one step.
    dataset = noise(config, most - most % config.batch_size or most)
    pretended = mock.patch.multiple(
        jax,
        devices=lambda: chips,
        device_count=lambda: len(chips),
        default_backend=lambda: "tpu",
    )
    with pretended, mock.patch.object(devices, "put", devices.shapes):
        trainer = Trainer(config, dataset)
        trainer.compile()
    try:
        step, predict = (program.result() for program in trainer._programs.values())
    except jax.errors.JaxRuntimeError as error:
        raise memory.exhausted(error) or error from None
    hosts = len({chip.process_index for chip in chips})
    programs = {
        "step": (config.batch_size, step),
        "evaluation": (predict.out_info.shape[0], predict),
    }
    for name, (images, program) in programs.items():
        cost, size = program.cost_analysis(), program.memory_analysis()
        in_bytes = (cost["bytes accessed"], size.argument_size_in_bytes, size.temp_size_in_bytes)
        numbers = (len(chips), hosts, images, cost["flops"] / 1e9, *(x / 1e6 for x in in_bytes))
        yield [name, *(f"{number:,.0f}" for number in numbers)]


if __name__ == "__main__":
    command.start(main)

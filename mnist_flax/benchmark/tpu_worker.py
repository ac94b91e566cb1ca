"""The benchmark's worker that compiles for TPUs with libtpu's compiler, which needs no TPU."""

import collections
import importlib.metadata
import json
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from mnist_flax.benchmark import jax_worker, worker
from mnist_flax.errors import UserError, refused
from mnist_flax.runtime import devices
from mnist_flax.trainer import Trainer

_NUM_TRAIN, _NUM_TEST = 60_000, 10_000
# The trainer's functions, by the benchmark's names for them.
_PROGRAMS = {"step": "_train_step", "evaluation": "_predict"}
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
_NO_ESTIMATE = 2**62  # the compiler writes a number near 2^63 if it has no estimate


class Lowering(Trainer):
    """Lowers everything that a run compiles, but compiles nothing.

    Attributes:
      lowered: the lowered program and its batch size, by the name of the trainer's function. A run
        with a smaller last batch has two steps; this keeps the one for full batches.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.lowered: dict[str, tuple[jax.stages.Lowered, int]] = {}

    def _lower(self, function: Callable, own: list[Any], *shared: Any, **options: Any) -> Any:
        lowered = super()._lower(function, own, *shared, **options)
        name = getattr(function, "func", function).__name__
        self.lowered.setdefault(name, (lowered, options.get("batch_size", 1)))
        nothing = types.SimpleNamespace(memory_analysis=lambda: None)
        return types.SimpleNamespace(out_info=lowered.out_info, compile=lambda: nothing)


def find_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a topology such as 'v5e:2x2'.

    Raises:
      UserError: libtpu does not know the topology.
    """
    shape = topology.partition(":")[2]
    # A TPU host has four chips, unless the topology is a single chip.
    options = {"chips_per_host_bounds": (1, 1, 1)} if set(shape.split("x")) == {"1"} else {}
    try:
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        allowed = f"a topology of libtpu's, such as v5e:1x1, v5e:2x2 or v5e:4x4 ({reason})"
        raise refused("--topology", topology, allowed) from None


def pretend(to_have: Sequence[jax.Device]) -> None:
    """Makes the project find these devices, as it would in a process on one of their hosts.

    The project asks JAX for devices through these functions; JAX's own lowering looks only at the
    devices of the mesh. Nothing can be put on devices that do not exist, so `put` returns shapes,
    which are all that lowering needs.
    """
    jax.devices = lambda: to_have
    jax.device_count = lambda: len(to_have)
    jax.process_count = lambda: len({device.process_index for device in to_have})
    jax.default_backend = lambda: "tpu"
    devices.put = devices.shapes  # type: ignore[assignment]


def describe(program: jax.stages.Compiled) -> dict[str, Any]:
    """Returns what `read` finds in a program, and the bytes that it needs on a device."""
    memory = program.memory_analysis()
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        **read(program.as_text()),
        "argument_bytes": arguments - memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def read(text: str) -> dict[str, Any]:
    """Reads the text of a program compiled for a TPU.

    Returns:
      'cycles': the compiler's estimate for each operation; a loop counts as a single pass.
      'collectives': the number of collectives of each kind.
      'gathers': the number of gathers, for which there is no estimate.
    """
    cycles: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
        if estimate and int(estimate[1]) < _NO_ESTIMATE:
            name = re.search(r'op_name="([^"]*)"', line)
            cycles[name[1] if name else "unnamed"] += int(estimate[1])
    kinds = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in _COLLECTIVES}
    return {
        "cycles": dict(cycles),
        "collectives": {kind: number for kind, number in kinds.items() if number},
        "gathers": len(re.findall(r" gather\(", text)),
    }


def main(config: ConfigDict, topology: str) -> None:
    """Serves 'step' and 'evaluation': compiles the program and describes it."""
    found = find_devices(topology)
    pretend(found)
    size = _NUM_TRAIN - config.dataset.validation_size
    trainer = Lowering(config, jax_worker.noise(config, size, _NUM_TEST))
    trainer.compile()
    programs = {name: trainer.lowered[function] for name, function in _PROGRAMS.items()}
    about = {
        "kind": found[0].device_kind,
        "num_devices": jax.device_count(),
        "num_hosts": jax.process_count(),
        "batch_size": {name: size for name, (_, size) in programs.items()},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu", "flax")},
    }
    worker.serve(about, lambda name: lambda: describe(programs[name][0].compile()))


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    try:
        main(ConfigDict(settings["config"]), settings["topology"])
    except UserError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    except jax.errors.JaxRuntimeError as problem:  # for example, too little memory
        sys.exit(str(problem).splitlines()[0])

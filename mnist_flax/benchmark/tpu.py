"""Compiles for TPUs without using one: python -m mnist_flax.benchmark.tpu [--topology=v5e:2x2].

The compiler of libtpu needs no TPU. This command lets it compile the training step and the
evaluation of a recipe as a run would, for a chip, a host or a slice of several hosts, and prints
its estimates. Nothing is run. Each topology has its own process, because the compiler may crash.
"""

import contextlib
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from mnist_flax.benchmark.tables import markdown
from mnist_flax.benchmark.worker import Worker
from mnist_flax.cli import command
from mnist_flax.errors import UserError, refused

flags.adopt_module_key_flags(command)
_DEFAULT = ("v5e:1x1", "v5e:2x2", "v5e:4x4")  # a chip, a host, a slice of four hosts
_TOPOLOGY = flags.DEFINE_list("topology", list(_DEFAULT), "What to compile for, as TYPE:SHAPE.")

# These keep libtpu from looking for its host and from refusing a second process, and JAX from
# looking for a TPU and from loading a program from its cache.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
_PROGRAMS = ("step", "evaluation")
# Clock rates by kind of device. They follow from the peaks that Google publishes for bfloat16,
# which are 2 * units * side**2 * clock. A v4 and a v5p have 8 matrix units of side 128, a v5e has 4
# of side 128, and a v6e has 4 of side 256.
_HERTZ = {"TPU v4": 1.05e9, "TPU v5 lite": 1.5e9, "TPU v5": 1.75e9, "TPU v6 lite": 1.75e9}
_NUM_OPERATIONS = 5  # per program in the table of operations


def main(config: ConfigDict) -> None:
    """Compiles the programs and prints what the compiler reports.

    Raises:
      UserError: libtpu is missing, does not know a topology, or has crashed. After a crash, the
        results for the other topologies are printed first.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu; pip install -e '.[tpu]'")
    if not _TOPOLOGY.value:
        raise refused("--topology", "", f"one or more, such as {','.join(_DEFAULT)}")
    results, problems = compile_for(config, _TOPOLOGY.value)
    if results:
        print(report(results))
    if problems:
        raise UserError("; ".join(problems))


def compile_for(config: ConfigDict, names: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Compiles the programs for each of the topologies.

    Returns:
      What `tpu_worker` reports for each topology and program, with their names; and a line for
      each topology whose compiler has crashed.

    Raises:
      UserError: libtpu does not know a topology, or the recipe does not suit it.
    """
    from tqdm import tqdm  # not before its environment variables have been checked

    results: list[dict[str, Any]] = []
    problems = []
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in names:  # check all of them before compiling for the first
            settings = {"config": config.to_dict(), "topology": name}
            workers[name] = Worker("tpu_worker", settings, _ENVIRONMENT, f"the compiler for {name}")
            stack.callback(workers[name].close)
        bar = stack.enter_context(tqdm(total=len(workers) * len(_PROGRAMS), unit=" programs"))
        for name, worker in workers.items():
            try:
                for program in _PROGRAMS:
                    bar.set_description(f"{name}, {program}")
                    said = worker.measure(program)
                    results.append({"topology": name, "program": program} | worker.about | said)
                    bar.update()
            except UserError as error:
                problems.append(str(error))
    return results, problems


def report(results: list[dict[str, Any]]) -> str:
    """Returns Markdown on the results of `compile_for`: the programs and longest operations."""
    rows = [_program(result) for result in results]
    operations = [["operation", "topology", "program", "cycles", "share"]]
    for result in results:
        longest = sorted(result["cycles"].items(), key=lambda item: -item[1])[:_NUM_OPERATIONS]
        operations += [
            [_short(operation), result["topology"], result["program"], f"{cycles:,}", share]
            for operation, cycles in longest
            for share in [f"{cycles / sum(result['cycles'].values()):.0%}"]
        ]
    versions = ", ".join(f"{name} {version}" for name, version in results[0]["versions"].items())
    return "\n".join(
        [
            f"Compiled with {versions}, not run. Cycles are the compiler's estimates. They leave "
            "out gathers and collectives, so a program takes longer. Memory is per device.",
            "",
            *markdown([list(rows[0]), *(list(row.values()) for row in rows)]),
            "",
            *markdown(operations),
        ]
    )


def _program(result: dict[str, Any]) -> dict[str, str]:
    """Returns a row of the table of programs."""
    cycles, images = sum(result["cycles"].values()), result["batch_size"][result["program"]]
    hertz = _HERTZ.get(result["kind"])
    collectives = [f"{number} {kind}" for kind, number in result["collectives"].items()]
    return {
        "topology": result["topology"],
        "program": result["program"],
        "devices": str(result["num_devices"]),
        "hosts": str(result["num_hosts"]),
        "images": f"{images:,}",
        "cycles": f"{cycles:,}",
        "images/s at most": f"{images * hertz / cycles:,.0f}" if hertz else "unknown",
        "arguments, MB": f"{result['argument_bytes'] / 1e6:,.0f}",
        "temporaries, MB": f"{result['temporary_bytes'] / 1e6:,.0f}",
        "gathers": str(result["gathers"]),
        "collectives": ", ".join(collectives) or "none",
    }


def _short(operation: str) -> str:
    """Returns the name of an operation without its program and its branch for the platform."""
    return re.sub(r"^jit\(\w+\)/|cond/branch_\d+_fun/", "", operation)


if __name__ == "__main__":
    command.start(main)

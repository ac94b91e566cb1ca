"""Measures training and evaluation: python -m mnist_flax.benchmark [--against torch] [--json].

Each implementation runs in its own process. They are timed in turn, task by task, so that a noisy
machine slows all of them equally. The images are noise, because speed does not depend on them.
"""

import importlib.util
import itertools
import json
import operator
import statistics
import tempfile
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from mnist_flax.benchmark.worker import Worker
from mnist_flax.cli import command
from mnist_flax.errors import UserError, refused

_AGAINST = flags.DEFINE_enum("against", None, ["torch"], "Measure PyTorch in the same run.")
_JSON = flags.DEFINE_boolean("json", False, "Print JSON instead of tables.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements per task.", lower_bound=1)
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    None,
    "Images per epoch. By default, 6,144 on a CPU, otherwise 60,000.",
    lower_bound=1,
)

_OURS = "mnist_flax"
# The fields for which the network in PyTorch allows only one value.
_ORIGINAL = {
    "augment.enabled": True,
    "augment.interpolation": "nearest",
    "model.downsample": "strided",
    "model.norm": "batch",
    "model.norm_position": "before",
    "model.padding": "VALID",
    "optimizer.decoupled": False,
}
# For glibc: huge pages, which main.py asks for too; and to keep large blocks of memory, which by
# default are returned to the system at once and mapped again every step.
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_KEPT_HEAP = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:"
    "glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=1073741824"
}


def main(config: ConfigDict) -> None:
    """Measures the tasks and prints the result."""
    if _AGAINST.value:
        check_comparable(config)
    result = measure(config)
    print(json.dumps(result, indent=2) if _JSON.value else table(result))


def measure(config: ConfigDict) -> dict[str, Any]:
    """Measures every task as the flags say, taking the implementations in turn.

    Returns:
      What `jax_worker.prepare` says of the tasks, and 'images_per_second': a list for each task and
      implementation.

    Raises:
      UserError: an implementation cannot be run.
    """
    with tempfile.TemporaryDirectory() as cache:
        env = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        ours = Worker("jax_worker", env | _HUGE_PAGES, config, _NUM_IMAGES.value)
        about, images = ours.about, ours.about["images"]
        workers = {_OURS: ours} | (_start_torch(config, about) if _AGAINST.value else {})
        rates: dict = {task: {name: [] for name in workers} for task in images}
        turns = list(itertools.product(range(_REPEATS.value), images, workers))
        for _, task, name in tqdm(turns, unit=" measurements"):
            rates[task][name].append(images[task] / workers[name].measure(task))
    for worker in workers.values():
        about["versions"] |= worker.about["versions"]
    return about | {"images_per_second": rates}


def _start_torch(config: ConfigDict, about: dict[str, Any]) -> dict[str, Worker]:
    """Starts workers for the forms of PyTorch, by the name of their column."""
    device = "cpu" if about["device"] == "cpu" else "cuda"
    images = about["images"]
    settings = config, images["epoch"], images["evaluation"], device
    more = "kept heap, huge pages" if device == "cpu" else "compiled"
    return {
        "PyTorch, as written": Worker("torch_worker", {}, *settings, False),
        f"channels_last, {more}": Worker("torch_worker", _KEPT_HEAP, *settings, True),
    }


def table(result: dict[str, Any]) -> str:
    """Returns the result of `measure` as Markdown."""
    rows = []
    for task, rates in result["images_per_second"].items():
        ours, *others = rates.values()
        row = [task, _rates(ours)]
        for theirs in others:
            in_turn = statistics.median(map(operator.truediv, ours, theirs))
            row += [_rates(theirs), f"{max(ours) / max(theirs):.2f} ({in_turn:.2f})"]
        rows.append(row)
    head = ["images/s", _OURS]
    for name in list(rates)[1:]:
        head += [name, "ratio"]
    rows = [head, ["---"] + ["---:"] * len(row[1:]), *rows]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    images, seconds = result["images"], result["compile_seconds"]
    return "\n".join(
        [
            f"{result['device']} ({result['processor']}), {versions}; {result['dtype']}, "
            f"batches of {images['step']:,}, epochs of {images['epoch']:,} images.\n",
            *(f"| {' | '.join(row)} |" for row in rows),
            f"\nBest (median) of {len(ours)} repeats: noise can only slow one, so the best is the "
            "estimate.",
            f"Ratio: {_OURS}'s images/s to those on its left, of the bests (median of the turns).",
            f"Compiling before the first step took {seconds['cold']:.1f} s; with a filled cache, "
            f"{seconds['cached']:.1f} s.",
        ]
    )


def _rates(values: list[float]) -> str:
    return f"{max(values):,.0f} ({statistics.median(values):,.0f})"


def check_comparable(config: ConfigDict) -> None:
    """Raises a `UserError` if PyTorch is missing, or lacks something that the recipe asks for."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("--against=torch needs PyTorch; pip install -e '.[benchmark]'")
    for field, value in _ORIGINAL.items():
        if (given := operator.attrgetter(field)(config)) != value:
            raise refused(f"config.{field}", given, f"{value} with --against=torch")


if __name__ == "__main__":
    command.start(main)

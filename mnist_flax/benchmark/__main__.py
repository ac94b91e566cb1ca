"""Measures training and evaluation: python -m mnist_flax.benchmark [--against torch] [--json].

Each implementation runs in its own process. They are timed in turn, task by task, so that a noisy
machine slows all of them equally. The images are noise, because speed does not depend on them.
"""

import contextlib
import importlib.util
import itertools
import json
import operator
import platform
import statistics
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from mnist_flax.benchmark.tables import markdown
from mnist_flax.benchmark.worker import Worker
from mnist_flax.cli import command
from mnist_flax.errors import UserError
from mnist_flax.runtime import huge_pages, process

flags.adopt_module_key_flags(command)
_AGAINST = flags.DEFINE_enum("against", None, ["torch"], "Measure PyTorch in the same run.")
_JSON = flags.DEFINE_boolean("json", False, "Print JSON instead of tables.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements per task.", lower_bound=1)
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    None,
    "Images per epoch. By default, 6,144 on a CPU, otherwise 60,000.",
    lower_bound=1,
)

_NUM_TEST = 10_000
_OURS = "mnist_flax"
# The tasks, each with the arithmetic that it does for one image.
_TASKS = {
    "augmentation": None,
    "forward": "forward",
    "step": "step",
    "epoch": "step",
    "evaluation": "forward",
}
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
# By default, glibc returns large blocks to the system at once and maps them again every step.
_KEPT_HEAP = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**30),
}
# By column: the form, the process's environment variables, and whether it uses huge pages.
_TORCH_FORMS: dict[str, dict[str, tuple[str, dict[str, str], bool]]] = {
    "cpu": {
        "PyTorch, as written": ("plain", {}, False),
        "channels_last": ("channels_last", {}, False),
        "channels_last, kept heap": ("channels_last", _KEPT_HEAP, False),
        "channels_last, kept heap, huge pages": ("channels_last", _KEPT_HEAP, True),
    },
    "gpu": {
        "PyTorch, as written": ("plain", {}, False),
        "channels_last, TF32": ("channels_last", {}, False),
        "channels_last, bfloat16": ("bfloat16", {}, False),
        "channels_last, bfloat16, compiled": ("compiled", {}, False),
    },
}


def main(config: ConfigDict) -> None:
    """Measures the tasks and prints the result."""
    if _AGAINST.value:
        _check_comparable(config)
    result = measure(config, bool(_AGAINST.value), _REPEATS.value, _NUM_IMAGES.value)
    print(json.dumps(result, indent=2) if _JSON.value else table(result))


def measure(
    config: ConfigDict, against_torch: bool, repeats: int, num_images: int | None
) -> dict[str, Any]:
    """Measures every task `repeats` times, taking the implementations in turn.

    Returns:
      The measurements and what they were made on, among others: 'seconds', a list for each task
      and implementation; 'flop' per image; 'matmul_flop_per_second'; 'compile_seconds' of the
      training; 'peak_memory_bytes'.

    Raises:
      UserError: an implementation cannot be run.
    """
    with contextlib.ExitStack() as stack:
        workers, num_images = _start(stack, config, against_torch, num_images)
        seconds, matmul = _measure_in_turns(workers, repeats)
        ours = workers[_OURS]
        return {
            "device": ours.about["device"],
            "platform": ours.about["platform"],
            "processor": f"{ours.about['num_cpus']} CPUs, {process.processor()}",
            "python": platform.python_version(),
            "versions": {k: v for w in workers.values() for k, v in w.about["versions"].items()},
            "dtype": config.model.dtype,
            "batch_size": config.batch_size,
            "images": _images(config, num_images),
            "flop": ours.about["flop"],
            "matmul_flop_per_second": [1 / value for value in matmul],
            "seconds": seconds,
            "compile_seconds": ours.about["compile_seconds"],
            "peak_memory_bytes": {name: w.measure("memory") for name, w in workers.items()},
        }


def _start(
    stack: contextlib.ExitStack, config: ConfigDict, against_torch: bool, num_images: int | None
) -> tuple[dict[str, Worker], int]:
    """Starts a worker for each implementation; returns them and the number of images per epoch."""
    settings = {"config": config.to_dict(), "num_test": _NUM_TEST, "num_images": num_images}

    def start(module: str, env: dict[str, str] | None = None, **form: Any) -> Worker:
        worker = Worker(module, settings | form, env or {})
        stack.callback(worker.close)
        return worker

    ours = start("jax_worker")
    settings["num_images"] = ours.about["num_images"]
    workers = {_OURS: ours}
    if against_torch:
        platform_ = ours.about["platform"]
        for name, (form, env, huge) in _torch_forms(platform_, config.model.dtype).items():
            options = {"form": form, "huge_pages": huge, "platform": platform_}
            workers[name] = start("torch_worker", env, **options)
    return workers, ours.about["num_images"]


def _measure_in_turns(
    workers: dict[str, Worker], repeats: int
) -> tuple[dict[str, dict[str, list[float]]], list[float]]:
    """Returns the seconds by task and implementation, and a matrix product's seconds per FLOP."""
    from tqdm import tqdm  # not before its environment variables have been checked

    seconds: dict[str, dict[str, list[float]]] = {
        task: {name: [] for name in workers} for task in _TASKS
    }
    matmul = []
    with tqdm(total=repeats * len(_TASKS) * len(workers), unit=" measurements") as bar:
        for _ in range(repeats):
            matmul.append(workers[_OURS].measure("matmul"))
            for task, name in itertools.product(_TASKS, workers):
                bar.set_description(f"{task}, {name}")
                seconds[task][name].append(workers[name].measure(task))
                bar.update()
    return seconds, matmul


def table(result: dict[str, Any]) -> str:
    """Returns the result of `measure` as Markdown."""
    peak = statistics.median(result["matmul_flop_per_second"])
    names = list(next(iter(result["seconds"].values())))
    repeats = len(result["matmul_flop_per_second"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    memory = ", ".join(f"{n} {b / 1e9:.2f} GB" for n, b in result["peak_memory_bytes"].items())
    cold, cached = (result["compile_seconds"][kind] for kind in ("cold", "cached"))
    rows = [["images/s", *names, "GFLOP/s", "of peak"]]
    ratios = [["ratio", *names[1:]]]
    for task, seconds in result["seconds"].items():
        images = result["images"][task]
        rate = images / statistics.median(seconds[_OURS])
        flop = result["flop"].get(_TASKS[task])
        arithmetic = (
            [f"{rate * flop / 1e9:,.0f}", f"{rate * flop / peak:.0%}"] if flop else ["", ""]
        )
        rows.append(
            [task, *(_spread([images / s for s in seconds[n]]) for n in names), *arithmetic]
        )
        ratios.append([task, *(_spread(_ratios(seconds, name), ".2f") for name in names[1:])])
    lines = [
        f"{result['device']} ({result['processor']}), Python {result['python']}, {versions}; "
        f"{result['dtype']}, batches of {result['batch_size']:,}, "
        f"epochs of {result['images']['epoch']:,} images, median (range) of {repeats}.",
        "",
        *markdown(rows),
        "",
        f"Peak of a matrix product: {peak / 1e9:,.0f} GFLOP/s. Compiling the training took "
        f"{cold:.1f} s, or {cached:.1f} s from the cache. Peak memory: {memory}.",
    ]
    if names[1:]:
        lines += ["", f"{_OURS}'s images/s divided by the other's, measured in turn:", ""]
        lines += markdown(ratios)
    return "\n".join(lines)


def _check_comparable(config: ConfigDict) -> None:
    if importlib.util.find_spec("torch") is None:
        raise UserError("--against=torch needs PyTorch; pip install -e '.[benchmark]'")
    for field, value in _ORIGINAL.items():
        if (given := operator.attrgetter(field)(config)) != value:
            raise UserError(
                f"config.{field}={given} cannot be measured against PyTorch; allowed: {value}"
            )


def _torch_forms(platform_: str, dtype: str) -> dict[str, tuple[str, dict[str, str], bool]]:
    if platform_ not in _TORCH_FORMS:
        raise UserError(
            f"--against=torch cannot be measured on a {platform_}; "
            f"allowed: {', '.join(_TORCH_FORMS)}"
        )
    if platform_ == "cpu" and dtype != "float32":
        raise UserError(
            f"config.model.dtype={dtype} cannot be measured against PyTorch on a CPU; "
            "allowed: float32"
        )
    return {
        name: (form, env, huge)
        for name, (form, env, huge) in _TORCH_FORMS[platform_].items()
        if not huge or huge_pages.by_request()
    }


def _images(config: ConfigDict, num_images: int) -> dict[str, int]:
    sizes = {"epoch": num_images, "evaluation": _NUM_TEST}
    return {task: sizes.get(task, config.batch_size) for task in _TASKS}


def _ratios(seconds: dict[str, list[float]], name: str) -> list[float]:
    return [theirs / ours for ours, theirs in zip(seconds[_OURS], seconds[name], strict=True)]


def _spread(values: list[float], form: str = ",.0f") -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


if __name__ == "__main__":
    command.start(main)

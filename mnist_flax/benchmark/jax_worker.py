"""The benchmark's worker for this project: the trainer's own functions, on images of noise."""

import functools
import importlib.metadata
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from mnist_flax import augment, data, model
from mnist_flax.benchmark import worker
from mnist_flax.runtime import devices, huge_pages
from mnist_flax.step import create_state
from mnist_flax.trainer import Trainer

# Images an epoch if none are asked for: a CPU takes minutes for all of MNIST.
_CPU_IMAGES = 6_144
_IMAGES = 60_000


class _Silent:
    """Stands in for a progress bar."""

    def update(self, *_: float) -> None:
        pass


def work(config: ConfigDict) -> dict[str, float]:
    """The convolutions' arithmetic for one image, in FLOP: 'forward', and 'step' with gradients.

    Counted as the definition has it, two for each product and its sum, whatever algorithm runs.
    """
    network = model.create_model(config)
    images = jnp.zeros((1, data.IMAGE_SIDE, data.IMAGE_SIDE, 1))

    def apply(key: jax.Array) -> tuple[dict, dict]:
        is_conv = lambda module, _: isinstance(module, nn.Conv)  # noqa: E731
        options = {"train": False, "capture_intermediates": is_conv, "mutable": True}
        return network.init_with_output(key, images, **options)[1]

    variables = jax.eval_shape(apply, jax.random.key(0))
    forward = {
        name: 2 * math.prod(outputs["__call__"][0].shape[1:])
        * math.prod(variables["params"][name]["kernel"].shape[:3])
        for name, outputs in variables["intermediates"].items()
    }  # fmt: skip
    total = sum(forward.values())
    # The gradients by kernel and input cost as much each; nobody asks for that by the pixels.
    return {"forward": total, "step": 3 * total - forward["conv1_1"]}


def tasks(
    config: ConfigDict, num_images: int, num_test: int
) -> tuple[dict[str, Callable[[], Callable[[], float]]], dict[str, float]]:
    """What the worker can be asked for, and how long the step took to compile."""
    rng = np.random.default_rng(config.seed)

    def split(n: int) -> data.Split:
        images = rng.integers(0, 256, (n, data.IMAGE_SIDE, data.IMAGE_SIDE, 1), np.uint8)
        return data.Split(images, rng.integers(0, data.NUM_CLASSES, n, np.int32))

    names = tuple(map(str, range(data.NUM_CLASSES)))
    dataset = data.Dataset(
        "noise", "noise", names, split(num_images), None, split(num_test), 0.5, 0.29, ""
    )
    normalize = functools.partial(data.normalize, mean=dataset.mean, std=dataset.std)
    one_batch, seconds = _compile(config, dataset)
    compiled = functools.partial(jax.jit, compiler_options=devices.compiler_options())
    batch = jax.device_put(dataset.train.images[: config.batch_size])

    def augmentation() -> Callable[[], float]:
        run = compiled(functools.partial(augment.augment, config=config.augment))
        return worker.timed(lambda: run(jax.random.key(0), batch), jax.block_until_ready)

    def forward() -> Callable[[], float]:
        state = create_state(config, 1)
        run = compiled(lambda variables, x: state.apply_fn(variables, normalize(x), False))
        return worker.timed(lambda: run(state.variables, batch), jax.block_until_ready)

    def step() -> Callable[[], float]:
        return epoch_of(one_batch)

    def epoch_of(trainer: Trainer) -> Callable[[], float]:
        return worker.timed(lambda: trainer.train_epoch(1, _Silent()), lambda _: None)

    @functools.cache
    def trainer() -> Trainer:
        trainer = Trainer(config, dataset)
        trainer.evaluate("test")  # which waits for all its programs
        return trainer

    def evaluation() -> Callable[[], float]:
        return worker.timed(lambda: trainer().evaluate("test"), lambda _: None)

    def matmul() -> Callable[[], float]:
        side = 2048 if jax.default_backend() == "cpu" else 8192
        matrix = jnp.ones((side, side), config.model.dtype)
        run = compiled(lambda a: a @ a)
        task = worker.timed(lambda: run(matrix), jax.block_until_ready)
        return lambda: task() / (2 * side**3)

    def memory() -> Callable[[], float]:
        on_device = jax.devices()[0].memory_stats() or {}
        return lambda: on_device.get("peak_bytes_in_use", worker.peak_memory())

    known = {
        "augmentation": augmentation,
        "forward": forward,
        "step": step,
        "epoch": lambda: epoch_of(trainer()),
        "evaluation": evaluation,
        "matmul": matmul,
        "memory": memory,
    }
    return known, seconds


def _compile(config: ConfigDict, dataset: data.Dataset) -> tuple[Trainer, dict[str, float]]:
    """A trainer on one batch, and how long one takes with an empty cache, and from the cache."""
    one_batch = dataset._replace(train=data.Split(*(x[: config.batch_size] for x in dataset.train)))
    seconds = {}
    before = jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        compilation_cache.reset_cache()
        for kind in ("cold", "cached"):
            trainer = Trainer(config, one_batch)
            seconds[kind] = trainer.compile_seconds
            trainer.evaluate("test")  # which waits for all its programs
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()
    return trainer, seconds


if __name__ == "__main__":
    huge_pages.use()
    devices.use_compilation_cache()
    settings = json.loads(sys.argv[1])
    recipe = ConfigDict(settings["config"])
    on_cpu = jax.default_backend() == "cpu"
    num_images = settings["num_images"] or (_CPU_IMAGES if on_cpu else _IMAGES)
    num_images = max(num_images, recipe.batch_size)
    known_tasks, compile_seconds = tasks(recipe, num_images, settings["num_test"])
    device = jax.devices()[0]
    worker.serve(
        {
            "device": device.device_kind,
            "platform": device.platform,
            "num_cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "num_images": num_images,
            "versions": {
                name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")
            },
            "flop": work(recipe.model),
            "compile_seconds": compile_seconds,
        },
        known_tasks,
    )

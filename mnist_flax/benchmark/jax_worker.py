"""The benchmark's worker for this project: measures the trainer's own functions on noise."""

import functools
import importlib.metadata
import json
import math
import sys
import tempfile
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from mnist_flax import augment, data, model, step
from mnist_flax.benchmark import worker
from mnist_flax.runtime import compilation, huge_pages, process
from mnist_flax.trainer import Trainer

# Default number of images per epoch: a CPU would take minutes for all of MNIST.
_CPU_IMAGES = 6_144
_IMAGES = 60_000
_SIDE, _NUM_CLASSES = 28, 10


def work(config: ConfigDict) -> dict[str, float]:
    """Returns the FLOP of the convolutions for one image: 'forward', and for a whole 'step'.

    They are counted by definition, one for each multiplication and one for each addition, whatever
    algorithm is used.
    """
    network = model.create_model(config, _NUM_CLASSES)
    images = jnp.zeros((1, _SIDE, _SIDE, 1))

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
    # The gradients with respect to kernel and input each cost as much as the forward pass. The one
    # with respect to the pixels is not needed.
    return {"forward": total, "step": 3 * total - forward["conv1_1"]}


def noise(config: ConfigDict, num_images: int, num_test: int) -> data.Dataset:
    """Returns a data set of noise, because speed does not depend on the images."""
    rng = np.random.default_rng(config.seed)

    def split(n: int) -> data.Split:
        images = rng.integers(0, 256, (n, _SIDE, _SIDE, 1), np.uint8)
        return data.Split(images, rng.integers(0, _NUM_CLASSES, n, np.int32))

    names = tuple(map(str, range(_NUM_CLASSES)))
    train, test = split(num_images), split(num_test)
    return data.Dataset("noise", "noise", names, train, None, test, 0.5, 0.29)


class Tasks:
    """The tasks of the worker; each method prepares a task that returns seconds.

    Attributes:
      compile_seconds: the time to compile a trainer, without a cache ('cold') and with ('cached').
    """

    def __init__(self, config: ConfigDict, dataset: data.Dataset):
        self._config = config
        self._dataset = dataset
        self._compiled = functools.partial(jax.jit, compiler_options=compilation.compiler_options())
        self._batch = jax.device_put(dataset.train.images[: config.batch_size])
        self._one_batch, self.compile_seconds = _compile(config, dataset)

    @functools.cached_property
    def _trainer(self) -> Trainer:
        return _ready(Trainer(self._config, self._dataset))

    def augmentation(self) -> Callable[[], float]:
        """Augments a batch."""
        run = self._compiled(functools.partial(augment.augment, config=self._config.augment))
        return worker.timed(lambda: run(jax.random.key(0), self._batch), jax.block_until_ready)

    def forward(self) -> Callable[[], float]:
        """Predicts a batch."""
        normalize = functools.partial(
            data.normalize, mean=self._dataset.mean, std=self._dataset.std
        )
        predict = functools.partial(step.predict, config=self._config, normalize=normalize)
        run, state = self._compiled(predict), self._one_batch.create_state(0)
        return worker.timed(lambda: run(state, self._batch), jax.block_until_ready)

    def step(self) -> Callable[[], float]:
        """Trains on one batch."""
        return _epochs(self._one_batch)

    def epoch(self) -> Callable[[], float]:
        """Trains on all images."""
        return _epochs(self._trainer)

    def evaluation(self) -> Callable[[], float]:
        """Evaluates the test set."""
        state = self._trainer.create_state(0)
        return worker.timed(lambda: self._trainer.evaluate(state), lambda _: None)

    def matmul(self) -> Callable[[], float]:
        """Multiplies square matrices; the task returns seconds per FLOP."""
        side = 2048 if jax.default_backend() == "cpu" else 8192
        matrix = jnp.ones((side, side), self._config.model.dtype)
        run = self._compiled(lambda a: a @ a)
        task = worker.timed(lambda: run(matrix), jax.block_until_ready)
        return lambda: task() / (2 * side**3)

    def memory(self) -> Callable[[], float]:
        """The task returns the peak memory so far, in bytes."""
        on_device = jax.devices()[0].memory_stats() or {}
        return lambda: on_device.get("peak_bytes_in_use", worker.peak_memory())


def _ready(trainer: Trainer) -> Trainer:
    """Returns a trainer whose programs are all compiled."""
    trainer.compile()
    trainer.evaluate(trainer.create_state(0))
    return trainer


def _epochs(trainer: Trainer) -> Callable[[], float]:
    states = [trainer.create_state(0)]

    def run() -> None:
        states.append(trainer.train_epoch(states.pop(), 1, lambda *_: None)[0])

    return worker.timed(run, lambda _: None)


def _compile(config: ConfigDict, dataset: data.Dataset) -> tuple[Trainer, dict[str, float]]:
    """Returns a trainer on one batch, and the seconds that compiling takes."""
    one_batch = dataset._replace(train=data.Split(*(x[: config.batch_size] for x in dataset.train)))
    seconds = {}
    before = jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        compilation_cache.reset_cache()
        for kind in ("cold", "cached"):
            trainer = Trainer(config, one_batch)
            trainer.compile()
            seconds[kind] = trainer.compiler.seconds
            trainer.evaluate(trainer.create_state(0))  # waits for the other programs
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()
    return trainer, seconds


if __name__ == "__main__":
    huge_pages.use()
    compilation.set_up()
    settings = json.loads(sys.argv[1])
    recipe = ConfigDict(settings["config"])
    on_cpu = jax.default_backend() == "cpu"
    num_images = settings["num_images"] or (_CPU_IMAGES if on_cpu else _IMAGES)
    num_images = max(num_images, recipe.batch_size)
    tasks = Tasks(recipe, noise(recipe, num_images, settings["num_test"]))
    device = jax.devices()[0]
    worker.serve(
        {
            "device": device.device_kind,
            "platform": device.platform,
            "num_cpus": process.num_cpus(),
            "num_images": num_images,
            "versions": {
                name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")
            },
            "flop": work(recipe.model),
            "compile_seconds": tasks.compile_seconds,
        },
        lambda name: getattr(tasks, name)(),
    )

"""The benchmark's worker for this project: runs the trainer's own functions on noise."""

import functools
import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import augment, data
from mnist_flax.runtime import compilation, devices, process
from mnist_flax.trainer import Trainer

_NUM_TEST = 10_000
_SIDE, _NUM_CLASSES = 28, 10


def noise(config: ConfigDict, num_train: int) -> data.Dataset:
    """Returns a data set of noise, because speed does not depend on the images."""
    rng = np.random.default_rng(config.seed)

    def split(n: int) -> data.Split:
        images = rng.integers(0, 256, (n, _SIDE, _SIDE, 1), np.uint8)
        return data.Split(images, rng.integers(0, _NUM_CLASSES, n, np.int32))

    names = tuple(map(str, range(_NUM_CLASSES)))
    return data.Dataset(
        "noise", "noise", names, split(num_train), None, split(_NUM_TEST), 0.5, 0.29
    )


def prepare(config: ConfigDict, num_images: int | None) -> tuple[dict, dict, Callable]:
    """Prepares the tasks for a `worker.Worker`.

    Args:
      config: the whole configuration.
      num_images: the number of images per epoch, at least a batch; None for the default.
    """
    compilation.set_up()
    device = jax.devices()[0]
    default = 6_144 if device.platform == "cpu" else 60_000  # a CPU would take minutes for MNIST
    dataset = noise(config, max(num_images or default, config.batch_size))
    batch = noise(config, config.batch_size)
    # The second finds the first one's programs in the cache, which was empty before.
    cold, cached, whole = (_Run(config, x) for x in (batch, batch, dataset))

    images, key, state = devices.put(batch.train.images), jax.random.key(0), whole.create_state(0)
    augment_ = devices.lower(functools.partial(augment.augment, config=config.augment), key, images)
    predict = devices.lower(whole._predict, state, images, batch_size=config.batch_size)
    augment_, predict = augment_.compile(), predict.compile()
    tasks = {
        "augmentation": lambda: augment_(key, images),
        "forward": lambda: predict(state, images),
        "step": cached.train,
        "epoch": whole.train,
        "evaluation": lambda: whole.evaluate(whole.state),
    }
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    about = {
        "device": device.device_kind,
        "processor": f"{process.num_cpus()} CPUs, {process.processor()}",
        "versions": {"Python": platform.python_version(), **versions},
        "dtype": config.model.dtype,
        "compile_seconds": {"cold": cold.first_seconds, "cached": cached.first_seconds},
        "images": dict.fromkeys(tasks, config.batch_size)
        | {"epoch": len(dataset.train), "evaluation": _NUM_TEST},
    }
    return about, tasks, jax.block_until_ready


class _Run(Trainer):
    """A trainer with a state; `first_seconds` is how long its first step had to wait."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.compile()
        self.first_seconds = self.compile_seconds
        self.state: Any = self.create_state(0)
        self.evaluate(
            self.state
        )  # waits until the programs that compile in the background are ready

    def train(self) -> None:
        self.state, *_ = self.train_epoch(self.state, 1, lambda *_: None)

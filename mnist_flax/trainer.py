"""Puts the data on the devices, compiles the step and the prediction, and trains an epoch."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from mnist_flax import data, optimizer, step
from mnist_flax.evaluate import Evaluation, evaluate
from mnist_flax.runtime import compilation, devices
from mnist_flax.step import StepMetrics, TrainState

_WAITS_PER_EPOCH = 8  # how often the host waits for the device, to show progress


class Trainer:
    """Trains and evaluates one run on all devices.

    Args:
      config: the whole configuration.
      dataset: the data to train and evaluate on.
      placed: the same data on the devices, if they are there already.

    Attributes:
      batches: (start, size) of each batch of an epoch; the last may be smaller.
      schedule: the learning rate as a function of the step.
      compile_seconds: how long the run has waited for its programs so far.

    Raises:
      UserError: the batch size does not fit the images or the devices.
    """

    def __init__(
        self, config: ConfigDict, dataset: data.Dataset, placed: devices.Placed | None = None
    ):
        num_images, size = len(dataset.train), config.batch_size
        devices.check_batch_size(size, num_images)
        starts = range(0, num_images, size)
        self.batches = [(start, min(size, num_images - start)) for start in starts]
        self.schedule = optimizer.create_schedule(config.optimizer, len(starts), config.num_epochs)
        self.compile_seconds = 0.0
        self._config, self._dataset = config, dataset
        self._placed = placed or devices.place(dataset.train, dataset.eval_splits)
        normalize = functools.partial(data.normalize, mean=dataset.mean, std=dataset.std)
        self._options: dict[str, Any] = {"config": config, "normalize": normalize}

    def compile(self) -> str:
        """Compiles the programs.

        On a CPU, it waits only for the first step's program; the rest compile during training.

        Returns:
          A line that names the devices and says how long compiling took.
        """
        started = time.perf_counter()
        create = self._lower(self._create_state, [self._seed_like])
        state, images = [create.out_info], self._placed.eval_batches["test"][0]
        shuffle = self._lower(self._shuffle, state, 0)
        steps = {
            size: functools.partial(
                self._lower,
                functools.partial(self._train_step, size=size),
                [*state, shuffle.out_info],
                0,
                *self._placed.train,
                batch_size=size,
                donate_argnums=0,
            )
            for size in sorted({size for _, size in self.batches}, reverse=True)
        }
        predict = functools.partial(
            self._lower, self._predict, state, images, batch_size=len(images)
        )
        self._programs = compilation.start({**steps, "predict": predict})
        self._creator, self._shuffler = create.compile(), shuffle.compile()
        for program in [*self._programs.values()][: 1 if jax.default_backend() == "cpu" else None]:
            program.result()  # raises what compiling it raised
        self.compile_seconds = time.perf_counter() - started
        return f"{devices.describe()}, compiled in {self.compile_seconds:.1f} s"

    def create_state(self, seed: jax.typing.ArrayLike) -> TrainState:
        """Returns the state before the first step."""
        return self._creator(np.uint32(seed))

    def train_epoch(
        self, state: TrainState, epoch: int, on_step: Callable[[int, StepMetrics | None], None]
    ) -> tuple[TrainState, StepMetrics, float]:
        """Trains on every image once.

        Args:
          state: donated; use the returned one instead.
          epoch: the epoch's number, from 1.
          on_step: called after every step, in every process, with the number of images so far, and
            the step's metrics, or None if the host has not waited for them.

        Returns:
          The state, the metrics of each step, float32 `[steps]`, and the epoch's seconds, not
          counting the wait for programs to be compiled.
        """
        started = time.perf_counter() - self.compile_seconds
        order = self._shuffler(state, epoch)
        wait_every = max(2, math.ceil(len(self.batches) / _WAITS_PER_EPOCH))
        history: list[StepMetrics] = []
        for index, (start, size) in enumerate(self.batches, 1):
            state, metrics = self._call(size, state, order, start, *self._placed.train)
            history.append(metrics)
            if jax.default_backend() == "cpu":
                # A step can take seconds: queue at most one, so that signals are noticed quickly.
                jax.block_until_ready(history[-2:][0])
            waits = index % wait_every == 0 or index == len(self.batches)
            means = StepMetrics(*map(np.mean, jax.device_get(metrics))) if waits else None
            on_step(start + size, means)
        each_step = StepMetrics(*map(np.stack, zip(*jax.device_get(history), strict=True)))
        return state, each_step, time.perf_counter() - self.compile_seconds - started

    def predict(self, state: TrainState, split: str) -> np.ndarray:
        """Returns the logits of the split 'test' or 'validation', float32 `[n, classes]`."""
        batches = self._placed.eval_batches[split]
        logits = jax.device_get([self._call("predict", state, batch) for batch in batches])
        # The last batch may be padded with blank images.
        return np.concatenate(logits, axis=-2)[..., : len(self._dataset.eval_splits[split]), :]

    def evaluate(self, state: TrainState) -> dict[str, Evaluation]:
        """Returns the results on the whole test split, and on the validation split if any."""
        return {
            name: evaluate(self.predict(state, name), split.labels)
            for name, split in self._dataset.eval_splits.items()
        }

    def record(
        self, epoch: int, metrics: StepMetrics, results: Mapping[str, Evaluation], seconds: float
    ) -> dict[str, float]:
        """Returns a line of metrics.jsonl: the numbers of `epoch`, which counts from 1.

        The `metrics` of each step, `[steps]`, are averaged over all images; `results` are by split.
        """
        num_steps, sizes = len(self.batches), [size for _, size in self.batches]
        record: dict[str, float] = {"epoch": epoch, "step": epoch * num_steps}
        for name, values in metrics._asdict().items():
            record[f"train/{name}"] = float(np.average(values, weights=sizes))
        for split, result in results.items():
            numbers = result._asdict().items()
            record |= {f"{split}/{name}": v for name, v in numbers if isinstance(v, float)}
        record["learning_rate"] = float(self.schedule((epoch - 1) * num_steps))
        return record | {"seconds": seconds, "images_per_second": sum(sizes) / seconds}

    def _call(self, name: Any, *args: Any) -> Any:
        """Runs a program, once it is compiled."""
        program = self._programs[name]
        if not program.done():
            jax.block_until_ready(args)  # time spent computing these does not count as compiling
            started = time.perf_counter()
            program.exception()  # waits
            self.compile_seconds += time.perf_counter() - started
        return program.result()(*args)

    # The functions to compile. Their first arguments belong to one run, and the others can be
    # shared: `study.replicas` maps these functions over several runs.

    _seed_like = jax.ShapeDtypeStruct((), np.uint32)

    def _create_state(self, seed: jax.Array) -> TrainState:
        shape, names = self._dataset.train.images.shape[1:], self._dataset.class_names
        return step.create_state(seed, self._config, shape, len(names), self.schedule)

    def _shuffle(self, state: TrainState, epoch: jax.Array) -> jax.Array:
        return step.shuffle(state.key, epoch, len(self._dataset.train))

    def _train_step(
        self, state: TrainState, order: jax.Array, start: jax.Array, *train: jax.Array, size: int
    ) -> tuple[TrainState, StepMetrics]:
        indices = devices.spread(lax.dynamic_slice_in_dim(order, start, size))
        return step.train_step(state, *(array[indices] for array in train), **self._options)

    def _predict(self, state: TrainState, images: jax.Array) -> jax.Array:
        return step.predict(state, devices.spread(images), **self._options)

    def _lower(
        self, function: Callable, own: list[Any], *shared: Any, **options: Any
    ) -> jax.stages.Lowered:
        """Lowers `function(*own, *shared)`; `own` is one run's, and several runs share the rest."""
        return devices.lower(function, *own, *shared, **options)

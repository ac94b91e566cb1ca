"""The compiled functions of a run, and its data on the device."""

import concurrent.futures
import functools
import itertools
import math
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import data, evaluate, optimizer, runtime
from mnist_flax.background import lower_priority
from mnist_flax.progress import Progress
from mnist_flax.step import StepMetrics, create_initializer, shuffle, train_step

# How often an epoch the host waits for the device: to show progress, and to be interruptible.
_WAITS_PER_EPOCH = 8


class Trainer:
    """The compiled functions of a run, its data on the device.

    Attributes:
      state: replaced by every step.
      splits: those to evaluate, by name.
      schedule: learning rate by step.
      batches: (start, size) of an epoch's batches; the last may be smaller.
      compile_seconds: how long tracing and compiling have been waited for.
    """

    def __init__(self, config: ConfigDict, dataset: data.Dataset):
        num_images = len(dataset.train)
        self.batches = [
            (start, min(config.batch_size, num_images - start))
            for start in range(0, num_images, config.batch_size)
        ]
        started = time.perf_counter()
        key = jax.random.key(config.seed)
        create = create_initializer(config, len(self.batches)).lower(key)
        state = create.out_info
        self.schedule = optimizer.create_schedule(config.optimizer, len(self.batches))
        self._train = jax.device_put(dataset.train)
        self.splits = {"test": dataset.test}
        if dataset.validation is not None:
            self.splits["validation"] = dataset.validation
        self._images = {
            name: jax.device_put(evaluate.split_batches(split.images))
            for name, split in self.splits.items()
        }
        normalize = functools.partial(data.normalize, mean=dataset.mean, std=dataset.std)
        options = runtime.compiler_options()
        permute = jax.jit(functools.partial(shuffle, num_images=num_images)).lower(state.key, 0)
        step = jax.jit(
            functools.partial(train_step, augment_config=config.augment, normalize=normalize),
            static_argnames="batch_size",
            donate_argnames="state",
            compiler_options=options,
        )

        @functools.partial(jax.jit, compiler_options=options)
        def predict(variables: dict[str, Any], images: jax.Array) -> jax.Array:
            return state.apply_fn(variables, normalize(images), train=False)

        def compile_step(size: int) -> jax.stages.Compiled:
            order = permute.out_info
            return step.lower(state, *self._train, order, 0, batch_size=size).compile()

        def compile_predict(images: jax.Array) -> jax.stages.Compiled:
            return predict.lower(state.variables, images).compile()

        self._compiler = compiler = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        on_cpu = jax.default_backend() == "cpu"
        self._steps = {}
        # In the order in which they are needed. A CPU begins with the first, and the others are
        # compiled beside the training; elsewhere an epoch is over before that.
        for size in sorted({size for _, size in self.batches}, reverse=True):
            self._steps[size] = compiler.submit(compile_step, size)
            if on_cpu:
                compiler.submit(lower_priority)
        self._predict = {
            size: compiler.submit(compile_predict, images)
            for size, images in {len(x): x for x in itertools.chain(*self._images.values())}.items()
        }
        programs = [*self._steps.values(), *self._predict.values()]
        try:
            # Beside the step's compilation.
            self.state = create.compile()(key)
            self._shuffle = permute.compile()
            for program in programs[: 1 if on_cpu else None]:
                program.result()
        except BaseException:
            self.close()
            raise
        self.compile_seconds = time.perf_counter() - started

    def close(self) -> None:
        """Gives up what is not yet being compiled; the process's end waits for what is."""
        self._compiler.shutdown(wait=False, cancel_futures=True)

    def train_epoch(self, epoch: int, progress: Progress) -> StepMetrics:
        """Trains on every image once.

        Returns:
          The metrics of each step, float `[steps]`.
        """
        order = self._shuffle(self.state.key, epoch)
        wait_every = max(2, math.ceil(len(self.batches) / _WAITS_PER_EPOCH))
        history: list[StepMetrics] = []
        for index, (start, size) in enumerate(self.batches, 1):
            step = self._wait_for(self._steps[size], history)
            self.state, metrics = step(self.state, *self._train, order, start)
            history.append(metrics)
            if index % wait_every == 0 or index == len(self.batches):
                progress.update(start + size, float(metrics.loss), float(metrics.accuracy))
        return StepMetrics(*np.asarray(jax.device_get(history)).T)

    def _wait_for(self, program: concurrent.futures.Future, under_way: Any) -> jax.stages.Compiled:
        """Waits for a program, after what is `under_way`, and counts that as compiling."""
        if not program.done():
            jax.block_until_ready(under_way)
            started = time.perf_counter()
            program.result()
            self.compile_seconds += time.perf_counter() - started
        return program.result()

    def evaluate(self, name: str) -> evaluate.Evaluation:
        """Evaluates the whole split 'test' or 'validation'."""
        variables = self.state.variables
        logits = [
            self._wait_for(self._predict[len(batch)], variables)(variables, batch)
            for batch in self._images[name]
        ]
        return evaluate.evaluate(np.concatenate(jax.device_get(logits)), self.splits[name].labels)

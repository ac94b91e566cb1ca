"""The compiled functions of a run, and its data on the device."""

import concurrent.futures
import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import data, evaluate, mesh, optimizer, runtime
from mnist_flax.background import lower_priority
from mnist_flax.errors import UserError
from mnist_flax.progress import Progress
from mnist_flax.step import StepMetrics, TrainState, create_initializer, shuffle, train_step

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
      state_like: the state's shapes, types and shardings.
    """

    def __init__(self, config: ConfigDict, dataset: data.Dataset):
        self._config = config
        num_images = len(dataset.train)
        self.batches = [
            (start, min(config.batch_size, num_images - start))
            for start in range(0, num_images, config.batch_size)
        ]
        started = time.perf_counter()
        replicated = mesh.replicated()
        seed = np.uint32(config.seed)
        create = create_initializer(config, len(self.batches)).lower(seed)
        self.state_like = state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
            create.out_info,
        )
        self.schedule = optimizer.create_schedule(config.optimizer, len(self.batches))
        self._train = data.Split(*map(mesh.spread, dataset.train))
        self.splits = {"test": dataset.test}
        if dataset.validation is not None:
            self.splits["validation"] = dataset.validation
        self._images = {
            name: list(map(mesh.spread, evaluate.split_batches(split.images)))
            for name, split in self.splits.items()
        }
        normalize = functools.partial(data.normalize, mean=dataset.mean, std=dataset.std)
        options = runtime.compiler_options()
        permute = jax.jit(
            functools.partial(shuffle, num_images=num_images), out_shardings=replicated
        ).lower(state.key, 0)
        step = jax.jit(
            functools.partial(train_step, augment_config=config.augment, normalize=normalize),
            static_argnames="batch_size",
            donate_argnames="state",
            out_shardings=replicated,
            compiler_options=options,
        )

        @functools.partial(jax.jit, out_shardings=replicated, compiler_options=options)
        @functools.partial(
            jax.shard_map,
            mesh=replicated.mesh,
            in_specs=(mesh.REPLICATED, mesh.SPREAD),
            out_specs=mesh.SPREAD,
            check_vma=False,
        )
        def predict(variables: dict[str, Any], images: jax.Array) -> jax.Array:
            return state.apply_fn(variables, normalize(images), train=False)

        def compile_step(size: int) -> jax.stages.Compiled:
            order = jax.ShapeDtypeStruct((num_images,), jnp.int32, sharding=replicated)
            return step.lower(state, *self._train, order, 0, batch_size=size).compile()

        def compile_predict(images: jax.Array) -> jax.stages.Compiled:
            return predict.lower(state.variables, images).compile()

        self._compiler = compiler = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        on_cpu = jax.default_backend() == "cpu"
        # A step takes a CPU up to seconds. No more than one is in line, so that a signal is soon
        # heard.
        self._stays_close = on_cpu
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
            self.state = create.compile()(seed)
            self._shuffle = permute.compile()
            self._copy = jax.jit(_copy).lower(state).compile()
            for program in programs[: 1 if on_cpu else None]:
                program.result()
        except BaseException:
            self.close()
            raise
        self.compile_seconds = time.perf_counter() - started

    def close(self) -> None:
        """Gives up what is not yet being compiled; the process's end waits for what is."""
        self._compiler.shutdown(wait=False, cancel_futures=True)

    def train_epoch(
        self, epoch: int, progress: Progress, check: Callable[[], None] = lambda: None
    ) -> StepMetrics:
        """Trains on every image once.

        Args:
          epoch: its number, from 1.
          progress: is shown the steps.
          check: called between steps, after the same ones in every process; may raise.

        Returns:
          The metrics of each step, float32 `[steps]`.

        Raises:
          UserError: the loss is no longer finite.
        """
        order = self._shuffle(self.state.key, epoch)
        wait_every = max(2, math.ceil(len(self.batches) / _WAITS_PER_EPOCH))
        history: list[StepMetrics] = []
        for index, (start, size) in enumerate(self.batches, 1):
            step = self._wait_for(self._steps[size], history)
            self.state, metrics = step(self.state, *self._train, order, start)
            history.append(metrics)
            if self._stays_close:
                jax.block_until_ready(history[-2:][0])
            waits = index % wait_every == 0 or index == len(self.batches)
            if waits:
                loss = float(metrics.loss)
                progress.update(start + size, loss, float(metrics.accuracy))
                if not math.isfinite(loss):
                    raise self.diverged(epoch)
            if waits or jax.process_count() == 1:
                check()
        return StepMetrics(*np.asarray(jax.device_get(history)).T)

    def copy_state(self) -> tuple[TrainState, bool]:
        """A copy of the state, which no step is given.

        Returns:
          The copy, and whether all parameters and statistics are finite.
        """
        copy, is_finite = self._copy(self.state)
        return copy, bool(is_finite)

    def diverged(self, epoch: int) -> UserError:
        """The error of a run whose numbers are no longer finite."""
        rate = self._config.optimizer.learning_rate
        return UserError(
            f"the loss or the parameters are no longer finite in epoch {epoch}: "
            f"config.optimizer.learning_rate={rate} is too high"
        )

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
        labels = self.splits[name].labels
        # The last batch may be filled up with images that are none.
        return evaluate.evaluate(np.concatenate(jax.device_get(logits))[: len(labels)], labels)


def _copy(state: TrainState) -> tuple[TrainState, jax.Array]:
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables)]
    return jax.tree.map(jnp.copy, state), jnp.stack(finite).all()

"""The compiled functions of a run, and its data on the device."""

import concurrent.futures
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import augment, data, evaluate, mesh, optimizer
from mnist_flax.errors import UserError
from mnist_flax.report.progress import Progress
from mnist_flax.runtime import devices
from mnist_flax.runtime.background import lower_priority
from mnist_flax.step import StepMetrics, TrainState, create_initializer, shuffle, train_step

# How often an epoch the host waits for the device: to show progress, and to be interruptible.
_WAITS_PER_EPOCH = 8


class Trainer:
    """The compiled functions of a run, or of replicas of it, its data on the device.

    Args:
      config: the whole configuration.
      dataset: what to train and to evaluate on.
      seeds: of replicas, which are trained together; None: one run, of `config.seed`. All that is
        said of a run holds for each of them, along a leading axis.

    Attributes:
      state: replaced by every step.
      splits: those to evaluate, by name.
      num_replicas: how many are trained together; None: one run.
      schedule: learning rate by step.
      batches: (start, size) of an epoch's batches; the last may be smaller.
      compile_seconds: how long tracing and compiling have been waited for.
      state_like: the state's shapes, types and shardings.
    """

    def __init__(
        self, config: ConfigDict, dataset: data.Dataset, seeds: Sequence[int] | None = None
    ):
        self._config = config
        self.num_replicas = num_replicas = None if seeds is None else len(seeds)
        num_images = len(dataset.train)
        self.batches = [
            (start, min(config.batch_size, num_images - start))
            for start in range(0, num_images, config.batch_size)
        ]
        started = time.perf_counter()
        own = mesh.sharding(mesh.OWN, num_replicas)
        seed = np.uint32(config.seed if seeds is None else seeds)
        create = create_initializer(config, len(self.batches), num_replicas).lower(seed)
        self.state_like = state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own),
            create.out_info,
        )
        self.schedule = optimizer.create_schedule(
            config.optimizer, len(self.batches), config.num_epochs
        )
        spread = functools.partial(mesh.spread, num_replicas=num_replicas)
        self._train = data.Split(*map(spread, dataset.train))
        self.splits = {"test": dataset.test}
        if dataset.validation is not None:
            self.splits["validation"] = dataset.validation
        views = config.evaluation
        self._images = {
            name: list(map(spread, evaluate.split_batches(split.images, views.num_views)))
            for name, split in self.splits.items()
        }
        normalize = functools.partial(data.normalize, mean=dataset.mean, std=dataset.std)
        options = devices.compiler_options()
        permute = jax.jit(
            mesh.on_devices(
                functools.partial(shuffle, num_images=num_images),
                (mesh.OWN, mesh.REPLICATED),
                mesh.OWN,
                num_replicas=num_replicas,
            ),
            out_shardings=own,
        ).lower(state.key, 0)
        step = jax.jit(
            functools.partial(
                train_step, config=config, normalize=normalize, num_replicas=num_replicas
            ),
            static_argnames="batch_size",
            donate_argnames="state",
            out_shardings=own,
            compiler_options=options,
        )

        def apply(variables: dict[str, Any], images: jax.Array) -> jax.Array:
            return state.apply_fn(variables, normalize(images), train=False)

        def predict(variables: dict[str, Any], key: jax.Array, images: jax.Array) -> jax.Array:
            return evaluate.predict(
                functools.partial(apply, variables),
                augment.views(key, images, config.augment, views.num_views, views.strength),
            )

        predict = jax.jit(
            mesh.on_devices(
                predict,
                (mesh.OWN, mesh.OWN, mesh.SPREAD),
                mesh.OWN_SPREAD,
                num_replicas=num_replicas,
            ),
            out_shardings=own,
            compiler_options=options,
        )

        def compile_step(size: int) -> jax.stages.Compiled:
            return step.lower(state, *self._train, permute.out_info, 0, batch_size=size).compile()

        def compile_predict(images: jax.Array) -> jax.stages.Compiled:
            return predict.lower(state.evaluated, state.key, images).compile()

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
            self._create = create.compile()
            self.state = self._create(seed)
            self._shuffle = permute.compile()
            self._copy = jax.jit(_copy).lower(state).compile()
            for program in programs[: 1 if on_cpu else None]:
                program.result()
        except BaseException:
            self.close()
            raise
        self.compile_seconds = time.perf_counter() - started

    def restart(self, seeds: Sequence[int]) -> None:
        """Begins anew, with other replicas, as many as before."""
        self.state = self._create(np.uint32(seeds))

    def finish_compiling(self) -> None:
        """Waits for all programs, so that none is compiled beside the training."""
        for program in (*self._steps.values(), *self._predict.values()):
            self._wait_for(program, None)

    @property
    def memory(self) -> int:
        """Bytes of a device's memory that the largest program takes, the data included."""
        sizes = []
        for program in (*self._steps.values(), *self._predict.values()):
            needed = program.result().memory_analysis()
            both = needed.argument_size_in_bytes + needed.output_size_in_bytes
            sizes.append(both + needed.temp_size_in_bytes - needed.alias_size_in_bytes)
        return max(sizes)

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
          The metrics of each step, float32 `[steps]`, or `[steps, replicas]`.

        Raises:
          UserError: the loss is no longer finite; of replicas, each is left to itself.
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
                loss, accuracy = (float(np.mean(values)) for values in jax.device_get(metrics))
                progress.update(start + size, loss, accuracy)
                if not math.isfinite(loss) and self.num_replicas is None:
                    raise self.diverged(epoch)
            if waits or jax.process_count() == 1:
                check()
        return StepMetrics(*map(np.stack, zip(*jax.device_get(history), strict=True)))

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
        """Evaluates a run on the whole split 'test' or 'validation'."""
        return evaluate.evaluate(self.predict(name), self.splits[name].labels)

    def predict(self, name: str) -> np.ndarray:
        """The logits of a split, float32 `[n, classes]`, or `[replicas, n, classes]`."""
        variables = self.state.evaluated
        logits = [
            self._wait_for(self._predict[len(batch)], variables)(variables, self.state.key, batch)
            for batch in self._images[name]
        ]
        # The last batch may be filled up with images that are none.
        return np.concatenate(jax.device_get(logits), axis=-2)[..., : len(self.splits[name]), :]


def _copy(state: TrainState) -> tuple[TrainState, jax.Array]:
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables)]
    return jax.tree.map(jnp.copy, state), jnp.stack(finite).all()

"""Trains replicas, runs that differ only in their seed, together as one program."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mnist_flax import data
from mnist_flax.errors import UserError
from mnist_flax.evaluate import Evaluation, evaluate
from mnist_flax.runtime import compilation, devices, memory
from mnist_flax.step import StepMetrics, TrainState
from mnist_flax.trainer import Trainer

_AXIS = "replica"
_MEMORY_SHARE = 0.9  # the share of a device's free memory that the largest program may need


class Replicas(Trainer):
    """Trains several seeds of a recipe together.

    States, orders, metrics and logits have a leading axis, `[replicas, ...]`, which is split evenly
    over as many groups of devices as possible; the devices of a group repeat each other's work.
    Each replica gives the same result as a run with its seed.

    Args:
      config: the configuration of the recipe.
      dataset: the data to train and to evaluate on.
      num_replicas: how many replicas are trained together.
      placed: the data on the devices.
    """

    def __init__(
        self, config: ConfigDict, dataset: data.Dataset, num_replicas: int, placed: devices.Placed
    ):
        super().__init__(config, dataset, placed)
        self.num_replicas = num_replicas
        self._seed_like = jax.ShapeDtypeStruct((num_replicas,), np.uint32)

    def create_states(self, seeds: Sequence[int]) -> TrainState:
        """Returns the replicas' states before the first step."""
        return self._creator(np.uint32(seeds))

    def evaluate_each(
        self, state: TrainState, splits: Iterable[str]
    ) -> list[dict[str, Evaluation]]:
        """Returns each replica's results on the given splits, by split."""
        results: list[dict[str, Evaluation]] = [{} for _ in range(self.num_replicas)]
        for split in splits:
            labels = self._dataset.eval_splits[split].labels
            for of_replica, logits in zip(results, self.predict(state, split), strict=True):
                of_replica[split] = evaluate(logits, labels)
        return results

    def records(
        self,
        epoch: int,
        metrics: StepMetrics,
        results: Sequence[dict[str, Evaluation]],
        seconds: float,
    ) -> list[dict[str, float]]:
        """Returns each replica's record of an epoch, with an equal share of the seconds."""
        records = []
        for index, of_replica in enumerate(results):
            steps = StepMetrics(*(values[:, index] for values in metrics))
            record = self.record(epoch, steps, of_replica, seconds / self.num_replicas)
            del record["images_per_second"]  # misleading for replicas that are trained together
            records.append(record)
        return records

    def memory(self) -> int:
        """Waits for all programs; returns the bytes that the largest one needs on a device."""
        return max(program.memory() for program in (*self._steps.values(), self._predictor))

    def _lower(
        self,
        function: Callable,
        own: list[Any],
        *shared: Any,
        batch_size: int = 1,
        **options: Any,
    ) -> jax.stages.Lowered:
        """Lowers a run's function for all replicas; the arguments in `own` have their axis."""
        del batch_size  # a replica's batches stay on the devices of that replica
        groups = math.gcd(self.num_replicas, jax.device_count())
        mesh = Mesh(np.array(jax.devices()).reshape(groups, -1), (_AXIS, "copy"))
        has_axis = [True] * len(own) + [False] * len(shared)
        specs = [PartitionSpec(_AXIS) if has else PartitionSpec() for has in has_axis]
        several = self.num_replicas > groups
        mapped = jax.shard_map(
            _vectorize(function, has_axis) if several else _on_one(function, has_axis),
            mesh=mesh,
            in_specs=tuple(specs),
            out_specs=PartitionSpec(_AXIS),
            check_vma=False,
        )
        return jax.jit(
            mapped,
            in_shardings=tuple(NamedSharding(mesh, spec) for spec in specs),
            out_shardings=NamedSharding(mesh, PartitionSpec(_AXIS)),
            compiler_options=compilation.compiler_options(),
            **options,
        ).lower(*map(devices.shapes, (*own, *shared)))


class Pool:
    """Keeps the compiled programs of a study: one `Replicas` per recipe and number of replicas.

    Args:
      recipes: the recipes by name.
      dataset: the data of the study; the devices hold a single copy of them.
      line: prints a line.
    """

    def __init__(
        self, recipes: dict[str, ConfigDict], dataset: data.Dataset, line: Callable[[str], None]
    ):
        self._recipes = recipes
        self._dataset = dataset
        self._line = line
        self._placed: devices.Placed | None = None
        self._compiled: dict[tuple[str, int], Replicas] = {}
        self._most: dict[str, int] = {}  # how many replicas of a recipe fit in memory

    def get(self, name: str, number: int) -> Replicas:
        """Returns a trainer for as many of `number` replicas as fit in memory.

        Raises:
          UserError: not even one fits.
        """
        number = min(number, self._most.get(name, number))
        while (name, number) not in self._compiled:
            room = _MEMORY_SHARE * memory.free()
            replicas = self._compile(name, number)
            # If compiling fails for lack of memory, half as many replicas may fit.
            needed = 2 * room if replicas is None else replicas.memory()
            if replicas is not None and (needed <= room or number == 1):
                self._compiled[name, number] = replicas
            elif number == 1:
                raise UserError(
                    f"{name} does not fit in the memory of this device; allowed: a smaller "
                    "config.batch_size or narrower config.model.channels"
                )
            else:
                del replicas  # frees the memory that it holds
                number = self._most[name] = max(1, min(number - 1, int(number * room / needed)))
                self._line(f"{name}: training {number} at a time; more do not fit in memory")
        return self._compiled[name, number]

    def _compile(self, name: str, number: int) -> Replicas | None:
        """Returns compiled replicas; None if there is not enough memory to compile them."""
        self._placed = self._placed or Trainer.place(self._dataset)
        replicas = Replicas(self._recipes[name], self._dataset, number, self._placed)
        try:
            replicas.compile()
            replicas.memory()
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if memory.is_exhausted(error):
                return None
            raise
        return replicas


def _vectorize(function: Callable[..., Any], has_axis: Sequence[bool]) -> Callable[..., Any]:
    return jax.vmap(function, in_axes=[0 if has else None for has in has_axis])


def _on_one(function: Callable[..., Any], has_axis: Sequence[bool]) -> Callable[..., Any]:
    """Does the same for an axis of size 1, because `jax.vmap` slows convolutions on a CPU."""

    def on_one(*args: Any) -> Any:
        own = (
            jax.tree.map(lambda leaf: leaf[0], arg) if has else arg
            for arg, has in zip(args, has_axis, strict=True)
        )
        return jax.tree.map(lambda leaf: leaf[None], function(*own))

    return on_one

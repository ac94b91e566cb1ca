"""Trains replicas, runs that differ only in their seed, together as one program."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mnist_flax import data
from mnist_flax.evaluate import Evaluation, evaluate
from mnist_flax.runtime import compilation, devices
from mnist_flax.step import StepMetrics, TrainState
from mnist_flax.trainer import Trainer

_AXIS = "replica"


class Replicas(Trainer):
    """Trains several seeds of a recipe together; its programs are compiled when it is created.

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
        self.compile()

    def train_and_evaluate(
        self,
        state: TrainState,
        epoch: int,
        splits: Sequence[str],
        on_step: Callable[[int, StepMetrics | None], None],
    ) -> tuple[TrainState, list[dict[str, float]], list[dict[str, Evaluation]]]:
        """Trains on every image once, and evaluates on the given splits.

        Returns:
          The states, each replica's record with an equal share of the seconds, and each replica's
          results by split.
        """
        state, metrics, seconds = self.train_epoch(state, epoch, on_step)
        logits = {split: self.predict(state, split) for split in splits}
        records, results = [], []
        for index in range(self.num_replicas):
            result = {
                split: evaluate(of_all[index], self._dataset.eval_splits[split].labels)
                for split, of_all in logits.items()
            }
            steps = StepMetrics(*(values[:, index] for values in metrics))
            record = self.record(epoch, steps, result, seconds / self.num_replicas)
            del record["images_per_second"]  # misleading for replicas that are trained together
            records.append(record)
            results.append(result)
        return state, records, results

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
        of_each, whole = PartitionSpec(_AXIS), PartitionSpec()
        specs = (*[of_each] * len(own), *[whole] * len(shared))

        def on_one(*args: Any) -> Any:
            # Without `jax.vmap` for an axis of size 1, because it slows convolutions on a CPU.
            alone = jax.tree.map(lambda leaf: leaf[0], args[: len(own)])
            return jax.tree.map(lambda leaf: leaf[None], function(*alone, *args[len(own) :]))

        several = jax.vmap(function, in_axes=[0] * len(own) + [None] * len(shared))
        mapped = jax.shard_map(
            several if self.num_replicas > groups else on_one,
            mesh=mesh,
            in_specs=specs,
            out_specs=of_each,
            check_vma=False,
        )
        return jax.jit(
            mapped,
            in_shardings=tuple(NamedSharding(mesh, spec) for spec in specs),
            out_shardings=NamedSharding(mesh, of_each),
            compiler_options=compilation.compiler_options(),
            **options,
        ).lower(*map(devices.shapes, (*own, *shared)))

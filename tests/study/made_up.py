"""A data set and replicas that are made up, so that their numbers are known."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mnist_flax import data
from mnist_flax.study.store import Replica

LABELS = np.arange(1_000, dtype=np.int32) % 10
SPLIT = data.Split(np.zeros((1_000, 28, 28, 1), np.uint8), LABELS)
DATASET = data.Dataset(
    "mnist", "tfds", tuple("0123456789"), SPLIT, SPLIT, SPLIT, 0.1, 0.3, "asked for"
)
PROBABILITIES = {"test": np.array([[0.25, 0.75], [0.5, 0.5]])}


def create(variant="layer norm", seed=3, num_errors=70, loss=0.1, seconds=2.0, num_together=1):
    """Returns a made-up replica with 1,000 test images."""
    results = {"loss": loss, "accuracy": 1 - num_errors / 1_000, "num_errors": num_errors}
    return Replica(
        variant=variant,
        seed=seed,
        run_id="0123",
        data="MNIST",
        config={"num_epochs": 2},
        records=[{"epoch": 1, "train/loss": loss}],
        results={"test": results, "validation": results},
        train_seconds=seconds,
        compile_seconds=1.0,
        num_together=num_together,
        device="Device: cpu",
        versions={name: "1" for name in ("python", "jax", "flax", "optax", "numpy")},
    )


def replicas_of(
    errors: Mapping[str, Iterable[int]],
    create: Callable[..., Replica] = create,
    first_seed: int = 0,
    **options: Any,
) -> list[Replica]:
    """Returns a replica for each number of errors, which are given by variant."""
    return [
        create(name, seed, count, **options)
        for name, counts in errors.items()
        for seed, count in enumerate(counts, start=first_seed)
    ]

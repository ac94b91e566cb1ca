"""A data set and replicas that are made up, so that their numbers are known."""

import numpy as np

from mnist_flax import data
from mnist_flax.study.store import Replica

LABELS = np.arange(1_000, dtype=np.int32) % 10
SPLIT = data.Split(np.zeros((1_000, 28, 28, 1), np.uint8), LABELS)
DATASET = data.Dataset(
    "mnist", "tfds", tuple("0123456789"), SPLIT, SPLIT, SPLIT, 0.1, 0.3, "asked for"
)
PROBABILITIES = {"test": np.array([[0.25, 0.75], [0.5, 0.5]])}


def create(variant="layer norm", seed=3, num_errors=70, loss=0.1, num_final=2):
    """Returns a made-up replica of four epochs, with 1,000 test images."""
    results = {"loss": loss, "accuracy": 1 - num_errors / 1_000, "num_errors": num_errors}
    records = []
    for epoch in range(1, 5):
        of_train = {"train/loss": seed / epoch, "train/accuracy": 1 - 0.1 / epoch}
        record = {"epoch": epoch, "step": 10 * epoch, **of_train}
        if epoch > 4 - num_final:
            record |= {"test/loss": loss, "test/accuracy": results["accuracy"]}
        records.append(record)
    return Replica(
        variant=variant,
        seed=seed,
        run_id=f"{seed:08x}",
        data="MNIST",
        config={"num_epochs": 4},
        records=records,
        results={"test": results, "validation": results},
        train_seconds=1_502.54,
        compile_seconds=1.0,
        num_together=1,
        device="Device: cpu",
        versions={name: "1" for name in ("python", "jax", "flax", "optax", "numpy")},
    )


def replicas(errors, first_seed=0, **options):
    """Returns replicas with numbers of errors that are given by variant, one for each seed."""
    return [
        create(name, seed, number, **options)
        for name, of_name in errors.items()
        for seed, number in enumerate(of_name, first_seed)
    ]

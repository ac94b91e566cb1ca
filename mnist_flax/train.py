"""A run: the loop over epochs, from a configuration to what is left in the workdir."""

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mnist_flax import augment, data, evaluate, runtime
from mnist_flax import config as config_lib
from mnist_flax.errors import UserError
from mnist_flax.progress import Progress
from mnist_flax.report import Report
from mnist_flax.trainer import Trainer
from mnist_flax.workdir import Workdir, check_workdir, versions

_NUM_AUGMENTATIONS = 29  # in augmentation.png


def run(config: ConfigDict, workdir: str) -> None:
    """Trains, evaluates after every epoch, and leaves figures and numbers in `workdir`.

    Args:
      config: as `configs/default.py` returns.
      workdir: a new folder; empty for a dated one under `runs/`.

    Raises:
      UserError: the configuration, the data or the folder cannot be used, or the loss diverges.
    """
    config_lib.check(config)
    check_workdir(workdir)
    runtime.use_compilation_cache()
    dataset = data.load(config.dataset, config.seed)
    config_lib.check_sizes(config, len(dataset.train) + len(dataset.validation or ()))
    folder = Workdir(workdir, config.to_dict())
    progress = Progress(config.num_epochs, len(dataset.train))
    progress.line(f"Workdir: {folder.path}")
    progress.line(_describe(dataset))
    trainer = Trainer(config, dataset)
    report = None
    try:
        progress.line(f"{_describe_device()}, compiled in {trainer.compile_seconds:.1f} s")
        report = Report(config, folder, dataset, len(trainer.batches), progress.line)
        if config.augment.enabled:
            report.augmentation(functools.partial(_augmentations, config, dataset))
        for epoch in range(1, config.num_epochs + 1):
            test = _run_epoch(config, trainer, epoch, report, progress)
        progress.close()
        report.finish(_summarize(config, dataset, trainer, report.records, test), test)
    except BaseException:
        progress.close()
        trainer.close()
        if report is not None:
            report.abort()
        raise
    progress.line(
        f"Done: {test.accuracy:.2%} test accuracy, {len(test.misclassified):,} errors, on "
        f"{dataset.title}; results in {folder.path}"
    )


def _run_epoch(
    config: ConfigDict, trainer: Trainer, epoch: int, report: Report, progress: Progress
) -> evaluate.Evaluation:
    progress.start_epoch(epoch)
    started = time.perf_counter() - trainer.compile_seconds
    metrics = trainer.train_epoch(epoch, progress)
    seconds = time.perf_counter() - trainer.compile_seconds - started
    sizes = [size for _, size in trainer.batches]
    loss, accuracy = (float(np.average(values, weights=sizes)) for values in metrics)
    record = {
        "epoch": epoch,
        "step": epoch * len(sizes),
        "train/loss": loss,
        "train/accuracy": accuracy,
    }
    results = {name: trainer.evaluate(name) for name in trainer.splits}
    for name, result in results.items():
        record |= {f"{name}/loss": result.loss, f"{name}/accuracy": result.accuracy}
    if not all(map(math.isfinite, record.values())):
        raise UserError(
            f"the loss is no longer finite in epoch {epoch}: "
            f"config.optimizer.learning_rate={config.optimizer.learning_rate} is too high"
        )
    record |= {
        "learning_rate": float(trainer.schedule((epoch - 1) * len(sizes))),
        "seconds": seconds,
        "images_per_second": sum(sizes) / seconds,
    }
    progress.finish_epoch(record)
    report.epoch(record, *metrics, results["test"])
    return results["test"]


def _augmentations(config: ConfigDict, dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The first training image, and augmentations of it with the configured ranges."""
    original = dataset.train.images[0]
    copies = jnp.repeat(original[None], _NUM_AUGMENTATIONS, axis=0)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    augmented = jax.jit(functools.partial(augment.augment, config=config.augment))(key, copies)
    return original, np.asarray(augmented)


def _summarize(
    config: ConfigDict,
    dataset: data.Dataset,
    trainer: Trainer,
    records: list[dict[str, Any]],
    test: evaluate.Evaluation,
) -> dict[str, Any]:
    best = max(records, key=lambda record: record["test/accuracy"])
    return {
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "title": dataset.title,
            "note": dataset.note,
            "train_size": len(dataset.train),
            "validation_size": len(dataset.validation or ()),
            "test_size": len(dataset.test),
        },
        "step": records[-1]["step"],
        "final_test_accuracy": test.accuracy,
        "final_test_loss": test.loss,
        "best_test_accuracy": best["test/accuracy"],
        "best_epoch": best["epoch"],
        "num_test_errors": len(test.misclassified),
        "class_accuracies": dict(zip(dataset.class_names, test.class_accuracies, strict=True)),
        "confusion_matrix": test.confusion.tolist(),
        "misclassified": test.misclassified.tolist(),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params)),
        "devices": [device.device_kind for device in trainer.state.step.devices()],
        "compile_seconds": trainer.compile_seconds,
        "train_seconds": sum(record["seconds"] for record in records),
        "versions": versions(),
        "config": config.to_dict(),
    }


def _describe(dataset: data.Dataset) -> str:
    sizes = f"{len(dataset.train):,} training and {len(dataset.test):,} test images"
    if dataset.source == "sample":
        return f"Data: {dataset.title}! {sizes} ({dataset.note})"
    return f"Data: {dataset.title}, {sizes}"


def _describe_device() -> str:
    device, *others = jax.devices()
    unused = f", {len(others)} more unused" if others else ""
    return f"Device: {device.device_kind}{unused}"

"""Training: the state, the compiled step, and the loop over epochs."""

import concurrent.futures
import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from ml_collections import ConfigDict

from mnist_flax import augment, data, evaluate, model, optimizer, runtime
from mnist_flax import config as config_lib
from mnist_flax.background import lower_priority
from mnist_flax.errors import UserError
from mnist_flax.progress import Progress
from mnist_flax.report import Report
from mnist_flax.workdir import Workdir, check_workdir, versions

# How often an epoch the host waits for the device: to show progress, and to be interruptible.
_WAITS_PER_EPOCH = 8
_NUM_AUGMENTATIONS = 29  # in augmentation.png


class TrainState(train_state.TrainState):
    """Parameters, optimiser state and step, and beside them:

    Attributes:
      batch_stats: running statistics of batch normalisation; empty without it.
      key: PRNG key that, with the step and the epoch, drives shuffling and augmentation.
    """

    batch_stats: Any
    key: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied to."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class StepMetrics(NamedTuple):
    """Of one batch: mean cross-entropy and share of right predictions, float32 scalars."""

    loss: jax.Array
    accuracy: jax.Array


def create_state(config: ConfigDict, steps_per_epoch: int) -> TrainState:
    """Initialises network and optimiser from `config.seed`."""
    return _initializer(config, steps_per_epoch)(jax.random.key(config.seed))


def _initializer(config: ConfigDict, steps_per_epoch: int) -> Callable[[jax.Array], TrainState]:
    network = model.create_model(config.model)
    schedule = optimizer.create_schedule(config.optimizer, steps_per_epoch)
    tx = optimizer.create_optimizer(config.optimizer, schedule)

    @jax.jit  # as one program: its many small operations take seconds to compile one by one
    def create(root: jax.Array) -> TrainState:
        init_key, key = jax.random.split(root)
        images = jnp.zeros((1, data.IMAGE_SIDE, data.IMAGE_SIDE, 1))
        variables = network.init(init_key, images, train=False)
        state = TrainState.create(
            apply_fn=network.apply,
            params=variables["params"],
            tx=tx,
            batch_stats=variables.get("batch_stats", {}),
            key=key,
        )
        # An array from the start, so that the first step's state has the type of all others.
        return state.replace(step=jnp.int32(0))

    return create


def shuffle(key: jax.Array, epoch: jax.Array, num_images: int) -> jax.Array:
    """The order of an epoch: a permutation of the training images, int32 `[num_images]`."""
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, 0), epoch)
    return jax.random.permutation(epoch_key, num_images)


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    start: jax.Array,
    *,
    batch_size: int,
    augment_config: ConfigDict,
    normalize: Callable[[jax.Array], jax.Array],
) -> tuple[TrainState, StepMetrics]:
    """One step on the images `order[start : start + batch_size]`.

    Args:
      state: before the step.
      images: uint8 `[n, height, width, 1]`, the whole training set.
      labels: int32 `[n]`.
      order: int32 `[n]`, the epoch's permutation.
      start: int32 scalar.
      batch_size: of this step; the only shape that differs between steps.
      augment_config: the group `augment` of a configuration.
      normalize: maps pixels in 0..255 to the network's input.

    Returns:
      The state after the step, and the metrics of the batch before it.
    """
    indices = jax.lax.dynamic_slice_in_dim(order, start, batch_size)
    key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
    inputs = normalize(augment.augment(key, images[indices], augment_config))
    targets = labels[indices]

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, updates = state.apply_fn(
            {**state.variables, "params": params}, inputs, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean(), (logits, updates.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == targets)
    state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    return state, StepMetrics(loss, accuracy)


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
        create = _initializer(config, len(self.batches)).lower(key)
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

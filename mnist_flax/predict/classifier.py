"""Loads the network of a run from its folder."""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from mnist_flax import data, optimizer, step
from mnist_flax.errors import UserError
from mnist_flax.history import History
from mnist_flax.run import configs, fields
from mnist_flax.run.checkpoint import DIGESTS, read, read_history
from mnist_flax.run.summary import About
from mnist_flax.run.workdir import DATASET
from mnist_flax.runtime import compilation, devices
from mnist_flax.runtime.files import expand, explain
from mnist_flax.step import TrainState


class Classifier:
    """A trained network; calling it on images returns the probabilities of the classes.

    Attributes:
      config: the whole configuration of the run.
      about: the data set that the run was trained on.
      identity: the identity of that data set, as `Dataset.identity` returns it.
      state: the training state in the checkpoint, which contains the network's parameters.
      epoch: the epoch of the checkpoint.
      is_best: whether every earlier epoch was worse.
      is_chosen_on_test: whether the best epoch was chosen by its accuracy on the test set.
    """

    def __init__(self, config: ConfigDict, about: About, state: TrainState, history: History):
        assert history.best is not None
        self.config, self.about, self.state = config, about, state
        self.identity, self.epoch = history.data, history.epoch
        self.is_best = history.best["epoch"] == history.epoch
        self.is_chosen_on_test = "validation/accuracy" not in history.best
        self._logits = jax.jit(self.logits, compiler_options=compilation.compiler_options())

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.about.class_names

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns probabilities, float32 `[n, classes]`.

        Args:
          images: uint8 `[n, height, width]` or `[n, height, width, 1]`, bright on dark as in MNIST.

        Raises:
          UserError: the images have another type or shape.
        """
        images = np.asarray(images)
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.shape[1:] != self.about.image_shape:
            raise UserError(
                f"images are {images.dtype} {images.shape}; allowed: uint8 "
                f"(n, {', '.join(map(str, self.about.image_shape))})"
            )
        # Predict as many at a time as a run's evaluation does, so that the rounding is the same.
        size = devices.predicted_at_a_time()
        padded = np.pad(images, [(0, -len(images) % size), *[(0, 0)] * 3])
        logits = [self._logits(padded[at : at + size]) for at in range(0, len(padded), size)]
        empty = np.empty((0, len(self.class_names)), np.float32)
        together = np.concatenate([empty, *jax.device_get(logits)])[: len(images)]
        return np.asarray(jax.nn.softmax(together))

    def logits(self, images: jax.Array) -> jax.Array:
        """Returns logits, float32 `[n, classes]`, for pixels in 0..255, `[n, height, width, 1]`."""
        normalize = functools.partial(data.normalize, mean=self.about.mean, std=self.about.std)
        return step.predict(self.state, images, config=self.config, normalize=normalize)


def load(workdir: str, checkpoint: str = "") -> Classifier:
    """Loads the network of a run onto the first device.

    Args:
      workdir: the folder of the run, or a copy of it.
      checkpoint: 'latest', 'best', or the number of an epoch. By default, the best if it was
        chosen on a validation split, otherwise the latest.

    Raises:
      UserError: the folder does not hold the checkpoint, or the checkpoint is damaged.
    """
    compilation.set_up()
    folder = expand(workdir)
    config, about = _config(folder), _about(folder)
    has_validation = config.dataset.validation_size > 0
    schedule = optimizer.create_schedule(config.optimizer, 1, 1)  # required, but never used here
    create = functools.partial(
        step.create_state,
        config=config,
        image_shape=about.image_shape,
        num_classes=len(about.class_names),
        schedule=schedule,
    )
    device = SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(create, jnp.uint32(0)),
    )
    path = folder / "checkpoints"
    try:
        path = _find(folder, checkpoint, has_validation)
        state, history = read(path, like)
    except UserError:
        raise
    except Exception as error:  # Orbax raises many types of errors for damaged files
        reason = f"{path} cannot be read: {explain(error)}"
        raise UserError(f"{reason}; choose another --checkpoint") from None
    return Classifier(config, about, state, history)


def _config(folder: pathlib.Path) -> ConfigDict:
    """Returns the configuration of a run; fields newer than the run have their defaults."""
    values = configs.default_values() | configs.flatten(_json(folder / "config.json"))
    for name in values:
        if name not in fields.FIELDS and not name.startswith("study."):
            version = f"another version, which has config.{name}"
            raise UserError(f"{folder} is a run of {version}; use that version")
    tuples = {name: _as_tuples(value) for name, value in values.items()}
    return ConfigDict(traverse_util.unflatten_dict(tuples, sep="."))


def _about(folder: pathlib.Path) -> About:
    values = {name: _as_tuples(value) for name, value in _json(folder / DATASET).items()}
    try:
        return About(**values)
    except TypeError:
        raise UserError(f"{folder / DATASET} does not describe the data set of a run") from None


def _as_tuples(value: Any) -> Any:
    """Converts lists to the tuples that they were before JSON."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        older = "; for an older run, repeat its command with --workdir first"
        raise UserError(
            f"{path.parent} is not the folder of a run: it has no {path.name}"
            + (older if path.name == DATASET else "")
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not come from a run")
    return content


def _find(folder: pathlib.Path, checkpoint: str, has_validation: bool) -> pathlib.Path:
    """Returns the folder of the checkpoint that `checkpoint` names."""
    checkpoints = folder / "checkpoints"
    complete = [path.parent.name for path in checkpoints.glob(f"*/{DIGESTS}")]
    epochs = sorted(int(name) for name in complete if name.isdecimal() and int(name) > 0)
    if not epochs:
        raise UserError(f"{checkpoints} holds no finished epoch; resume the run first")
    which = checkpoint or ("best" if has_validation else "latest")
    if which == "latest":
        return checkpoints / str(epochs[-1])
    if which == "best":
        best = read_history(checkpoints / str(epochs[-1])).best  # the newest knows all epochs
        return checkpoints / str(best["epoch"] if best else epochs[-1])
    if which not in map(str, epochs):
        kept: Sequence[Any] = ("latest", "best", *epochs)
        raise UserError(
            f"--checkpoint={checkpoint} does not exist; allowed: {', '.join(map(str, kept))}"
        )
    return checkpoints / which

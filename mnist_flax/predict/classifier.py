"""Loads the network of a run from a checkpoint."""

import functools
import os
import pathlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from mnist_flax import data, model, step
from mnist_flax.errors import UserError, refused
from mnist_flax.history import History
from mnist_flax.run import configs
from mnist_flax.run.checkpoint import Checkpoints, read
from mnist_flax.run.summary import About
from mnist_flax.runtime import compilation, devices
from mnist_flax.runtime.files import expand, explain
from mnist_flax.step import TrainState


class Classifier:
    """A trained network; calling it on images returns the probabilities of the classes.

    Attributes:
      config: the whole configuration of the run.
      about: the data set that the run was trained on.
      state: the training state in the checkpoint, without that of the optimiser.
      history: the epochs that led to it, and the identity of the data.
    """

    def __init__(self, config: ConfigDict, about: About, state: TrainState, history: History):
        self.config, self.about, self.state, self.history = config, about, state, history
        self._logits = jax.jit(self.logits, compiler_options=compilation.compiler_options())

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.about.class_names

    @property
    def epoch(self) -> int:
        """The epoch of the checkpoint."""
        return self.history.epoch

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
            allowed = f"uint8 and each of shape {self.about.image_shape}"
            raise UserError(f"images must be {allowed}, got {images.dtype} {images.shape}")
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


def load(run: str | os.PathLike, checkpoint: str | int = "") -> Classifier:
    """See `mnist_flax.predict.load`."""
    compilation.set_up()
    path = expand(run)
    try:
        if path.is_dir():
            path = _find(path, str(checkpoint))
        elif checkpoint != "":
            raise refused("--checkpoint", checkpoint, f"empty for the single file {path}")
        saved = read(path)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {explain(error)}") from None
    config, about = _config(saved.config, path), About(**_as_tuples(saved.about))
    network = model.create_model(config.model, len(about.class_names))
    arrays = jax.device_put({**saved.state, "opt_state": ()}, jax.devices()[0])
    arrays["key"] = jax.random.wrap_key_data(arrays["key"])
    state = TrainState(apply_fn=network.apply, tx=None, **arrays)
    return Classifier(config, about, state, saved.history)


def _find(folder: pathlib.Path, which: str) -> pathlib.Path:
    """Returns the checkpoint that `which` names in the folder of a run."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    epochs = [epoch for epoch in checkpoints.epochs() if epoch > 0]
    if not epochs:
        raise UserError(f"{folder} is not the folder of a run, or it has not finished an epoch")
    if which in map(str, epochs):
        return checkpoints.path(int(which))
    if which not in ("", "latest", "best"):
        names = ", ".join(map(str, ("latest", "best", *epochs)))
        raise refused("--checkpoint", which, f"one of {names}")
    newest = checkpoints.path(epochs[-1])
    best = read(newest).history.best or {}  # the newest knows all epochs
    is_chosen = which == "best" or (not which and "validation/accuracy" in best)
    return checkpoints.path(best["epoch"]) if is_chosen else newest


def _config(saved: dict[str, Any], path: pathlib.Path) -> ConfigDict:
    """Returns the configuration of a run; fields newer than the run have their defaults."""
    defaults = configs.default_values()
    # The study's fields are not used here, and older versions had others.
    values = configs.flatten({**saved, "study": {}})
    if unknown := values.keys() - defaults.keys():
        version = f"another version, which has config.{min(unknown)}"
        raise UserError(f"{path} is from {version}; use that version")
    return ConfigDict(traverse_util.unflatten_dict(_as_tuples(defaults | values), sep="."))


def _as_tuples(values: Any) -> Any:
    """Converts the lists in a tree to the tuples that they were before JSON."""
    if isinstance(values, dict):
        return {name: _as_tuples(value) for name, value in values.items()}
    return tuple(map(_as_tuples, values)) if isinstance(values, list) else values

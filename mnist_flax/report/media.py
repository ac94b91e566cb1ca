"""Converts what W&B shows besides numbers: pictures, tables, pages and models.

These functions run on the tracker's thread, so importing W&B delays nothing else.
"""

import io
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

Value = float | Future[bytes] | Callable[[], Any]


def has_failed(value: Value) -> bool:
    """Waits for `value` if it is a picture, and returns whether drawing it failed."""
    return isinstance(value, Future) and value.exception() is not None


def value(value: Value) -> Any:
    """Returns a number unchanged, the bytes of a PNG as a W&B image, and a function's result."""
    if callable(value):
        return value()
    if not isinstance(value, Future):
        return value
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(value.result())))


def misclassified(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> Any:
    """Returns a W&B table of digits: image, label, prediction and the classes' probabilities.

    Args:
      images: uint8 `[n, height, width, 1]`.
      labels: int `[n]`.
      probabilities: `[n, classes]`.
      class_names: the names of the classes.
    """
    import wandb

    rows = [
        [
            wandb.Image(image[..., 0]),
            class_names[label],
            class_names[probability.argmax()],
            *probability.tolist(),
        ]
        for image, label, probability in zip(images, labels, probabilities, strict=True)
    ]
    columns = ["image", "label", "prediction", *(f"p({name})" for name in class_names)]
    return wandb.Table(columns=columns, data=rows)


def page(path: pathlib.Path) -> Any:
    """Returns an HTML file as a W&B page."""
    import wandb

    return wandb.Html(path.read_text("utf-8"), inject=False)


def copy_model(workdir: pathlib.Path, epoch: int) -> pathlib.Path:
    """Copies a checkpoint, which may soon be deleted, to a folder that `predict.load` can read."""
    copy = pathlib.Path(tempfile.mkdtemp(prefix="mnist_flax-model-"))
    checkpoint = f"checkpoints/{epoch}"
    try:
        for file in ("config.json", "dataset.json"):
            shutil.copy(workdir / file, copy)
        shutil.copytree(workdir / checkpoint, copy / checkpoint)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    return copy


def model(name: str, folder: pathlib.Path, epoch: int) -> Any:
    """Returns a W&B artifact with all files of a folder."""
    import wandb

    artifact = wandb.Artifact(name, "model", metadata={"epoch": epoch})
    artifact.add_dir(str(folder))  # copies the files
    return artifact

"""What W&B shows besides numbers: pictures, tables, pages and models.

It is made on the thread of the tracker, where importing W&B holds up nobody.
"""

import io
import pathlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np


def has_failed(value: float | Future[bytes]) -> bool:
    """Waits for a value that is a picture; whether it could not be drawn."""
    return isinstance(value, Future) and value.exception() is not None


def value(value: float | Future[bytes]) -> Any:
    """Returns a number as it is, and the bytes of a PNG as a picture."""
    if not isinstance(value, Future):
        return value
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(value.result())))


def misclassified(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> Any:
    """Returns a table of digits; see `Tracker.log_misclassified`."""
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
    """Returns an HTML file."""
    import wandb

    return wandb.Html(path.read_text(), inject=False)


def model(name: str, workdir: pathlib.Path, epoch: int) -> Any:
    """Returns a checkpoint of a run as an artifact: a folder that `predict.load` takes."""
    import wandb

    artifact = wandb.Artifact(name, "model", metadata={"epoch": epoch})
    for file in ("config.json", "dataset.json"):
        artifact.add_file(str(workdir / file))
    checkpoint = f"checkpoints/{epoch}"
    artifact.add_dir(str(workdir / checkpoint), checkpoint)
    return artifact

"""Loads a trained run and classifies images with it:

    from mnist_flax import predict

    classifier = predict.load("runs/1")
    probabilities = classifier(images)  # uint8 [n, 28, 28] -> float32 [n, classes]

It needs only a checkpoint: no training data, no W&B, and not the machine that trained it. Only
`export` imports this folder.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_flax.predict.classifier import Classifier

CHECKPOINT_HELP = (  # of the commands that load a run
    "latest, best, or the number of an epoch. By default, the best if it was chosen on a "
    "validation split, otherwise the latest."
)


def load(run: str | os.PathLike, checkpoint: str | int = "") -> "Classifier":
    """Loads the network of a run onto the first device.

    Args:
      run: the folder of the run, or a copy of it, or the file of a checkpoint alone.
      checkpoint: of a folder, 'latest', 'best', or the number of an epoch. By default, the best if
        it was chosen on a validation split, otherwise the latest.

    Raises:
      UserError: the folder does not hold the checkpoint, or it cannot be read or is damaged.
    """
    from mnist_flax.predict import classifier  # imports JAX, which takes a second

    return classifier.load(run, checkpoint)

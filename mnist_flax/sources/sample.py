"""The bundled sample of MNIST, in sample.npz, which `tests/sources/make_sample.py` writes.

The images are MNIST's own, unchanged. MNIST is by Yann LeCun, Corinna Cortes and Christopher J.C.
Burges (yann.lecun.com/exdb/mnist), made from databases of NIST, and licensed under CC BY-SA 3.0
(creativecommons.org/licenses/by-sa/3.0); so is the sample.
"""

import pathlib

import numpy as np

from mnist_flax.sources import Loaded, Split

PATH = pathlib.Path(__file__).with_name("sample.npz")
TRAIN_SIZE = 4_000


def load() -> Loaded:
    """Returns 4,000 of the training and 1,000 of the test images, as many of each class.

    The classes alternate, so that the first images of a split are of all classes.
    """
    with np.load(PATH) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    parts = slice(TRAIN_SIZE), slice(TRAIN_SIZE, None)
    train, test = (Split(images[part], labels[part]) for part in parts)
    return Loaded(train, test, tuple("0123456789"))

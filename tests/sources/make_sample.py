"""Writes the bundled sample, mnist_flax/sources/sample.npz, from the files of MNIST in a folder.

    python -m tests.sources.make_sample FOLDER

MNIST is by Yann LeCun, Corinna Cortes and Christopher J.C. Burges (yann.lecun.com/exdb/mnist), made
from databases of NIST, and licensed under CC BY-SA 3.0 (creativecommons.org/licenses/by-sa/3.0); so
is the sample.
"""

import sys

import numpy as np

from mnist_flax.sources import Loaded, Split, sample, tfds


def create(mnist: Loaded) -> Split:
    """Returns 4,000 of MNIST's training images, followed by 1,000 of its test images."""
    parts = choose(mnist.train, 400), choose(mnist.test, 100)
    return Split(*map(np.concatenate, zip(*parts, strict=True)))


def choose(split: Split, of_each: int) -> Split:
    """Returns images of the ten classes, which alternate.

    Those of a class lie at equal distances in `split`, so that the same ones are always chosen.
    """
    nth = np.arange(of_each)
    classes = [np.flatnonzero(split.labels == label) for label in range(10)]
    chosen = np.stack([where[nth * len(where) // of_each] for where in classes], 1).ravel()
    return Split(split.images[chosen], split.labels[chosen])


if __name__ == "__main__":
    chosen = create(tfds.load("mnist", manual_dir=sys.argv[1]))
    np.savez_compressed(sample.PATH, **chosen._asdict())

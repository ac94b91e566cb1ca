"""The whole of MNIST, for tests that are skipped without its files."""

import pytest

from mnist_flax.sources import Loaded, tfds


@pytest.fixture(scope="session")
def whole_mnist(mnist_dir) -> Loaded:
    return tfds.load("mnist", "", str(mnist_dir))

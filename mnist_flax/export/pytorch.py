"""Exports the weights to PyTorch, with the names that the module in docs/use.md uses."""

from safetensors import numpy as safetensors

from mnist_flax.export.weights import state_dict
from mnist_flax.predict.classifier import Classifier

USE = "to use it, see docs/use.md: load_state_dict(safetensors.torch.load_file('{path}'))"


def export(classifier: Classifier) -> bytes:
    """Returns the weights as safetensors."""
    return safetensors.save(state_dict(classifier))

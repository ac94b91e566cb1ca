"""Converts the weights to PyTorch's layout, which ONNX shares."""

import jax
import numpy as np
from flax import traverse_util

from mnist_flax.predict.classifier import Classifier

_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_AXES = {4: (3, 2, 0, 1), 3: (2, 0, 1)}  # by number of axes: 4 for a kernel, 3 for a layer norm


def state_dict(classifier: Classifier) -> dict[str, np.ndarray]:
    """Returns float32 arrays: 'conv1_1.weight' and so on, and 'mean' and 'std' of pixels in 0..1.

    Kernels are `[out, in, height, width]`, and the weight and bias of a layer norm are
    `[channels, height, width]`.
    """
    about = classifier.about
    arrays = {"mean": np.array(about.mean, np.float32), "std": np.array(about.std, np.float32)}
    variables = jax.device_get(classifier.state.eval_variables)
    for (_, layer, name), value in traverse_util.flatten_dict(variables).items():
        array = np.transpose(value, _AXES.get(value.ndim))
        arrays[f"{layer}.{_NAMES.get(name, name)}"] = np.ascontiguousarray(array)
    return arrays

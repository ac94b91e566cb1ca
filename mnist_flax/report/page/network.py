"""Converts a trained network to a list of layers, which `network.js` applies one by one."""

import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from mnist_flax import model
from mnist_flax.model import Layer


class Layers:
    """Lists the layers of a `SimpleCNN` for evaluation, from pixels to logits.

    Batch normalisation with running statistics is a scale and a shift per channel, and so is the
    normalisation of the pixels. Each layer names its operation and gives the sizes of its arrays,
    which lie one after another in `weights`.

    Args:
      config: the configuration by field name, such as 'model.norm'.
      variables: 'params' and, with batch normalisation, 'batch_stats', as NumPy arrays.
      mean: the mean of the pixels, scaled to 0..1.
      std: the standard deviation of the pixels, scaled to 0..1.

    Attributes:
      layers: the layers, as values that JSON can hold.
      weights: the numbers of all layers, float32 `[n]`.

    Raises:
      KeyError: the variables do not match the configuration, or `network.js` lacks a layer.
    """

    def __init__(
        self, config: Mapping[str, Any], variables: Mapping[str, Any], mean: float, std: float
    ):
        fields = {name.removeprefix("model."): value for name, value in config.items()}
        self._config, self._variables = types.SimpleNamespace(**fields), variables
        self.layers: list[dict[str, Any]] = []
        self._arrays: list[np.ndarray] = []
        self._add("affine", np.array(1 / (255 * std)), np.array(-mean / std))
        for layer in model.layers(self._config):
            match layer.kind:
                case "conv":
                    self._conv(layer)
                case "batch" | "layer" | "group":
                    self._norm(layer)
                case "relu" | "max" | "avg":
                    self._add(layer.kind)
                case _:
                    raise KeyError(layer.kind)
        self._add("mean")
        self.weights = np.concatenate([np.ravel(array) for array in self._arrays], dtype=np.float32)

    def _add(self, operation: str, *arrays: np.ndarray, **options: Any) -> None:
        sizes = [array.size for array in arrays]
        self.layers.append({"operation": operation, "sizes": sizes, **options})
        self._arrays += arrays

    def _conv(self, layer: Layer) -> None:
        kernel, bias = (self._variables["params"][layer.name][part] for part in ("kernel", "bias"))
        total = layer.side - 1 if layer.padding == "SAME" else 0
        padding = [total // 2, total - total // 2]
        # One row per feature, so that a product reads memory in order.
        rows = kernel.reshape(-1, len(bias)).T
        self._add("conv", rows, bias, side=layer.side, stride=layer.stride, padding=padding)

    def _norm(self, layer: Layer) -> None:
        params = self._variables["params"][layer.name]
        scale, bias = (np.float64(params[part]) for part in ("scale", "bias"))
        if layer.kind == "batch":
            stats = self._variables["batch_stats"][layer.name]
            scale = scale / np.sqrt(np.float64(stats["var"]) + model.EPSILON)
            bias = bias - stats["mean"] * scale
        else:
            groups = self._config.num_groups if layer.kind == "group" else 1
            self._add("normalize", groups=groups, epsilon=model.EPSILON)
        self._add("affine", scale, bias)

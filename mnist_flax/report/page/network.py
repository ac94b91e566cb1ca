"""Converts a trained network to a list of layers, which `network.js` applies one by one."""

from collections.abc import Mapping
from typing import Any

import numpy as np

_EPSILON = 1e-5  # for every norm, as in `SimpleCNN`


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
      KeyError: the variables do not match the configuration, or `network.js` lacks a part.
    """

    def __init__(
        self, config: Mapping[str, Any], variables: Mapping[str, Any], mean: float, std: float
    ):
        self._config, self._params = config, variables["params"]
        self._stats = variables.get("batch_stats", {})
        self.layers: list[dict[str, Any]] = []
        self._arrays: list[np.ndarray] = []
        self._add("affine", np.array(1 / (255 * std)), np.array(-mean / std))
        is_before = config["model.norm_position"] == "before"
        for block, widths in enumerate(config["model.channels"], 1):
            if block > 1:
                self._downsample(f"downsample{block - 1}")
            for layer in range(1, len(widths) + 1):
                self._conv(f"conv{block}_{layer}")
                if not is_before:
                    self._add("relu")
                self._normalize(f"norm{block}_{layer}")
                if is_before:
                    self._add("relu")
        self._conv("classifier")
        self._add("mean")
        self.weights = np.concatenate([np.ravel(array) for array in self._arrays], dtype=np.float32)

    def _add(self, operation: str, *arrays: np.ndarray, **options: Any) -> None:
        sizes = [array.size for array in arrays]
        self.layers.append({"operation": operation, "sizes": sizes, **options})
        self._arrays += arrays

    def _conv(self, name: str, stride: int = 1) -> None:
        kernel, bias = (self._params[name][part] for part in ("kernel", "bias"))
        side, features = kernel.shape[0], kernel.shape[-1]
        total = side - 1 if self._config["model.padding"] == "SAME" and stride == 1 else 0
        padding = [total // 2, total - total // 2]
        # One row per feature, so that a product reads memory in order.
        rows = kernel.reshape(-1, features).T
        self._add("conv", rows, bias, side=side, stride=stride, padding=padding)

    def _normalize(self, name: str) -> None:
        norm = self._config["model.norm"]
        if norm == "none":
            return
        scale, bias = (np.float64(self._params[name][part]) for part in ("scale", "bias"))
        if norm == "batch":
            scale = scale / np.sqrt(np.float64(self._stats[name]["var"]) + _EPSILON)
            bias = bias - self._stats[name]["mean"] * scale
        else:
            groups = {"layer": 1, "group": self._config["model.num_groups"]}[norm]
            self._add("normalize", groups=groups, epsilon=_EPSILON)
        self._add("affine", scale, bias)

    def _downsample(self, name: str) -> None:
        kind = self._config["model.downsample"]
        if kind == "strided":
            self._conv(name, stride=2)
        else:
            self._add({"max": "max", "avg": "avg"}[kind])

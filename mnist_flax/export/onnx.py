"""Exports to ONNX, which describes the network as a list of nodes.

jax2onnx would translate any network, but it cannot be installed alongside Orbax 0.12, and jax2onnx
0.17.1 fails on Flax's `avg_pool`.
"""

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, checker, helper, numpy_helper

from mnist_flax.errors import UserError
from mnist_flax.export.weights import state_dict
from mnist_flax.predict import Classifier

USE = "to use it: onnxruntime.InferenceSession('{path}').run(None, {{'images': images}})"
_OPSET, _IR_VERSION = 21, 10  # of ONNX 1.16, the first whose GroupNormalization matches Flax's
_EPSILON = 1e-5  # for all norms


def export(classifier: Classifier) -> bytes:
    """Returns a model from 'images', uint8 `[n, height, width, 1]`, to 'probabilities'."""
    about = classifier.about
    weights = state_dict(classifier) | {"scale": np.array(255, np.float32)}
    classes = ("n", len(about.class_names))
    graph = helper.make_graph(
        _Nodes(classifier.config.model).of_network(),
        "mnist_flax",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ("n", *about.image_shape))],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, classes)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Nodes:
    """Lists the nodes of a network; each takes the output of the node before it."""

    def __init__(self, config: Any):
        self._config = config
        self._nodes: list[NodeProto] = []

    def of_network(self) -> list[NodeProto]:
        """Returns the nodes from 'images' to 'probabilities', in the order of `SimpleCNN`."""
        config = self._config
        self._add("Cast", to=TensorProto.FLOAT)
        self._add("Transpose", perm=(0, 3, 1, 2))
        for operation, operand in (("Div", "scale"), ("Sub", "mean"), ("Div", "std")):
            self._add(operation, operand)
        for block, layers in enumerate(config.channels, 1):
            if block > 1:
                self._downsample(f"downsample{block - 1}")
            for layer in range(1, len(layers) + 1):
                self._conv(f"conv{block}_{layer}")
                if config.norm_position == "after":
                    self._add("Relu")
                self._normalize(f"norm{block}_{layer}")
                if config.norm_position == "before":
                    self._add("Relu")
        self._conv("classifier")
        self._add("GlobalAveragePool")
        self._add("Flatten")
        self._add("Softmax")
        self._nodes[-1].output[0] = "probabilities"
        return self._nodes

    def _add(self, operation: str, *weights: str, **attributes: Any) -> None:
        value = self._nodes[-1].output[0] if self._nodes else "images"
        output = f"{len(self._nodes)}_{operation}"
        self._nodes.append(
            helper.make_node(operation, [value, *weights], [output], name=output, **attributes)
        )

    def _conv(self, layer: str, stride: int = 1) -> None:
        weights = [f"{layer}.{name}" for name in ("weight", "bias")]
        same = self._config.padding == "SAME" and stride == 1
        padding = "SAME_UPPER" if same else "VALID"
        self._add("Conv", *weights, auto_pad=padding, strides=(stride, stride))

    def _normalize(self, layer: str) -> None:
        weights = [f"{layer}.{name}" for name in ("weight", "bias")]
        if self._config.norm == "batch":
            weights += [f"{layer}.{name}" for name in ("running_mean", "running_var")]
            self._add("BatchNormalization", *weights, epsilon=_EPSILON)
        elif self._config.norm == "layer":
            self._add("LayerNormalization", *weights, axis=1, epsilon=_EPSILON)
        elif self._config.norm == "group":
            groups = self._config.num_groups
            self._add("GroupNormalization", *weights, num_groups=groups, epsilon=_EPSILON)
        elif self._config.norm != "none":
            raise UserError(f"config.model.norm={self._config.norm} cannot be exported to ONNX")

    def _downsample(self, layer: str) -> None:
        if self._config.downsample == "strided":
            self._conv(layer, stride=2)
            return
        operation = {"max": "MaxPool", "avg": "AveragePool"}[self._config.downsample]
        self._add(operation, kernel_shape=(2, 2), strides=(2, 2))

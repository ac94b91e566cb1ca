"""Exports to ONNX, which describes the network as a list of nodes.

jax2onnx would translate any network, but jax2onnx 0.17.1 fails on Flax's `avg_pool`.
"""

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, checker, helper, numpy_helper

from mnist_flax.errors import UserError
from mnist_flax.export.weights import state_dict
from mnist_flax.model import EPSILON, layers
from mnist_flax.predict.classifier import Classifier

USE = "to use it: onnxruntime.InferenceSession('{path}').run(None, {{'images': images}})"
_OPSET, _IR_VERSION = 21, 10  # of ONNX 1.16, the first whose GroupNormalization matches Flax's


def export(classifier: Classifier) -> bytes:
    """Returns a model from 'images', uint8 `[n, height, width, 1]`, to 'probabilities'.

    Raises:
      UserError: ONNX has no such layer.
    """
    about = classifier.about
    weights = state_dict(classifier) | {"scale": np.array(255, np.float32)}
    classes = ("n", len(about.class_names))
    graph = helper.make_graph(
        _nodes(classifier.config.model),
        "mnist_flax",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ("n", *about.image_shape))],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, classes)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = helper.make_opsetid("", _OPSET)
    proto = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def _nodes(config: Any) -> list[NodeProto]:
    """Returns the nodes from 'images' to 'probabilities'; each takes the output of the last."""
    nodes: list[NodeProto] = []

    def add(operation: str, *weights: str, **attributes: Any) -> None:
        value = nodes[-1].output[0] if nodes else "images"
        output = f"{len(nodes)}_{operation}"
        nodes.append(
            helper.make_node(operation, [value, *weights], [output], name=output, **attributes)
        )

    add("Cast", to=TensorProto.FLOAT)
    add("Transpose", perm=(0, 3, 1, 2))
    for operation, operand in (("Div", "scale"), ("Sub", "mean"), ("Div", "std")):
        add(operation, operand)
    pool = {"kernel_shape": (2, 2), "strides": (2, 2)}
    for layer in layers(config):
        weights = [f"{layer.name}.{part}" for part in ("weight", "bias")]
        match layer.kind:
            case "conv":
                padding = "SAME_UPPER" if layer.padding == "SAME" else "VALID"
                add("Conv", *weights, auto_pad=padding, strides=(layer.stride, layer.stride))
            case "relu":
                add("Relu")
            case "batch":
                weights += [f"{layer.name}.{part}" for part in ("running_mean", "running_var")]
                add("BatchNormalization", *weights, epsilon=EPSILON)
            case "layer":
                add("LayerNormalization", *weights, epsilon=EPSILON, axis=1)
            case "group":
                groups = config.num_groups
                add("GroupNormalization", *weights, epsilon=EPSILON, num_groups=groups)
            case "max":
                add("MaxPool", **pool)
            case "avg":
                add("AveragePool", **pool)
            case kind:
                raise UserError(f"{kind!r} layers cannot be exported to ONNX")
    for operation in ("GlobalAveragePool", "Flatten", "Softmax"):
        add(operation)
    nodes[-1].output[0] = "probabilities"
    return nodes

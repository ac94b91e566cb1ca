"""Exports every variant of the network and runs it in the runtime of each format.

The weights and the expected logits come from PyTorch; see tests/parity.
"""

import types

import jax
import numpy as np
import pytest
from jax import export as jax_export

from configs import default
from mnist_flax.errors import UserError
from mnist_flax.history import History
from mnist_flax.predict.classifier import Classifier
from mnist_flax.run.summary import About
from tests.parity import reference

ABOUT = About("mnist", "tfds", "MNIST", tuple("0123456789"), (27, 27, 1), 0.1307, 0.3081)
EVERY_VARIANT = pytest.mark.parametrize("variant", reference.VARIANTS)


def classifier(variant: str, dtype: str = "float32") -> Classifier:
    config = default.get_config()
    config.model.update(reference.SMALL_CHANNELS)
    config.model.dtype = dtype
    names = ("norm", "norm_position", "downsample", "padding")
    config.model.update(dict(zip(names, variant.split("-"), strict=True)))
    state = types.SimpleNamespace(eval_variables=reference.load_variables(variant, "float32"))
    history = History(records=({"epoch": 1, "test/accuracy": 0.5},))
    return Classifier(config, ABOUT, state, history)


def images() -> np.ndarray:
    return reference.arrays()["images"][:8, ..., None]


def expected(variant: str) -> np.ndarray:
    logits = reference.arrays()[f"logits/eval/{variant}"].astype(np.float64)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def assert_same(actual: np.ndarray, variant: str) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected(variant), rtol=0, atol=1e-5)


# The network itself is exported, so no variant has code of its own.
@pytest.mark.parametrize("variant", reference.ONE_FACTOR_CHANGED)
def test_stablehlo(variant):
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers")
    from mnist_flax.export import stablehlo

    exported = jax_export.deserialize(bytearray(stablehlo.export(classifier(variant))))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0]) == "uint8[n,27,27,1]"
    # Every convolution tells accelerators to multiply float32 in full precision.
    assert exported.mlir_module().count("precision_config = [#stablehlo<precision HIGHEST>") >= 6
    assert_same(np.asarray(jax.jit(exported.call)(images())), variant)


def test_a_bfloat16_run_is_exported_in_float32():
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers")
    from mnist_flax.export import stablehlo

    variant = "-".join(reference.ORIGINAL)
    exported = jax_export.deserialize(bytearray(stablehlo.export(classifier(variant, "bfloat16"))))
    assert_same(np.asarray(jax.jit(exported.call)(images())), variant)


@EVERY_VARIANT
def test_onnx(variant):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from mnist_flax.export import onnx

    session = onnxruntime.InferenceSession(onnx.export(classifier(variant)))
    assert session.get_inputs()[0].shape == ["n", 27, 27, 1]
    assert_same(session.run(None, {"images": images()})[0], variant)


def test_a_layer_that_onnx_lacks_is_one_line():
    pytest.importorskip("onnx")
    from mnist_flax.export import onnx

    of_another = classifier("-".join(reference.ORIGINAL))
    of_another.config.model.norm = "instance"
    with pytest.raises(UserError, match=r"^'instance' layers cannot be exported to ONNX$"):
        onnx.export(of_another)


@EVERY_VARIANT
def test_pytorch(variant):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors or torch is missing")
    torch = pytest.importorskip("torch")
    from mnist_flax.export import pytorch
    from tests.parity.make_reference import build_network

    state = safetensors.load(pytorch.export(classifier(variant)))
    network = build_network(tuple(variant.split("-"))).eval()
    mean, std = state.pop("mean"), state.pop("std")
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        inputs = (torch.from_numpy(images()).permute(0, 3, 1, 2) / 255 - mean) / std
        assert_same(network(inputs).softmax(1).numpy(), variant)


@EVERY_VARIANT
def test_the_weights_are_pytorchs_own(variant):
    from mnist_flax.export.weights import state_dict

    state = state_dict(classifier(variant))
    assert (state.pop("mean"), state.pop("std")) == (np.float32(0.1307), np.float32(0.3081))
    norm, _, _, padding = variant.split("-")
    kind = {"layer": f"layer-{padding}", "none": "none"}.get(norm, "channel")
    theirs = reference.section("weights/conv") | reference.section(f"weights/{kind}")
    for name, array in state.items():
        np.testing.assert_array_equal(array, theirs.pop(name), err_msg=name)
        assert array.dtype == np.float32 and array.flags.c_contiguous
    # The remaining arrays belong to other variants.
    assert all("running" in name or "downsample" in name for name in theirs)

"""Exports to StableHLO, the language of XLA, in the form that `jax.export` can call."""

import flatbuffers  # noqa: F401  jax.export needs it, but JAX does not require it
import jax
import jax.numpy as jnp
from jax import export as jax_export

from mnist_flax import data, model
from mnist_flax.predict.classifier import Classifier

USE = "to use it: jax.export.deserialize(bytearray(open('{path}', 'rb').read())).call(images)"
_PLATFORMS = ("cpu", "cuda", "tpu")


def export(classifier: Classifier) -> bytes:
    """Returns a function of uint8 `[n, height, width, channels]`, for any n, on all platforms."""
    about, config = classifier.about, classifier.config.model
    network = model.create_model(config, len(about.class_names)).clone(dtype=jnp.float32)
    variables = jax.device_get(classifier.state.eval_variables)

    def probabilities(images: jax.Array) -> jax.Array:
        inputs = data.normalize(images, about.mean, about.std)
        return jax.nn.softmax(network.apply(variables, inputs, train=False))

    (n,) = jax_export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, *about.image_shape), "uint8")
    # By default, GPUs and TPUs multiply float32 with fewer bits.
    with jax.default_matmul_precision("highest"):
        exported = jax_export.export(jax.jit(probabilities), platforms=_PLATFORMS)(images)
    return bytes(exported.serialize())

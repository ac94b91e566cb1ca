"""The page's network agrees with JAX, and it prepares drawings as `mnist_flax.predict` does."""

import jax
import numpy as np
import pytest

from configs import default
from mnist_flax.ops import conv
from mnist_flax.predict.pictures import center
from mnist_flax.report.page.network import Layers
from mnist_flax.report.page.render import pack
from mnist_flax.run.configs import flatten
from mnist_flax.sources import sample
from tests.parity.reference import VARIANTS
from tests.report.pages import (
    MEAN,
    STD,
    in_node,
    jax_logits,
    narrow,
    random_variables,
)

PREDICT = """
given.networks.map(({layers, weights}) => {
  const predict = createNetwork(layers, Float32Array.from(weights), 28);
  return given.images.map((image) => predict(image));
})
"""


def configured(config, combination):
    names = ("norm", "norm_position", "downsample", "padding")
    config.model.update(dict(zip(names, combination, strict=True)))
    return config


def assert_node_agrees(configs, images):
    networks, expected = [], []
    for config in configs:
        variables = random_variables(config, images)
        layers = Layers(flatten(config), variables, MEAN, STD)
        networks.append({"layers": layers.layers, "weights": layers.weights.tolist()})
        expected.append(jax.nn.softmax(jax_logits(config, variables, images)))
    given = {"networks": networks, "images": images.reshape(len(images), -1).tolist()}
    found = np.array(in_node(["network.js"], PREDICT, given))
    expected = np.array(expected)
    assert expected.max(axis=-1).std() > 0.05  # the probabilities are not all alike
    # The errors of sums in float32; the last layer of `random_variables` magnifies them.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.fixture
def images():
    """Ten test digits, one per class."""
    test = sample.load().test
    return test.images[[np.flatnonzero(test.labels == label)[0] for label in range(10)]]


def test_every_network_agrees_with_jax(images, monkeypatch):
    # Use XLA's own convolution: without `jit`, its programs are shared by many combinations.
    monkeypatch.setattr(conv, "conv_general_dilated", jax.lax.conv_general_dilated)
    assert_node_agrees([configured(narrow(), variant.split("-")) for variant in VARIANTS], images)


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "none"])
def test_the_default_recipes_network_agrees_with_jax(norm, images):
    config = default.get_config()
    config.model.norm = norm
    assert_node_agrees([config], images)


def strokes(rng, height, width):
    """Draws blots of ink with soft edges at random places."""
    ink = np.zeros((height, width))
    y, x = np.mgrid[:height, :width]
    for _ in range(rng.integers(1, 12)):
        top, left = rng.uniform(0, height), rng.uniform(0, width)
        distance = np.hypot(y - top, x - left) - rng.uniform(0, 15)
        ink = np.maximum(ink, np.clip(1 - distance, 0, 1) * 255)
    return ink.round()


def test_drawings_take_the_form_that_pillow_gives_them():
    rng = np.random.default_rng(0)
    drawings = [strokes(rng, *rng.integers(30, 300, 2)) for _ in range(40)]
    for side, at in ((280, (0, 0)), (280, (279, 100)), (28, (14, 14))):  # single pixels
        drawings.append(np.zeros((side, side)))
        drawings[-1][at] = 200
    line = np.zeros((280, 280))
    line[40:41, 10:270] = 255  # less than a tenth of a pixel high when scaled to 20 pixels wide
    half = np.zeros((280, 280))
    half[60:260, 100:125] = 255  # 2.5 pixels wide when scaled, rounded to 3
    drawings += [line, line.T, half]
    drawings = [drawing for drawing in drawings if drawing.any()]
    assert len(drawings) > 40
    given = [{"ink": d.ravel().tolist(), "height": len(d), "width": len(d[0])} for d in drawings]
    form = "given.map(({ink, height, width}) => Array.from(toMnistForm(ink, width, height)))"
    found = np.array(in_node(["pad.js"], form, given), float).reshape(-1, 28, 28)
    expected = np.array([center(drawing) for drawing in drawings], float)
    # A sum near a half may be rounded up or down.
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 1e-3


def test_an_empty_pad_has_no_form():
    assert in_node(["pad.js"], "toMnistForm(given, 3, 2)", [0] * 6) is None


def test_arrays_are_read_as_numpy_writes_them():
    numbers = np.array([0, 1, -2.5, 6.1e-5, 5.96e-8, -1e-6, 65504, 0.3333])
    for dtype in (np.float32, np.float16, np.uint8):
        array = np.abs(numbers).clip(0, 255).astype(dtype) if dtype == np.uint8 else dtype(numbers)
        found = in_node(["decode.js"], "Array.from(decode(given))", pack(array))
        np.testing.assert_array_equal(found, array.astype(float))

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mnist_flax import data
from mnist_flax.model import create_model
from mnist_flax.step import create_state
from mnist_flax.trainer import Trainer

FACTORS = {
    "norm": ("batch", "layer", "group", "none"),
    "norm_position": ("before", "after"),
    "downsample": ("strided", "max", "avg"),
    "padding": ("VALID", "SAME"),
    "dtype": ("float32", "bfloat16"),
}
COMBINATIONS = list(itertools.product(*FACTORS.values()))


def covering_pairs():
    """Combinations, chosen greedily, in which every two values of two factors meet."""

    def pairs(combination):
        return set(itertools.combinations(enumerate(combination), 2))

    missing = set().union(*map(pairs, COMBINATIONS))
    chosen = []
    while missing:
        chosen.append(max(COMBINATIONS, key=lambda c: len(pairs(c) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def with_factors(config, combination):
    config.model.update(dict(zip(FACTORS, combination, strict=True)))
    return config


def train_and_evaluate(config, combination):
    dataset = data.load(config.dataset, 0)
    dataset = dataset._replace(
        train=data.Split(dataset.train.images[::10], dataset.train.labels[::10]),
        test=data.Split(dataset.test.images[::10], dataset.test.labels[::10]),
    )
    config.batch_size = 100
    trainer = Trainer(with_factors(config, combination), dataset)
    losses, _ = trainer.train_epoch(1, NoProgress())
    assert losses.shape == (4,)
    assert np.isfinite(losses).all()
    result = trainer.evaluate("test")
    assert np.isfinite(result.loss)
    assert result.confusion.sum() == 100
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(trainer.state.variables))


class NoProgress:
    def update(self, *_):
        pass


@pytest.mark.parametrize("combination", covering_pairs(), ids="-".join)
def test_combinations_train_and_evaluate(tiny_config, combination):
    train_and_evaluate(tiny_config, combination)


@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_all_combinations_train_and_evaluate(tiny_config, combination):
    train_and_evaluate(tiny_config, combination)


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_all_combinations_have_gradients(combination):
    """Shapes and types only, at the original's size."""
    config = with_factors(default.get_config(), combination)
    network = create_model(config.model)
    images = jax.ShapeDtypeStruct((8, 28, 28, 1), jnp.float32)

    def loss(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
        assert logits.shape == (8, 10)
        return logits.sum()

    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda k, x: network.init(k, x, train=False), key, images)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    gradients = jax.eval_shape(jax.grad(loss), params, batch_stats, images)
    assert jax.tree.map(lambda x: x.shape, gradients) == jax.tree.map(lambda x: x.shape, params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))


def test_feature_maps_of_the_original():
    """28 -> 24 -> 20 -> 10 -> 8 -> 6 -> 3, as DESIGN's table of the PyTorch original has it."""
    network = create_model(default.get_config().model)
    images = jnp.zeros((1, 28, 28, 1))
    _, state = jax.eval_shape(
        lambda: network.init_with_output(
            jax.random.key(0), images, train=False, capture_intermediates=True
        )
    )
    sides = {
        name: layer["__call__"][0].shape[1:3]
        for name, layer in state["intermediates"].items()
        if name != "__call__"
    }
    expected = {
        **{"conv1_1": 24, "conv1_2": 20, "downsample1": 10, "conv2_1": 8, "conv2_2": 6},
        **{"downsample2": 3, "conv3_1": 3, "classifier": 3},
    }
    assert {name: sides[name] for name in expected} == {k: (v, v) for k, v in expected.items()}


def test_bfloat16_computes_in_bfloat16():
    config = default.get_config()
    config.model.dtype = "bfloat16"
    state = jax.eval_shape(lambda: create_state(config, 30))
    images = jax.ShapeDtypeStruct((8, 28, 28, 1), jnp.float32)
    logits, captured = jax.eval_shape(
        lambda variables, x: state.apply_fn(
            variables, x, train=False, capture_intermediates=True, mutable=["intermediates"]
        ),
        state.variables,
        images,
    )
    layers = {k: v for k, v in captured["intermediates"].items() if k != "__call__"}
    assert {layer["__call__"][0].dtype for layer in layers.values()} == {jnp.dtype("bfloat16")}
    assert logits.dtype == jnp.float32


def test_evaluation_ignores_the_batch():
    """Outside training an image's logits do not depend on its neighbours."""
    config = default.get_config()
    network = create_model(config.model)
    images = jax.random.normal(jax.random.key(1), (5, 28, 28, 1))
    variables = network.init(jax.random.key(0), images, train=False)
    together = network.apply(variables, images, train=False)
    alone = network.apply(variables, images[2:3], train=False)
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-6)

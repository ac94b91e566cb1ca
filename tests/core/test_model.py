import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mnist_flax import model, step
from mnist_flax.errors import UserError
from mnist_flax.evaluate import evaluate
from mnist_flax.model import SimpleCNN, create_model
from mnist_flax.ops import conv
from tests.small import create_state, normalize, small_dataset

FACTORS = {
    "norm": model.NORMS,
    "norm_position": model.NORM_POSITIONS,
    "downsample": model.DOWNSAMPLES,
    "padding": model.PADDINGS,
    "dtype": model.DTYPES,
}
COMBINATIONS = list(itertools.product(*FACTORS.values()))


def covering_pairs():
    """Chooses combinations greedily until every two values of two factors occur together."""

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
    """Runs four steps and a prediction as one program, which compiles faster than three."""
    config = with_factors(config, combination)
    dataset = small_dataset(config, 200, num_test=50)
    options = {"config": config, "normalize": normalize}

    @jax.jit
    def run(train, images):
        batches = jax.tree.map(lambda x: x.reshape(4, 50, *x.shape[1:]), tuple(train))
        state, metrics = jax.lax.scan(
            lambda state, batch: step.train_step(state, *batch, **options),
            create_state(config),
            batches,
        )
        return state.variables, metrics, step.predict(state, images, **options)

    variables, metrics, logits = run(dataset.train, dataset.test.images)
    assert metrics.loss.shape == (4,)
    assert np.isfinite(metrics.loss).all() and metrics.loss.dtype == jnp.float32
    result = evaluate(logits, dataset.test.labels)
    assert np.isfinite(result.loss)
    assert result.confusion.sum() == 50
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("combination", covering_pairs(), ids="-".join)
def test_combinations_train_and_evaluate(tiny_config, combination):
    train_and_evaluate(tiny_config, combination)


@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_all_combinations_train_and_evaluate(tiny_config, combination):
    train_and_evaluate(tiny_config, combination)


@functools.cache
def shapes_of_variables(norm, downsample, padding):
    """Returns shapes at the original's size; the norm's position and the type don't change them."""
    config = with_factors(default.get_config(), (norm, "before", downsample, padding, "float32"))
    init = functools.partial(create_model(config.model, 10).init, train=False)
    images = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), images)


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_all_combinations_have_gradients(combination, monkeypatch):
    """The gradients are traced, not computed, at the original's size."""
    norm, _, downsample, padding, _ = combination
    if norm != "none":
        # Tracing the convolution for CPUs is slow. The combinations without a norm cover it.
        monkeypatch.setattr(conv, "conv_general_dilated", jax.lax.conv_general_dilated)
    network = create_model(with_factors(default.get_config(), combination).model, 10)
    variables = shapes_of_variables(norm, downsample, padding)

    def loss(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
        assert logits.shape == (8, 10)
        return logits.sum()

    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    images = jax.ShapeDtypeStruct((8, 28, 28, 1), jnp.float32)
    gradients = jax.eval_shape(jax.grad(loss), params, batch_stats, images)
    assert jax.tree.map(lambda x: x.shape, gradients) == jax.tree.map(lambda x: x.shape, params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))


def test_feature_maps_of_the_original():
    """The sides are 28 -> 24 -> 20 -> 10 -> 8 -> 6 -> 3, as in the PyTorch original."""
    network = create_model(default.get_config().model, 10)
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
    state = jax.eval_shape(lambda: create_state(config))
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


def test_evaluation_ignores_the_batch(tiny_config):
    """Outside training, an image's logits do not depend on the other images of its batch."""
    network = create_model(tiny_config.model, 10)
    images = jax.random.normal(jax.random.key(1), (5, 28, 28, 1))
    variables = network.init(jax.random.key(0), images, train=False)
    apply = jax.jit(functools.partial(network.apply, train=False))
    together, alone = apply(variables, images), apply(variables, images[2:3])
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("field", FACTORS)
def test_an_unknown_choice_is_refused(field):
    """The model itself refuses it, even if nothing else has checked the configuration."""
    config = default.get_config().model
    config[field] = "btach"
    with pytest.raises(UserError) as error:
        create_model(config, 10)
    assert str(error.value) == f"{field} must be one of {', '.join(FACTORS[field])}, got 'btach'"


@pytest.mark.parametrize(
    ("side", "kernel_sizes", "padding", "says"),
    [
        (28, ((5, 5), (3, 3), (1,)), "VALID", None),
        # 28 -> 24 -> 20 -> 10 -> 8 -> 6 -> 3: kernels that just fit, and one that is too large.
        (28, ((5, 5), (3, 3), (3,)), "VALID", None),
        (28, ((5, 5), (3, 3), (4,)), "VALID", "conv3_1 meets 3x3"),
        (28, ((5, 5), (3, 8), (1,)), "VALID", "downsample2 meets 1x1"),
        (28, ((5, 5), (3, 9), (1,)), "VALID", "conv2_2 meets 8x8"),
        (28, ((5, 5), (3, 8), (4,)), "SAME", None),
        (28, ((5, 5), (3, 8), (8,)), "SAME", "conv3_1 meets 7x7"),
        (7, ((5, 5), (3, 3), (1,)), "VALID", "conv1_2 meets 3x3"),
    ],
)
def test_kernels_have_to_fit_the_images(side, kernel_sizes, padding, says):
    """`check_side` accepts exactly the kernels with which the network itself can be built."""
    channels = tuple((4,) * len(kernels) for kernels in kernel_sizes)
    network = SimpleCNN(10, channels, kernel_sizes, padding=padding)
    images = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    init = functools.partial(network.init, train=False)
    if says is None:
        network.check_side(side)
        jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), images)
    else:
        with pytest.raises(
            UserError, match=rf"^kernel_sizes must be no larger than the feature maps \({says}\)"
        ):
            network.check_side(side)

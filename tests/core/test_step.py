import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mnist_flax import augment, data, step
from tests.small import create_state, normalize


def test_shuffle_is_a_new_permutation_every_epoch():
    orders = [np.asarray(step.shuffle(jax.random.key(0), epoch, 1_000)) for epoch in (1, 2, 1)]
    np.testing.assert_array_equal(np.sort(orders[0]), np.arange(1_000))
    assert not np.array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[0], orders[2])


def test_augmentation_differs_between_steps(tiny_config):
    """With a single training image, only augmentation can change what a step sees."""
    images = jnp.asarray(data.load(tiny_config.dataset, 0).train.images[:1])
    seen = []

    def record(pixels):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), pixels)
        return normalize(pixels)

    train_step = functools.partial(step.train_step, config=tiny_config, normalize=record)
    train_step = jax.jit(train_step)
    state = create_state(tiny_config)
    for _ in range(3):
        state, _ = train_step(state, images, jnp.zeros(1, jnp.int32))
    jax.effects_barrier()
    assert len({image.tobytes() for image in seen}) == 3


def lowered_for(*platforms, dtype="float32"):
    """Returns the text of the default recipe's step, lowered for the given platforms."""
    config = default.get_config()
    config.model.dtype = dtype
    state = jax.eval_shape(lambda: create_state(config))
    train_step = functools.partial(step.train_step, config=config, normalize=normalize)
    exported = jax.export.export(jax.jit(train_step), platforms=platforms)(
        state,
        jax.ShapeDtypeStruct((config.batch_size, 28, 28, 1), jnp.uint8),
        jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    )
    assert exported.platforms == platforms
    return exported.mlir_module()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_lowers_for_every_platform(dtype):
    lines = lowered_for("cpu", "cuda", "tpu", dtype=dtype).splitlines()
    convolutions = [line for line in lines if "stablehlo.convolution" in line]
    assert convolutions
    assert any("bf16" in line for line in convolutions) == (dtype == "bfloat16")


def test_a_tpu_convolves_by_xla_and_gathers_nothing():
    """The 8 layers have gradients of their kernels; all but the first also of their inputs."""
    text = lowered_for("tpu")
    assert text.count("stablehlo.convolution") == 8 + 8 + 7
    assert text.count("stablehlo.dot_general") == 2  # in the augmentation: for rows and for columns
    assert "stablehlo.gather" not in text


def test_the_loss_is_that_of_smoothed_labels(tiny_config):
    """In float64, 0.2 of each target is spread evenly over all ten classes."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (5, 10)), np.array([3, 0, 9, 3, 1])
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def predict_these(variables, images, train, mutable):
        return jnp.float32(logits), {}

    state = create_state(tiny_config).replace(apply_fn=predict_these)
    images = jnp.zeros((5, 28, 28, 1), jnp.uint8)
    for smoothing in (0.0, 0.2):
        targets = np.full((5, 10), smoothing / 10)
        targets[np.arange(5), labels] += 1 - smoothing
        theirs = -(targets * log_probabilities).sum(axis=1).mean()
        tiny_config.label_smoothing = smoothing
        options = {"config": tiny_config, "normalize": normalize}
        _, metrics = step.train_step(state, images, labels, **options)
        np.testing.assert_allclose(metrics.loss, theirs, rtol=1e-5)
        assert metrics.accuracy == np.mean(logits.argmax(axis=1) == labels)


def test_the_average_is_that_of_the_steps_variables(tiny_config):
    """It agrees with the recurrence, written out: average += (1 - decay) (variables - average)."""
    tiny_config.optimizer.ema_decay = 0.2
    split = data.load(tiny_config.dataset, 0).train
    state = create_state(tiny_config)
    expected = jax.tree.map(np.asarray, state.variables)
    train_step = functools.partial(step.train_step, config=tiny_config, normalize=normalize)
    train_step = jax.jit(train_step)
    for count in range(1, 5):
        state, _ = train_step(state, split.images[:64], split.labels[:64])
        decay = min(0.2, count / (count + 10))
        expected = jax.tree.map(
            lambda average, new, decay=decay: average + (1 - decay) * (np.asarray(new) - average),
            expected,
            state.variables,
        )
    assert "batch_stats" in expected
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        dict(state.eval_variables),
        expected,
    )
    assert not np.allclose(
        state.params["classifier"]["kernel"],
        state.average["params"]["classifier"]["kernel"],
        atol=1e-6,
    )


class TestPredict:
    """Predicts with a fake network whose two logits are an image's mean and its brightest pixel."""

    @pytest.fixture
    def config(self):
        config = default.get_config()
        config.evaluation.update(num_views=3, strength=1.0)
        return config

    @pytest.fixture
    def images(self, config):
        config.dataset.source = "sample"
        return data.load(config.dataset, 0).test.images[::200]

    @pytest.fixture
    def state(self, tiny_config):
        def apply(variables, images, train):
            assert not train
            images = images.astype(jnp.float32)
            return jnp.stack([images.mean((1, 2, 3)), images.max((1, 2, 3))], axis=1)

        state = jax.eval_shape(lambda: create_state(tiny_config))
        return state.replace(apply_fn=apply, key=jax.random.key(5))

    def predict(self, state, images, config):
        return step.predict(state, images, config=config, normalize=lambda pixels: pixels / 50)

    def test_views_count_by_their_probabilities(self, state, images, config):
        """Probabilities are averaged, not logits; every image has the same views."""
        maps = augment.sample_views(state.key, 28, config)
        views = [images]
        for index in range(2):
            same = jax.tree.map(lambda p, i=index: jnp.repeat(p[i][None], 5, axis=0), maps)
            views.append(np.asarray(augment.affine(images, same, "nearest")))
        probabilities = []
        for view in views:
            logits = np.asarray(state.apply_fn({}, view / 50, train=False), np.float64)
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities.append(exponentials / exponentials.sum(axis=1, keepdims=True))
        assert not np.allclose(probabilities[0], probabilities[1], rtol=1e-3)
        ours = np.exp(self.predict(state, images, config))
        np.testing.assert_allclose(ours, np.mean(probabilities, axis=0), rtol=1e-4)

    def test_one_view_is_the_network_itself(self, state, images, config):
        config.evaluation.num_views = 1
        ours = self.predict(state, images, config)
        np.testing.assert_array_equal(ours, state.apply_fn({}, images / 50, train=False))

    def test_memory_does_not_grow_with_the_views(self, state, images, config):
        def needed(num_views):
            config.evaluation.num_views = num_views
            batch = jnp.repeat(jnp.asarray(images), 100, axis=0)
            predict = jax.jit(lambda batch: self.predict(state, batch, config))
            analysis = predict.lower(batch).compile().memory_analysis()
            return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes

        assert needed(40) < 1.1 * needed(4)


def test_what_is_evaluated_is_the_average_where_there_is_one(tiny_config):
    """If there is an average, `predict` uses it instead of the trained weights."""
    tiny_config.optimizer.ema_decay = 0.5
    images = data.load(tiny_config.dataset, 0).test.images[:3]
    state = create_state(tiny_config)
    predict = functools.partial(step.predict, config=tiny_config, normalize=normalize)
    before = predict(state, images)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    np.testing.assert_array_equal(predict(state.replace(params=zeros), images), before)
    average = {"params": zeros, "batch_stats": state.batch_stats}
    assert not np.any(predict(state.replace(average=average), images))

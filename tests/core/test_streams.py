"""Every draw of a run agrees with JAX's functions, written out: a seed keeps its meaning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mnist_flax import augment, data, step
from mnist_flax.run.session import examples
from mnist_flax.streams import Stream
from tests.small import create_state, normalize

fold_in = jax.random.fold_in


def test_the_numbers_of_the_streams_stay():
    """A seed's meaning depends on them: an older checkpoint must resume with the same draws."""
    assert {stream.name: stream.value for stream in Stream} == {
        "SHUFFLE": 0,
        "AUGMENT": 1,
        "AUGMENTATION_SHEET": 2,
        "VIEWS": 3,
        "VALIDATION_SPLIT": 0x5A11D,
    }


@pytest.mark.parametrize("stream", Stream, ids=lambda stream: stream.name)
def test_a_stream_is_folded_in_before_what_follows(stream):
    key, value = jax.random.key(7), int(stream)
    assert stream.key(key) == fold_in(key, value)
    assert stream.key(key, 5, 3) == fold_in(fold_in(fold_in(key, value), 5), 3)


def test_the_order_of_an_epoch():
    key = jax.random.key(3)
    theirs = jax.random.permutation(fold_in(fold_in(key, 0), 4), 100)
    np.testing.assert_array_equal(step.shuffle(key, 4, 100), theirs)


def test_the_parameters_and_the_key_of_a_run(tiny_config):
    state = create_state(tiny_config, seed=11)
    init_key, key = jax.random.split(jax.random.key(11))
    assert state.key == key
    network = step.model.create_model(tiny_config.model, 10)
    variables = network.init(init_key, jnp.zeros((1, 28, 28, 1)), train=False)
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])


def test_the_maps_of_a_step(tiny_config):
    """The inputs of two steps use the maps that follow from the run's key and the step."""
    state = create_state(tiny_config)
    key = jax.device_get(jax.random.key_data(state.key))
    images = data.load(tiny_config.dataset, 0).train.images[:5]
    labels = jnp.zeros(5, jnp.int32)
    seen = []

    def record(pixels):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), pixels)
        return normalize(pixels)

    @jax.jit
    def train_step(state):
        return step.train_step(state, images, labels, config=tiny_config, normalize=record)[0]

    train_step(train_step(state))
    jax.effects_barrier()
    for count in range(2):
        of_step = fold_in(fold_in(jax.random.wrap_key_data(key), 1), count)
        maps = augment.sample_params(of_step, 5, 28, tiny_config.augment)
        # Midway between two pixels, two compiled programs may read different ones.
        theirs = augment.affine(images, maps, "nearest")
        assert np.mean(seen[count] != np.asarray(theirs)) < 1e-3
    assert np.mean(seen[0] != seen[1]) > 0.05


def test_the_sheet_of_augmentations():
    config = default.get_config()
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    original, copies = examples(config, image)
    np.testing.assert_array_equal(original, image)
    key = fold_in(jax.random.key(config.seed), 2)
    maps = augment.sample_params(key, 29, 28, config.augment)
    theirs = np.asarray(augment.affine(np.repeat(image[None], 29, axis=0), maps, "nearest"))
    assert copies.shape == theirs.shape == (29, 28, 28, 1) and copies.dtype == np.uint8
    assert np.mean(copies != theirs) < 1e-3


def test_the_views_of_evaluation():
    config = default.get_config()
    config.evaluation.update(num_views=4, strength=1.0)
    views = augment.sample_views(jax.random.key(2), 28, config)
    theirs = augment.sample_params(fold_in(jax.random.key(2), 3), 3, 28, config.augment)
    for mine, other in zip(views, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_the_images_that_are_set_aside():
    """Of classes of equal size, the first images of each in the stream's order are set aside."""
    labels = np.tile(np.arange(4), 25).astype(np.int32)
    images = np.arange(100).reshape(-1, 1, 1, 1)
    left, held_out = data.split_validation(data.Split(images, labels), 12, seed=9)
    order = np.asarray(jax.random.permutation(fold_in(jax.random.key(9), 0x5A11D), 100))
    first = [order[labels[order] == label][:3] for label in range(4)]
    assert held_out.images.ravel().tolist() == sorted(np.concatenate(first).tolist())
    assert sorted([*held_out.images.ravel(), *left.images.ravel()]) == list(range(100))

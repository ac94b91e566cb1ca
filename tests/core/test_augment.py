import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from configs import default
from mnist_flax import augment
from mnist_flax.errors import UserError


def scipy_affine(image, angle, translation, scale, order):
    """Applies the same map with SciPy: output offset o reads input offset M^-1 (o - t)."""
    cos, sin = math.cos(angle), math.sin(angle)
    # A turn that looks counter-clockwise, with rows growing downwards, followed by the scaling.
    forward = scale * np.array([[cos, -sin], [sin, cos]])
    inverse = np.linalg.inv(forward)
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - inverse @ (centre + translation)
    return ndimage.affine_transform(
        image.astype(np.float64), inverse, offset, order=order, mode="grid-constant", cval=0
    )


def random_images(shape):
    # Noise up to the border: pixels differ from their neighbours, so a wrong one is noticed.
    return np.random.default_rng(0).integers(0, 256, (*shape, 1)).astype(np.uint8)


def params(angle, translation, scale):
    as_float = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return augment.AffineParams(as_float(angle), as_float(translation), as_float(scale))


@pytest.mark.parametrize("shape", [(64, 28, 28), (8, 9, 14)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_agrees_with_scipy(shape, interpolation):
    rng = np.random.default_rng(1)
    images = random_images(shape)
    angle = rng.uniform(-math.pi, math.pi, shape[0]).astype(np.float32)
    translation = rng.integers(-6, 7, (shape[0], 2)).astype(np.float32)
    scale = rng.uniform(0.5, 2, shape[0]).astype(np.float32)
    ours = np.asarray(augment.affine(images, params(angle, translation, scale), interpolation))
    assert ours.shape == images.shape
    assert ours.dtype == (np.uint8 if interpolation == "nearest" else np.float32)
    order = 0 if interpolation == "nearest" else 1
    theirs = np.stack(
        [
            scipy_affine(image[..., 0], float(a), t, float(s), order)
            for image, a, t, s in zip(images, angle, translation, scale, strict=True)
        ]
    )
    if interpolation == "bilinear":
        # Coordinates in float32 and float64 differ by 1e-5 pixel; neighbours differ by up to 255.
        np.testing.assert_allclose(ours[..., 0], theirs, atol=0.02)
    else:
        # At a point midway between two pixels, rounding decides which one is read.
        assert np.mean(ours[..., 0] != theirs) < 1e-4


def test_a_quarter_turn_by_hand():
    """A quarter turn to the left moves the upper right corner to the upper left."""
    image = np.zeros((1, 3, 3, 1), np.uint8)
    image[0, 0, 2] = 9
    for interpolation in ("nearest", "bilinear"):
        turned = augment.affine(image, params([math.pi / 2], [[0, 0]], [1]), interpolation)
        expected = np.zeros((3, 3))
        expected[0, 0] = 9
        np.testing.assert_allclose(turned[0, ..., 0], expected, atol=1e-4)


def test_translation_moves_down_and_right():
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    moved = augment.affine(image, params([0], [[1, 1]], [1]), "nearest")
    np.testing.assert_array_equal(moved[0, ..., 0], [[0, 0, 0], [0, 1, 2], [0, 4, 5]])


def test_scale_enlarges():
    image = np.zeros((1, 28, 28, 1), np.uint8)
    image[0, 10:18, 10:18] = 200
    larger = augment.affine(image, params([0], [[0, 0]], [1.5]), "nearest")
    assert np.count_nonzero(larger) == 12 * 12


def test_identity():
    images = random_images((4, 28, 28))
    unchanged = params(np.zeros(4), np.zeros((4, 2)), np.ones(4))
    np.testing.assert_array_equal(augment.affine(images, unchanged, "nearest"), images)
    np.testing.assert_allclose(augment.affine(images, unchanged, "bilinear"), images, atol=1e-3)


def test_parameters_are_distributed_as_stated():
    config = default.get_config().augment
    n = 100_000
    drawn = augment.sample_params(jax.random.key(0), n, 28, config)
    limit = math.radians(15)
    samples = [
        (drawn.angle, stats.uniform(-limit, 2 * limit)),
        (drawn.scale, stats.uniform(0.8, 0.4)),
    ]
    for values, distribution in samples:
        assert stats.kstest(np.asarray(values), distribution.cdf).pvalue > 1e-3
        low, high = distribution.support()
        assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    # A shift uniform in +-4.2 pixels, rounded, is -4 to 4; the ends come from 0.7 pixels, not 1.
    shares = np.array([0.7, 1, 1, 1, 1, 1, 1, 1, 0.7]) / 8.4
    for axis in (0, 1):
        counts = [np.sum(np.asarray(drawn.translation[:, axis]) == t) for t in range(-4, 5)]
        assert sum(counts) == n
        assert stats.chisquare(counts, shares * n).pvalue > 1e-3
    together = np.column_stack([drawn.angle, drawn.translation, drawn.scale])
    correlation = np.corrcoef(together.T)
    assert np.abs(correlation - np.eye(4)).max() < 0.02  # six standard errors


def test_each_image_has_its_own_map():
    config = default.get_config().augment
    images = np.repeat(random_images((1, 28, 28)), 50, axis=0)
    augmented = np.asarray(augment.augment(jax.random.key(0), images, config))
    assert len({image.tobytes() for image in augmented}) == 50


def test_disabled():
    config = default.get_config().augment
    config.enabled = False
    images = random_images((3, 28, 28))
    assert augment.augment(jax.random.key(0), images, config) is images


def test_views_are_gentler_maps():
    """A fifth of the ranges is 3 degrees and 4 %; the pictures agree with SciPy's."""
    config = default.get_config()
    config.augment.translation = 0.0
    config.evaluation.update(num_views=4, strength=0.2)
    views = augment.sample_views(jax.random.key(0), 28, config)
    assert views.angle.shape == views.scale.shape == (3,) and views.translation.shape == (3, 2)
    assert 0 < np.abs(np.rad2deg(views.angle)).max() <= 3
    assert 0 < np.abs(views.scale - 1).max() <= 0.04 + 1e-6
    assert not np.any(views.translation)
    image = random_images((1, 28, 28))
    pictures = augment.affine(np.repeat(image, 3, axis=0), views, "nearest")
    for picture, angle, scale in zip(pictures, views.angle, views.scale, strict=True):
        theirs = scipy_affine(image[0, ..., 0], float(angle), (0, 0), float(scale), order=0)
        assert np.mean(picture[..., 0] != theirs) < 0.01


def test_views_count_the_ranges_of_augmentation_that_is_off():
    config = default.get_config()
    config.evaluation.num_views = 3
    key = jax.random.key(0)
    on = augment.sample_views(key, 28, config)
    config.augment.enabled = False
    off = augment.sample_views(key, 28, config)
    jax.tree.map(np.testing.assert_array_equal, on, off)
    assert np.abs(on.translation).max() <= 2  # half of 0.15 * 28 pixels, rounded


def test_views_without_strength_are_the_image():
    config = default.get_config()
    config.evaluation.update(num_views=3, strength=0.0)
    views = augment.sample_views(jax.random.key(0), 28, config)
    images = random_images((2, 28, 28))
    np.testing.assert_array_equal(augment.affine(images, views, "nearest"), images)
    config.evaluation.num_views = 1
    views = augment.sample_views(jax.random.key(0), 28, config)
    assert views.scale.shape == (0,)


def test_an_unknown_interpolation_is_refused():
    config = default.get_config().augment
    config.interpolation = "bicubic"
    with pytest.raises(UserError) as error:
        augment.augment(jax.random.key(0), random_images((1, 28, 28)), config)
    assert str(error.value) == ("interpolation must be one of nearest, bilinear, got 'bicubic'")

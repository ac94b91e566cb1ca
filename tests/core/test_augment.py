import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from configs import default
from mnist_flax import augment


def scipy_affine(image, angle, translation, scale, order):
    """The same map through SciPy: output offset o reads input offset M^-1 (o - t)."""
    cos, sin = math.cos(angle), math.sin(angle)
    # A turn counter-clockwise as seen, where rows grow downwards, then the scaling.
    forward = scale * np.array([[cos, -sin], [sin, cos]])
    inverse = np.linalg.inv(forward)
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - inverse @ (centre + translation)
    return ndimage.affine_transform(
        image.astype(np.float64), inverse, offset, order=order, mode="grid-constant", cval=0
    )


def random_images(shape):
    # Noise up to the border: every pixel differs from its neighbours, so none can be confused.
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
        # float32 coordinates against float64's: 1e-5 pixel times a step of up to 255.
        np.testing.assert_allclose(ours[..., 0], theirs, atol=0.02)
    else:
        # A point within rounding of the middle between two pixels may go either way.
        assert np.mean(ours[..., 0] != theirs) < 1e-4


def test_a_quarter_turn_by_hand():
    """A turn to the left takes the upper right corner to the upper left."""
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
    # Uniform in +-4.2 pixels and rounded: -4 to 4, the ends 0.7 wide instead of 1.
    shares = np.array([0.7, 1, 1, 1, 1, 1, 1, 1, 0.7]) / 8.4
    for axis in (0, 1):
        counts = [np.sum(np.asarray(drawn.translation[:, axis]) == t) for t in range(-4, 5)]
        assert sum(counts) == n
        assert stats.chisquare(counts, shares * n).pvalue > 1e-3
    together = np.column_stack([drawn.angle, drawn.translation, drawn.scale])
    correlation = np.corrcoef(together.T)
    assert np.abs(correlation - np.eye(4)).max() < 0.02  # 6 standard errors


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


def test_views_are_the_image_and_gentler_maps_of_it():
    config = default.get_config().augment
    config.translation = 0.0
    images = np.asarray(random_images((3, 28, 28)))
    views = augment.views(jax.random.key(0), images, config, 4, 0.2)
    assert views.shape == (4, 3, 28, 28, 1)
    np.testing.assert_array_equal(views[0], images)
    # At a fifth of the ranges, 3 degrees and 4 %, SciPy's map of the same parameters.
    gentle = default.get_config().augment
    gentle.update(rotation=3.0, translation=0.0, scale=(0.96, 1.04))
    params = augment.sample_params(jax.random.fold_in(jax.random.key(0), 3), 3, 28, gentle)
    assert np.abs(np.rad2deg(params.angle)).max() <= 3
    for view in range(3):
        for image in range(3):
            theirs = scipy_affine(
                images[image, ..., 0], params.angle[view], (0, 0), params.scale[view], order=0
            )
            assert np.mean(views[view + 1, image, ..., 0] != theirs) < 0.01


def test_views_without_strength_are_the_image():
    config = default.get_config().augment
    images = random_images((2, 28, 28))
    views = augment.views(jax.random.key(0), images, config, 3, 0.0)
    np.testing.assert_array_equal(views, np.broadcast_to(images, views.shape))
    assert augment.views(jax.random.key(0), images, config, 1, 0.5).shape == (1, 2, 28, 28, 1)

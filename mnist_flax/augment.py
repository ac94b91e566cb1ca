"""Random affine maps of images, on the device, a batch at a time.

An output pixel at offset `p` from the image's centre, in pixels (row, column), reads the input at
offset `R(-angle) (p - translation) / scale`: the picture is scaled about its centre, rotated
counter-clockwise by `angle` and moved by `translation`. Everything outside the input is 0.
'nearest' takes the pixel whose centre is nearest (halves round up); 'bilinear' takes the weighted
mean of the four pixels around the point.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mnist_flax.errors import check_choice
from mnist_flax.ops import gather
from mnist_flax.streams import Stream

INTERPOLATIONS = ("nearest", "bilinear")


class AffineParams(NamedTuple):
    """One map per image."""

    angle: jax.Array  # float32 [batch], radians, counter-clockwise as seen
    translation: jax.Array  # float32 [batch, 2], pixels down and to the right
    scale: jax.Array  # float32 [batch], above 1 enlarges


def sample_params(
    key: jax.Array, batch_size: int, side: int, config: ConfigDict, strength: float = 1.0
) -> AffineParams:
    """Draws a map for each of `batch_size` square images, `side` pixels wide.

    Angles are uniform in +-`config.rotation` degrees and scales in `config.scale`, (low, high).
    Translations are uniform in +-`config.translation * side`, then rounded to whole pixels. All
    ranges are narrowed by `strength`, 0..1.
    """
    angle_key, translation_key, scale_key = jax.random.split(key, 3)
    angle = jnp.deg2rad(strength * config.rotation)
    shift = strength * config.translation * side
    low, high = (1 + strength * (bound - 1) for bound in config.scale)
    shifts = jax.random.uniform(translation_key, (batch_size, 2), minval=-shift, maxval=shift)
    return AffineParams(
        jax.random.uniform(angle_key, (batch_size,), minval=-angle, maxval=angle),
        jnp.round(shifts),
        jax.random.uniform(scale_key, (batch_size,), minval=low, maxval=high),
    )


def affine(images: jax.Array, params: AffineParams, interpolation: str) -> jax.Array:
    """Maps each image, uint8 `[batch, height, width, 1]`, by its own parameters.

    Returns:
      The same shape: uint8 for 'nearest', float32 in 0..255 for 'bilinear' interpolation.

    Raises:
      UserError: `interpolation` is unknown.
    """
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    rows, columns = _source_points(params, images.shape[1], images.shape[2])
    if interpolation == "nearest":
        return _pixels(images, jnp.floor(rows + 0.5), jnp.floor(columns + 0.5))
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    return (
        (1 - down) * (1 - right) * _pixels(images, top, left)
        + (1 - down) * right * _pixels(images, top, left + 1)
        + down * (1 - right) * _pixels(images, top + 1, left)
        + down * right * _pixels(images, top + 1, left + 1)
    )


def augment(key: jax.Array, images: jax.Array, config: ConfigDict) -> jax.Array:
    """Applies a random map to each image, as the `augment` group of a configuration says."""
    if not config.enabled:
        return images
    params = sample_params(key, len(images), images.shape[1], config)
    return affine(images, params, config.interpolation)


def sample_views(key: jax.Array, side: int, config: ConfigDict) -> AffineParams:
    """Draws the maps for test-time augmentation, the same for all images and epochs.

    There are `evaluation.num_views - 1` of them, since the first view is the image itself. Their
    ranges are those for training (even if disabled there), narrowed by `evaluation.strength`.
    """
    num_maps, strength = config.evaluation.num_views - 1, config.evaluation.strength
    return sample_params(Stream.VIEWS.key(key), num_maps, side, config.augment, strength)


def _source_points(params: AffineParams, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns the row and column that each output pixel reads, float32 `[batch, height, width]`."""
    centre_row, centre_column = (height - 1) / 2, (width - 1) / 2
    down, right = (params.translation[:, axis, None, None] for axis in (0, 1))
    row = jnp.arange(height)[None, :, None] - centre_row - down
    column = jnp.arange(width)[None, None, :] - centre_column - right
    cos = (jnp.cos(params.angle) / params.scale)[:, None, None]
    sin = (jnp.sin(params.angle) / params.scale)[:, None, None]
    # Rows grow downwards, so a counter-clockwise turn as seen is clockwise in (row, column).
    return centre_row + cos * row + sin * column, centre_column - sin * row + cos * column


def _pixels(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Reads `images` at integer positions `[batch, height, width]`; 0 outside."""
    batch, height, width, channels = images.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    # One flat index per pixel: every backend gathers fast along one axis.
    index = jnp.where(inside, rows * width + columns, 0).astype(jnp.int32).reshape(batch, -1)
    flat = images.reshape(batch, height * width, channels)
    picked = gather.take_along_rows(flat, index).reshape(images.shape)
    return jnp.where(inside[..., None], picked, 0)

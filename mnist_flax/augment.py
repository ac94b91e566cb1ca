"""Random affine maps of images, on the device, a batch at a time.

The map. An output pixel at offset `p` from the image's centre, in pixels (row, column), takes the
input at offset `R(-angle) (p - translation) / scale`: the picture is scaled about its centre,
rotated counter-clockwise by `angle` and moved by `translation`. Outside the input everything
is 0. 'nearest' takes the pixel whose centre is nearest (halves go up); 'bilinear' weighs the four
around the point. Both read the same point.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


class AffineParams(NamedTuple):
    """One map an image.

    Attributes:
      angle: float32 `[batch]`, radians, counter-clockwise as seen.
      translation: float32 `[batch, 2]`, pixels down and to the right.
      scale: float32 `[batch]`, above 1 enlarges.
    """

    angle: jax.Array
    translation: jax.Array
    scale: jax.Array


def sample_params(key: jax.Array, batch_size: int, side: int, config: ConfigDict) -> AffineParams:
    """Draws a map for each image.

    Args:
      key: PRNG key.
      batch_size: number of maps.
      side: the images' side, pixels.
      config: `rotation` (degrees), `translation` (fraction of the side), `scale` (low, high).

    Returns:
      Angles and scales uniform in their ranges; translations uniform in +-translation * side,
      then rounded to whole pixels.
    """
    angle_key, translation_key, scale_key = jax.random.split(key, 3)
    angle = jnp.deg2rad(config.rotation)
    shift = config.translation * side
    low, high = config.scale
    return AffineParams(
        jax.random.uniform(angle_key, (batch_size,), minval=-angle, maxval=angle),
        jnp.round(
            jax.random.uniform(translation_key, (batch_size, 2), minval=-shift, maxval=shift)
        ),
        jax.random.uniform(scale_key, (batch_size,), minval=low, maxval=high),
    )


def affine(images: jax.Array, params: AffineParams, interpolation: str) -> jax.Array:
    """Maps each image by its own parameters; the module's docstring defines the map.

    Args:
      images: uint8 `[batch, height, width, 1]`.
      params: a map an image.
      interpolation: 'nearest' or 'bilinear'.

    Returns:
      uint8 for 'nearest', float32 in 0..255 for 'bilinear'; the shape of `images`.
    """
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


def augment(
    key: jax.Array,
    images: jax.Array,
    config: ConfigDict,
    first: jax.typing.ArrayLike = 0,
    batch_size: int | None = None,
) -> jax.Array:
    """Draws a map for each image and applies it.

    Args:
      key: PRNG key.
      images: uint8 `[n, side, side, 1]`, those from `first` on of a batch.
      config: the group `augment` of a configuration.
      first: int scalar.
      batch_size: of the whole batch, whose maps do not depend on where it is cut; None: `n`.

    Returns:
      As `affine`; `images` unchanged where `config.enabled` is False.
    """
    if not config.enabled:
        return images
    params = sample_params(key, batch_size or len(images), images.shape[1], config)
    own = jax.tree.map(lambda p: jax.lax.dynamic_slice_in_dim(p, first, len(images)), params)
    return affine(images, own, config.interpolation)


def views(
    key: jax.Array, images: jax.Array, config: ConfigDict, num_views: int, strength: float
) -> jax.Array:
    """The images, and maps of them that are gentler than in training: test-time augmentation.

    Args:
      key: PRNG key, of maps that are the same for all images.
      images: uint8 `[n, side, side, 1]`.
      config: the group `augment` of a configuration; its ranges are used, enabled or not.
      num_views: how many; the first is the image itself.
      strength: of the maps, 0..1: the share of each of the training's ranges.

    Returns:
      `[num_views, n, side, side, 1]`, of the type that `affine` returns if there are several.
    """
    if num_views == 1:
        return images[None]
    gentle = ConfigDict(
        {
            "rotation": strength * config.rotation,
            "translation": strength * config.translation,
            "scale": [1 + strength * (bound - 1) for bound in config.scale],
        }
    )
    key = jax.random.fold_in(key, 3)
    params = sample_params(key, num_views - 1, images.shape[1], gentle)

    def map_all(params: AffineParams) -> jax.Array:
        repeated = jax.tree.map(lambda p: jnp.broadcast_to(p, (len(images), *p.shape)), params)
        return affine(images, repeated, config.interpolation)

    maps = jax.vmap(map_all)(params)
    return jnp.concatenate([images[None].astype(maps.dtype), maps])


def _source_points(params: AffineParams, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Where each output pixel reads: input rows and columns, float32 `[batch, height, width]`."""
    centre_row, centre_column = (height - 1) / 2, (width - 1) / 2
    down, right = (params.translation[:, axis, None, None] for axis in (0, 1))
    row = jnp.arange(height)[None, :, None] - centre_row - down
    column = jnp.arange(width)[None, None, :] - centre_column - right
    cos = (jnp.cos(params.angle) / params.scale)[:, None, None]
    sin = (jnp.sin(params.angle) / params.scale)[:, None, None]
    # Rows grow downwards, so a counter-clockwise turn as seen is clockwise in (row, column).
    return centre_row + cos * row + sin * column, centre_column - sin * row + cos * column


def _pixels(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Reads `images` at whole-numbered positions `[batch, height, width]`; 0 outside."""
    batch, height, width, channels = images.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    # One flat index a pixel: a gather along one axis, which every backend does well.
    index = jnp.where(inside, rows * width + columns, 0).astype(jnp.int32).reshape(batch, -1, 1)
    flat = images.reshape(batch, height * width, channels)
    picked = jnp.take_along_axis(flat, index, axis=1).reshape(images.shape)
    return jnp.where(inside[..., None], picked, 0)

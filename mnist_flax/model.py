"""SimpleCNN: blocks of convolutions, a downsampling between blocks, global average pooling."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mnist_flax import data
from mnist_flax.batch_norm import BatchNorm
from mnist_flax.ops import conv


class SimpleCNN(nn.Module):
    """The classifier.

    Each block is a row of stride-1 convolutions with normalisation and ReLU; between blocks the
    side is halved; a 1x1 convolution to the classes and a global average pool end it.

    Attributes:
      channels: of each convolution, a tuple a block.
      kernel_sizes: likewise, pixels.
      downsample: 'strided' (2x2 convolution, stride 2), 'max' or 'avg' (2x2 pooling).
      norm: 'batch' (see `BatchNorm`), 'layer' (over height, width and channels together, a scale
        and a bias for each of their elements), 'group' (over height, width and the channels of
        a group, a scale and a bias a channel) or 'none'.
      norm_position: 'before' or 'after' the ReLU.
      num_groups: of 'group'.
      padding: 'VALID' or 'SAME', of the stride-1 convolutions.
      dtype: of the computation; parameters and statistics are float32.
      axis_name: the mesh axis over which a training batch is spread, as of `BatchNorm`.
    """

    channels: Sequence[Sequence[int]]
    kernel_sizes: Sequence[Sequence[int]]
    downsample: str = "strided"
    norm: str = "batch"
    norm_position: str = "before"
    num_groups: int = 4
    padding: str = "VALID"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes logits.

        Args:
          x: float `[batch, height, width, 1]`, normalised.
          train: True takes the batch's statistics and updates the running ones.

        Returns:
          Logits, float32 `[batch, 10]`.
        """
        x = x.astype(self.dtype)
        for block, layers in enumerate(zip(self.channels, self.kernel_sizes, strict=True), 1):
            if block > 1:
                x = self._downsample(x, f"downsample{block - 1}")
            for layer, (features, kernel_size) in enumerate(zip(*layers, strict=True), 1):
                x = self._conv(x, features, kernel_size, f"conv{block}_{layer}")
                if self.norm_position == "before":
                    x = nn.relu(self._normalize(x, train, f"norm{block}_{layer}"))
                else:
                    x = self._normalize(nn.relu(x), train, f"norm{block}_{layer}")
        x = self._conv(x, data.NUM_CLASSES, 1, "classifier")
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    def _conv(
        self, x: jax.Array, features: int, side: int, name: str, stride: int = 1
    ) -> jax.Array:
        """A convolution initialised as PyTorch's: weight and bias uniform in +-1/sqrt(fan_in)."""
        limit = 1 / math.sqrt(side * side * x.shape[-1])

        def uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
            # Drawn flat, to the same numbers: XLA takes seconds to compile a draw in four axes.
            flat = jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit)
            return flat.reshape(shape)

        return nn.Conv(
            features,
            (side, side),
            strides=stride,
            padding=self.padding if stride == 1 else "VALID",
            dtype=self.dtype,
            kernel_init=uniform,
            bias_init=uniform,
            conv_general_dilated=conv.conv_general_dilated,
            name=name,
        )(x)

    def _normalize(self, x: jax.Array, train: bool, name: str) -> jax.Array:
        """Applies `norm`; all kinds have PyTorch's eps, and statistics to full precision."""
        options = {"epsilon": 1e-5, "dtype": x.dtype, "use_fast_variance": False, "name": name}
        if self.norm == "batch":
            return BatchNorm(axis_name=self.axis_name, name=name)(x, train)
        if self.norm == "layer":
            axes = (1, 2, 3)
            return nn.LayerNorm(reduction_axes=axes, feature_axes=axes, **options)(x)
        if self.norm == "group":
            return nn.GroupNorm(self.num_groups, **options)(x)
        return x

    def _downsample(self, x: jax.Array, name: str) -> jax.Array:
        """Halves height and width, rounded down."""
        if self.downsample == "strided":
            return self._conv(x, x.shape[-1], 2, name, stride=2)
        pool = nn.max_pool if self.downsample == "max" else nn.avg_pool
        return pool(x, (2, 2), strides=(2, 2))


def create_model(config: ConfigDict, axis_name: str | None = None) -> SimpleCNN:
    """Builds the network that `config`, the group `model` of a configuration, describes."""
    options = {**config.to_dict(), "dtype": jnp.dtype(config.dtype)}
    return SimpleCNN(**options, axis_name=axis_name)

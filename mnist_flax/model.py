"""SimpleCNN: blocks of convolutions, downsampling between them, and global average pooling."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mnist_flax.errors import check_choice, refused
from mnist_flax.ops import conv

DOWNSAMPLES = ("strided", "max", "avg")
NORMS = ("batch", "layer", "group", "none")
NORM_POSITIONS = ("before", "after")
PADDINGS = ("VALID", "SAME")
DTYPES = ("float32", "bfloat16")


class SimpleCNN(nn.Module):
    """The classifier.

    Each block is a sequence of stride-1 convolutions with normalisation and ReLU. Between blocks,
    height and width are halved. A 1x1 convolution to the classes and a global average pool follow.

    `norm` is 'batch' (Ioffe and Szegedy, 2015, arXiv 1502.03167), 'layer' (over height, width and
    channels together, with a scale and a bias for each of their elements), 'group' (over height,
    width and the channels of a group, with a scale and a bias per channel) or 'none'.

    Raises:
      UserError: a named choice is unknown, or the blocks do not fit together.
    """

    num_classes: int
    channels: Sequence[Sequence[int]]  # output channels of each convolution, one tuple per block
    kernel_sizes: Sequence[Sequence[int]]  # sides in pixels, in the same layout
    downsample: str = "strided"  # a 2x2 convolution of stride 2, or 'max' or 'avg', 2x2 pooling
    norm: str = "batch"
    norm_position: str = "before"  # or 'after' the ReLU
    num_groups: int = 4  # groups of channels, for norm='group'
    padding: str = "VALID"  # or 'SAME'; for the stride-1 convolutions only
    dtype: Any = jnp.float32  # for the computation; parameters and statistics are float32

    def __post_init__(self):
        check_choice("downsample", self.downsample, DOWNSAMPLES)
        check_choice("norm", self.norm, NORMS)
        check_choice("norm_position", self.norm_position, NORM_POSITIONS)
        check_choice("padding", self.padding, PADDINGS)
        if [*map(len, self.channels)] != [*map(len, self.kernel_sizes)]:
            allowed = f"one kernel for each of channels={self.channels}"
            raise refused("kernel_sizes", self.kernel_sizes, allowed)
        n, widths = self.num_groups, [width for block in self.channels for width in block]
        if self.norm == "group" and (odd := [w for w in widths if n < 1 or w % n]):
            raise refused("num_groups", n, f"a divisor of {odd[0]} channels")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns logits, float32 `[batch, num_classes]`.

        Args:
          x: float `[batch, height, width, channels]`, normalised.
          train: if True, batch norm uses the batch's statistics and updates the running ones.
        """
        self.check_side(min(x.shape[1:3]))
        x = x.astype(self.dtype)
        for block, layers in enumerate(zip(self.channels, self.kernel_sizes, strict=True), 1):
            if block > 1:
                x = self._downsample(x, f"downsample{block - 1}")
            for layer, (features, kernel_size) in enumerate(zip(*layers, strict=True), 1):
                normalize = functools.partial(self._normalize, train, f"norm{block}_{layer}")
                x = self._conv(x, features, kernel_size, f"conv{block}_{layer}")
                before = self.norm_position == "before"
                x = nn.relu(normalize(x)) if before else normalize(nn.relu(x))
        x = self._conv(x, self.num_classes, 1, "classifier")
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    def check_side(self, side: int) -> None:
        """Raises a `UserError` unless kernels and downsampling fit images of `side` pixels."""
        for block, kernels in enumerate(self.kernel_sizes, 1):
            for kernel in kernels:
                if kernel > side:
                    meets = f"{kernel}x{kernel} of block {block} meets {side}x{side}"
                    allowed = f"kernels within their feature maps; {meets}"
                    raise refused("kernel_sizes", self.kernel_sizes, allowed)
                side -= kernel - 1 if self.padding == "VALID" else 0
            if block < len(self.kernel_sizes):
                if side < 2:
                    allowed = (
                        f"feature maps of 2x2 or more at the end of block {block}, to downsample"
                    )
                    raise refused("kernel_sizes", self.kernel_sizes, allowed)
                side //= 2

    def _conv(
        self, x: jax.Array, features: int, side: int, name: str, stride: int = 1
    ) -> jax.Array:
        """Convolves; weight and bias start uniform in +-1/sqrt(fan_in), as in PyTorch."""
        limit = 1 / math.sqrt(side * side * x.shape[-1])

        def uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
            # Drawn flat, for the same numbers: XLA takes seconds to compile a draw with four axes.
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

    def _normalize(self, train: bool, name: str, x: jax.Array) -> jax.Array:
        """Applies `norm`, with PyTorch's epsilon; statistics are float32."""
        options = {"epsilon": 1e-5, "dtype": self.dtype, "name": name}
        if self.norm == "batch":
            # Flax's running variance uses biased variances; PyTorch scales them by n / (n - 1).
            return nn.BatchNorm(not train, momentum=0.9, **options)(x)
        if self.norm == "layer":
            axes = (1, 2, 3)
            options |= {"reduction_axes": axes, "feature_axes": axes}
            return nn.LayerNorm(use_fast_variance=False, **options)(x)
        if self.norm == "group":
            return nn.GroupNorm(self.num_groups, use_fast_variance=False, **options)(x)
        return x

    def _downsample(self, x: jax.Array, name: str) -> jax.Array:
        """Halves height and width, rounded down."""
        if self.downsample == "strided":
            return self._conv(x, x.shape[-1], 2, name, stride=2)
        pool = nn.max_pool if self.downsample == "max" else nn.avg_pool
        return pool(x, (2, 2), strides=(2, 2))


def create_model(config: ConfigDict, num_classes: int) -> SimpleCNN:
    """Builds the network that `config`, the `model` group of a configuration, describes."""
    check_choice("dtype", config.dtype, DTYPES)
    return SimpleCNN(num_classes, **{**config.to_dict(), "dtype": jnp.dtype(config.dtype)})

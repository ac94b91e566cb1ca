"""SimpleCNN: blocks of convolutions, downsampling between them, and global average pooling."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
EPSILON = 1e-5  # added to the variance by every norm, as in PyTorch


class Layer(NamedTuple):
    """A layer of a `SimpleCNN`."""

    kind: str  # 'conv', 'relu', 'max' or 'avg' (pooling), or one of `NORMS`
    name: str = ""  # of its variables, if it has any
    features: int = 0  # output channels of a convolution; 0: one for each class
    side: int = 1  # of the kernel or the pooled squares, in pixels
    stride: int = 1
    padding: str = "VALID"


def layers(config: Any) -> Iterator[Layer]:
    """Yields the layers between the normalised pixels and the global average pool, in order.

    Args:
      config: a `SimpleCNN`, or anything else with its fields, such as the `model` group of a
        configuration.
    """
    for block, sizes in enumerate(zip(config.channels, config.kernel_sizes, strict=True), 1):
        for index, (features, side) in enumerate(zip(*sizes, strict=True), 1):
            yield Layer("conv", f"conv{block}_{index}", features, side, padding=config.padding)
            if config.norm_position == "after":
                yield Layer("relu")
            if config.norm != "none":
                yield Layer(config.norm, f"norm{block}_{index}")
            if config.norm_position == "before":
                yield Layer("relu")
        if block < len(config.channels):
            kind = "conv" if config.downsample == "strided" else config.downsample
            yield Layer(kind, f"downsample{block}", features, side=2, stride=2)
    yield Layer("conv", "classifier")


class SimpleCNN(nn.Module):
    """The classifier.

    Each block is a sequence of stride-1 convolutions with normalisation and ReLU. Between blocks,
    height and width are halved. A 1x1 convolution to the classes and a global average pool follow.

    `norm` is 'batch' (Ioffe and Szegedy, 2015, arXiv 1502.03167), 'layer' (over height, width and
    channels together, with a scale and a bias for each of their elements), 'group' (over height,
    width and the channels of a group, with a scale and a bias per channel) or 'none'.

    Raises:
      UserError: a named choice is unknown, or a kernel is larger than its feature maps.
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
        for layer in layers(self):
            match layer.kind:
                case "conv":
                    x = self._conv(x, layer)
                case "relu":
                    x = nn.relu(x)
                case "max":
                    x = nn.max_pool(x, (2, 2), (2, 2))
                case "avg":
                    x = nn.avg_pool(x, (2, 2), (2, 2))
                case _:
                    x = self._normalize(x, layer, train)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    def check_side(self, side: int) -> None:
        """Raises a `UserError` unless kernels and downsampling fit images of `side` pixels."""
        for layer in layers(self):
            if layer.side > side:
                allowed = f"no larger than the feature maps ({layer.name} meets {side}x{side})"
                raise refused("kernel_sizes", self.kernel_sizes, allowed)
            if layer.padding == "VALID":
                side = (side - layer.side) // layer.stride + 1

    def _conv(self, x: jax.Array, layer: Layer) -> jax.Array:
        """Convolves; weight and bias start uniform in +-1/sqrt(fan_in), as in PyTorch."""
        limit = 1 / math.sqrt(layer.side**2 * x.shape[-1])

        def uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
            # Drawn flat, for the same numbers: XLA takes seconds to compile a draw with four axes.
            flat = jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit)
            return flat.reshape(shape)

        return nn.Conv(
            layer.features or self.num_classes,
            (layer.side, layer.side),
            strides=layer.stride,
            padding=layer.padding,
            dtype=self.dtype,
            kernel_init=uniform,
            bias_init=uniform,
            conv_general_dilated=conv.conv_general_dilated,
            name=layer.name,
        )(x)

    def _normalize(self, x: jax.Array, layer: Layer, train: bool) -> jax.Array:
        """Normalises; statistics are float32."""
        options = {"epsilon": EPSILON, "dtype": self.dtype, "name": layer.name}
        if layer.kind == "batch":
            # Flax's running variance uses biased variances; PyTorch scales them by n / (n - 1).
            return nn.BatchNorm(not train, momentum=0.9, **options)(x)
        options["use_fast_variance"] = False
        if layer.kind == "layer":
            axes = (1, 2, 3)
            return nn.LayerNorm(reduction_axes=axes, feature_axes=axes, **options)(x)
        if layer.kind == "group":
            return nn.GroupNorm(self.num_groups, **options)(x)
        raise NotImplementedError(f"norm={layer.kind}")


def create_model(config: ConfigDict, num_classes: int) -> SimpleCNN:
    """Builds the network that `config`, the `model` group of a configuration, describes."""
    check_choice("dtype", config.dtype, DTYPES)
    return SimpleCNN(num_classes, **{**config.to_dict(), "dtype": jnp.dtype(config.dtype)})

"""Writes reference.npz: PyTorch's results, which tests/parity/test_parity.py compares with ours.

Run it with NumPy and PyTorch (2.13.0 wrote the committed file). The test itself needs no PyTorch:

    python tests/parity/make_reference.py

Everything but the initial weights is computed in float64 and stored as float32. The reference's own
rounding errors are therefore negligible, and other machines reproduce it.

The network is the original's with few channels (`CHANNELS`), and the images are noise. They are
27x27, so that each downsampling meets an odd side and has to drop the last row and column.

The layers are named conv1_1 (block 1, first), norm1_1, downsample1, ..., classifier. A variant is
named after its norm, norm position, downsampling and padding; the original is
batch-before-strided-VALID. Parameters are in PyTorch's layout: convolutions O, I, height, width;
layer norm C, height, width.

The file holds these arrays, float32 unless stated otherwise:

    images                         uint8 [20, 27, 27]; the network's input is
                                   (images / 255 - 0.1307) / 0.3081
    labels                         int32 [20]
    weights/conv/LAYER.NAME        weight and bias of a convolution
    weights/channel/LAYER.NAME     of batch and group norm: weight, bias; running_mean, running_var
    weights/layer-PADDING/LAYER.NAME   of layer norm, whose shape follows the padding
    logits/train/VARIANT           [8, 10], of the first 8 images, in training mode
    logits/eval/VARIANT            [8, 10], in evaluation mode
    gradients/VARIANT/LAYER.NAME   of the mean cross-entropy of the first 8 images, training mode
    statistics/VARIANT/LAYER.NAME  running statistics after that one forward pass
    steps/RUN/losses               [5], before each step of the run (see `STEP_RUNS`)
    steps/RUN/final/LAYER.NAME     parameters and running statistics after the last step
    init/LAYER.NAME                [101], quantiles 0, 0.01, ..., 1 of PyTorch's default
                                   initialisation at the original's channel sizes
    counts/NORM-DOWNSAMPLE-PADDING int64 [], number of parameters at these sizes, 28x28 images
"""

import collections
import itertools
import math
import pathlib

import numpy as np
import torch
from torch import nn

CHANNELS = ((4, 4), (4, 6), (8,))
ORIGINAL_CHANNELS = ((36, 36), (64, 128), (256,))
KERNEL_SIZES = ((5, 5), (3, 3), (1,))
NUM_GROUPS = 2
SIDE, ORIGINAL_SIDE = 27, 28
NUM_CLASSES = 10
NUM_IMAGES = 20
FORWARD_BATCH = 8
INIT_DRAWS = 20_000  # at least, for the quantiles of an array

NORMS = ("batch", "layer", "group", "none")
NORM_POSITIONS = ("before", "after")
DOWNSAMPLES = ("strided", "max", "avg")
PADDINGS = ("VALID", "SAME")
ORIGINAL = ("batch", "before", "strided", "VALID")

# The images of each step. Three steps make an epoch, whose last batch is smaller.
STEP_BATCHES = ((0, 8), (8, 16), (16, 20), (0, 8), (8, 16))
STEPS_PER_EPOCH = 3
# By run: optimiser, weight decay, learning rate decay, epsilon. The first is the original's recipe;
# the others exaggerate settings whose effect five steps would hardly show.
STEP_RUNS = {
    "adam": (torch.optim.Adam, 5e-5, 0.99, 1e-8),
    "adam_strong": (torch.optim.Adam, 0.2, 0.5, 0.01),
    "adamw_strong": (torch.optim.AdamW, 0.2, 0.5, 0.01),
}
LEARNING_RATE = 0.003

Arrays = dict[str, np.ndarray]
Variant = tuple[str, str, str, str]


def build_network(
    variant: Variant, channels: tuple[tuple[int, ...], ...] = CHANNELS, side: int = SIDE
) -> nn.Sequential:
    """Builds the network of a variant (norm, norm position, downsampling, padding).

    Returns:
      A network that maps float32 `[batch, 1, side, side]` to logits `[batch, 10]`.
    """
    norm, norm_position, downsample, padding = variant
    layers = collections.OrderedDict()
    features = 1
    for block, (widths, kernel_sizes) in enumerate(zip(channels, KERNEL_SIZES, strict=True), 1):
        if block > 1:
            layers[f"downsample{block - 1}"] = _downsample(downsample, features)
            side //= 2
        for layer, (width, kernel_size) in enumerate(zip(widths, kernel_sizes, strict=True), 1):
            same = padding == "SAME"
            layers[f"conv{block}_{layer}"] = nn.Conv2d(
                features, width, kernel_size, padding="same" if same else 0
            )
            features, side = width, side if same else side - kernel_size + 1
            activation = (f"relu{block}_{layer}", nn.ReLU())
            normalization = (f"norm{block}_{layer}", _norm(norm, features, side))
            before = norm_position == "before"
            layers.update([normalization, activation] if before else [activation, normalization])
    layers["classifier"] = nn.Conv2d(features, NUM_CLASSES, 1)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    return nn.Sequential(layers)


def make_weights() -> Arrays:
    """Draws the weights of every variant; returns arrays by 'weights/KIND/LAYER.NAME'."""
    rng = np.random.default_rng(0)
    kinds = {
        "conv": ("none", "before", "strided", "VALID"),
        "channel": ORIGINAL,
        "layer-VALID": ("layer", "before", "strided", "VALID"),
        "layer-SAME": ("layer", "before", "strided", "SAME"),
    }
    weights = {}
    for kind, variant in kinds.items():
        for name, value in build_network(variant).state_dict().items():
            is_norm = name.startswith("norm")
            if is_norm == (kind != "conv") and not name.endswith("num_batches_tracked"):
                drawn = _draw(rng, name, tuple(value.shape))
                weights[f"weights/{kind}/{name}"] = drawn.astype(np.float32)
    return weights


def load_network(variant: Variant, weights: Arrays) -> nn.Sequential:
    """Builds a variant in float64 with those of `weights` that it has."""
    network = build_network(variant).double()
    norm_kind = f"layer-{variant[3]}" if variant[0] == "layer" else "channel"
    state = network.state_dict()
    for name in state:
        if not name.endswith("num_batches_tracked"):
            kind = norm_kind if name.startswith("norm") else "conv"
            state[name] = torch.from_numpy(weights[f"weights/{kind}/{name}"])
    network.load_state_dict(state)
    return network


def make_logits(images: torch.Tensor, weights: Arrays) -> Arrays:
    """Computes the logits of all variants in both modes."""
    arrays = {}
    for variant in itertools.product(NORMS, NORM_POSITIONS, DOWNSAMPLES, PADDINGS):
        for mode in ("train", "eval"):
            network = load_network(variant, weights).train(mode == "train")
            with torch.no_grad():
                logits = network(images[:FORWARD_BATCH])
            arrays[f"logits/{mode}/{'-'.join(variant)}"] = logits.numpy()
    return arrays


def make_gradients(images: torch.Tensor, labels: torch.Tensor, weights: Arrays) -> Arrays:
    """Computes gradients and statistics of variants that differ from the original by one factor."""
    arrays = {}
    factors = (NORMS, NORM_POSITIONS, DOWNSAMPLES, PADDINGS)
    for variant in itertools.product(*factors):
        if sum(a != b for a, b in zip(variant, ORIGINAL, strict=True)) > 1:
            continue
        network = load_network(variant, weights).train()
        logits = network(images[:FORWARD_BATCH])
        nn.functional.cross_entropy(logits, labels[:FORWARD_BATCH]).backward()
        for name, parameter in network.named_parameters():
            arrays[f"gradients/{'-'.join(variant)}/{name}"] = parameter.grad.numpy()
        for name, value in _statistics(network).items():
            arrays[f"statistics/{'-'.join(variant)}/{name}"] = value
    return arrays


def make_steps(images: torch.Tensor, labels: torch.Tensor, weights: Arrays) -> Arrays:
    """Trains the original for five steps in each run; the schedule steps once per epoch."""
    arrays = {}
    for run, (optimizer_class, weight_decay, learning_rate_decay, eps) in STEP_RUNS.items():
        network = load_network(ORIGINAL, weights).train()
        optimizer = optimizer_class(
            network.parameters(), lr=LEARNING_RATE, eps=eps, weight_decay=weight_decay
        )
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, learning_rate_decay)
        losses = []
        for step, (start, stop) in enumerate(STEP_BATCHES, 1):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images[start:stop]), labels[start:stop])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step % STEPS_PER_EPOCH == 0:
                scheduler.step()
        arrays[f"steps/{run}/losses"] = np.array(losses)
        for name, parameter in network.named_parameters():
            arrays[f"steps/{run}/final/{name}"] = parameter.detach().numpy()
        for name, value in _statistics(network).items():
            arrays[f"steps/{run}/final/{name}"] = value
    return arrays


def make_init() -> Arrays:
    """Computes quantiles of the convolutions' initial weights and biases over many draws."""
    torch.manual_seed(0)
    arrays = {}
    for layer_name, layer in build_network(ORIGINAL, ORIGINAL_CHANNELS).named_children():
        if not isinstance(layer, nn.Conv2d):
            continue
        for name, parameter in layer.named_parameters():
            draws = []
            for _ in range(math.ceil(INIT_DRAWS / parameter.numel())):
                layer.reset_parameters()
                draws.append(parameter.detach().numpy().ravel().copy())
            quantiles = np.quantile(np.concatenate(draws), np.linspace(0, 1, 101))
            arrays[f"init/{layer_name}.{name}"] = quantiles
    return arrays


def make_counts() -> Arrays:
    """Counts the parameters of each variant; the norm position does not change them."""
    arrays = {}
    for norm, downsample, padding in itertools.product(NORMS, DOWNSAMPLES, PADDINGS):
        variant = (norm, "before", downsample, padding)
        network = build_network(variant, ORIGINAL_CHANNELS, ORIGINAL_SIDE)
        count = sum(parameter.numel() for parameter in network.parameters())
        arrays[f"counts/{norm}-{downsample}-{padding}"] = np.array(count)
    return arrays


def main() -> None:
    """Writes reference.npz into the folder of this file."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (NUM_IMAGES, SIDE, SIDE), dtype=np.uint8)
    labels = rng.integers(0, NUM_CLASSES, len(pixels), dtype=np.int32)
    images = torch.from_numpy((pixels / 255 - 0.1307) / 0.3081).unsqueeze(1)
    targets = torch.from_numpy(labels).long()
    weights = make_weights()
    arrays = {
        **weights,
        **make_logits(images, weights),
        **make_gradients(images, targets, weights),
        **make_steps(images, targets, weights),
        **make_init(),
    }
    np.savez_compressed(
        pathlib.Path(__file__).with_name("reference.npz"),
        images=pixels,
        labels=labels,
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        **make_counts(),
    )


def _downsample(kind: str, features: int) -> nn.Module:
    """Builds a layer that halves the side."""
    if kind == "strided":
        return nn.Conv2d(features, features, 2, stride=2)
    return nn.MaxPool2d(2) if kind == "max" else nn.AvgPool2d(2)


def _norm(kind: str, features: int, side: int) -> nn.Module:
    """Builds the normalisation of a feature map."""
    if kind == "batch":
        return nn.BatchNorm2d(features)
    if kind == "layer":
        return nn.LayerNorm([features, side, side])
    return nn.GroupNorm(NUM_GROUPS, features) if kind == "group" else nn.Identity()


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws one parameter, never its initial value, so that a mix-up is noticed."""
    layer, kind = name.split(".")
    # The variance of conv1_1's output is about 0.01, small enough for the norm's epsilon to matter.
    gain = 0.1 if layer in ("conv1_1", "norm1_1") else 1.0
    if kind == "running_mean":
        return gain * rng.normal(0, 0.5, shape)
    if kind == "running_var":
        return gain**2 * rng.uniform(0.5, 2, shape)
    if layer.startswith("norm"):
        # Multiples of 1/64, so that layer norm's many parameters compress well.
        low, high = (32, 97) if kind == "weight" else (-32, 33)
        return rng.integers(low, high, shape) / 64
    if kind == "bias":
        # Away from 0, so that within five steps no sign depends on a rounding error.
        return rng.choice([-1, 1], shape) * rng.uniform(0.05, 0.1, shape)
    return gain * rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)


def _statistics(network: nn.Module) -> Arrays:
    """Returns the running means and variances of a network's batch norms."""
    return {
        name: value.numpy()
        for name, value in network.named_buffers()
        if not name.endswith("num_batches_tracked")
    }


if __name__ == "__main__":
    main()

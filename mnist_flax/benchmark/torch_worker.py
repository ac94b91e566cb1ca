"""The benchmark's worker for PyTorch: the same network and the same work, in two forms.

One is as the original is written: NCHW, with metrics fetched at every step. The other is tuned: it
has the faster memory format, channels_last, the recipe's dtype (by autocast), and leaves metrics on
the device; on a GPU, it also has a fused Adam and `torch.compile` with CUDA graphs. Both augment
whole batches, which favours PyTorch: the original augments one image at a time.
"""

from collections.abc import Callable

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from mnist_flax.errors import UserError

_SIDE, _NUM_CLASSES = 28, 10


def network(config: ConfigDict) -> nn.Sequential:
    """Returns the original's network: strided convolutions, batch norm before ReLU."""
    layers, features = [], 1
    for channels, kernels in zip(config.channels, config.kernel_sizes, strict=True):
        if layers:
            layers.append(nn.Conv2d(features, features, 2, stride=2))
        for out, kernel in zip(channels, kernels, strict=True):
            layers += [nn.Conv2d(features, out, kernel), nn.BatchNorm2d(out), nn.ReLU()]
            features = out
    head = [nn.Conv2d(features, _NUM_CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head)


def augment(images: Tensor, config: ConfigDict) -> Tensor:
    """Applies a different random affine map to each image; see `mnist_flax.augment`.

    Args:
      images: uint8 `[batch, 1, side, side]`.
      config: the group `augment` of a configuration.

    Returns:
      The augmented images, float32 in 0..255, of the same shape.
    """
    side, (low, high) = images.shape[-1], config.scale
    turn, zoom, x, y = 2 * torch.rand(4, len(images), device=images.device) - 1
    angle, scale = torch.deg2rad(turn * config.rotation), (low + high + (high - low) * zoom) / 2
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # On the grid, a side is 2.
    x, y = ((shift * config.translation * side).round() * 2 / side for shift in (x, y))
    theta = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], 1)
    grid = functional.affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, mode="nearest", align_corners=False)


def prepare(
    config: ConfigDict, num_images: int, num_test: int, device: str, is_tuned: bool
) -> tuple[dict, dict, Callable]:
    """Prepares the tasks for a `worker.Worker`.

    Args:
      config: the whole configuration.
      num_images: the number of images per epoch.
      num_test: the number of images in the evaluation.
      device: 'cpu' or 'cuda'.
      is_tuned: whether to run the tuned form.
    """
    on_gpu = device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise UserError("--against=torch: PyTorch finds no GPU, and JAX is not on a CPU here")
    train, predict = _functions(config, device, is_tuned)
    num_all = num_images + num_test
    images = torch.randint(256, (num_all, 1, _SIDE, _SIDE), dtype=torch.uint8, device=device)
    labels = torch.randint(_NUM_CLASSES, (num_all,), device=device)
    one, train_set, test_set = slice(config.batch_size), slice(num_images), slice(num_images, None)
    tasks = {
        "augmentation": lambda: augment(images[one], config.augment),
        "forward": lambda: predict(images[one]),
        "step": lambda: train(images[one], labels[one]),
        "epoch": lambda: train(images[train_set], labels[train_set]),
        "evaluation": lambda: functional.cross_entropy(predict(images[test_set]), labels[test_set]),
    }
    wait = lambda _: torch.cuda.synchronize() if on_gpu else None  # noqa: E731
    return {"versions": {"torch": torch.__version__}}, tasks, wait


def _functions(config: ConfigDict, device: str, is_tuned: bool) -> tuple[Callable, Callable]:
    """Returns functions that train on images and labels, in batches, and that predict images."""
    is_compiled = is_tuned and device == "cuda"
    is_bfloat16 = is_tuned and config.model.dtype == "bfloat16"
    layout = torch.channels_last if is_tuned else torch.contiguous_format
    model = network(config.model).to(device, memory_format=layout)
    given = config.optimizer
    adam = torch.optim.Adam(
        model.parameters(), given.learning_rate, weight_decay=given.weight_decay, fused=is_compiled
    )

    def apply(images: Tensor) -> Tensor:
        normalized = (images / 255 - 0.5) / 0.29
        with torch.autocast(device, torch.bfloat16, enabled=is_bfloat16):
            return model(normalized.to(memory_format=layout)).float()

    if is_compiled:
        torch.backends.cudnn.benchmark = True
        apply = torch.compile(apply, mode="max-autotune")

    def train(images: Tensor, labels: Tensor) -> None:
        model.train()
        for indices in torch.randperm(len(images), device=device).split(config.batch_size):
            logits = apply(augment(images[indices], config.augment))
            loss = functional.cross_entropy(logits, labels[indices])
            accuracy = (logits.argmax(1) == labels[indices]).float().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            if not is_tuned:
                loss.item(), accuracy.item()

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        model.eval()
        batches = images.split(max(config.batch_size, 2_000))  # on a CPU, 500 was as fast
        return torch.cat([apply(batch).clone() for batch in batches])  # CUDA graphs overwrite them

    return train, predict

"""The benchmark's worker for PyTorch: the same network and work, in several forms.

The forms: 'plain', as the original writes it (NCHW, a scalar fetched every step);
'channels_last', the faster memory layout, metrics kept on the device; 'bfloat16', that in autocast;
'compiled', that through `torch.compile` with CUDA graphs. Augmentation takes whole batches in all
of them, which is kinder to PyTorch than the original's map of one image at a time.
"""

import contextlib
import json
import sys
from collections.abc import Callable

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional

from mnist_flax import data
from mnist_flax.benchmark import worker
from mnist_flax.runtime import huge_pages

_TEST_BATCH_SIZE = 2_000  # on a CPU it was as quick with 500, and slower with 100


def network(config: ConfigDict) -> nn.Sequential:
    """The original's network: strided convolutions, batch norm before ReLU."""
    layers: list[nn.Module] = []
    features = 1
    for block, (channels, kernels) in enumerate(
        zip(config.channels, config.kernel_sizes, strict=True)
    ):
        if block:
            layers.append(nn.Conv2d(features, features, 2, stride=2))
        for out, kernel in zip(channels, kernels, strict=True):
            layers += [nn.Conv2d(features, out, kernel), nn.BatchNorm2d(out), nn.ReLU()]
            features = out
    head = [nn.Conv2d(features, data.NUM_CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head)


def augment(images: torch.Tensor, config: ConfigDict) -> torch.Tensor:
    """Maps each image by a random affine map of its own; see `mnist_flax.augment`.

    Args:
      images: uint8 `[batch, 1, side, side]`.
      config: the group `augment` of a configuration.

    Returns:
      float32 in 0..255.
    """
    batch, _, side, _ = images.shape
    device = images.device
    low, high = config.scale
    angle = torch.deg2rad((2 * torch.rand(batch, device=device) - 1) * config.rotation)
    scale = low + (high - low) * torch.rand(batch, device=device)
    shift = torch.round((2 * torch.rand(batch, 2, device=device) - 1) * config.translation * side)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift = shift * 2 / side
    theta = torch.stack(
        [
            torch.stack([cos, sin, -cos * shift[:, 0] - sin * shift[:, 1]], 1),
            torch.stack([-sin, cos, sin * shift[:, 0] - cos * shift[:, 1]], 1),
        ],
        1,
    )
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, mode="nearest", align_corners=False)


def tasks(
    config: ConfigDict, num_images: int, num_test: int, form: str, on_gpu: bool
) -> dict[str, Callable[[], Callable[[], float]]]:
    """What the worker can be asked for."""
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.manual_seed(config.seed)
    if on_gpu and form != "plain":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    layout = torch.contiguous_format if form == "plain" else torch.channels_last
    model = network(config.model).to(device, memory_format=layout)
    optimizer = torch.optim.Adam(
        model.parameters(),
        config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        fused=on_gpu and form != "plain",
    )
    cast = (
        torch.autocast("cuda", torch.bfloat16)
        if form in ("bfloat16", "compiled")
        else contextlib.nullcontext()
    )
    rng = np.random.default_rng(config.seed)

    def split(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = rng.integers(0, 256, (n, 1, data.IMAGE_SIDE, data.IMAGE_SIDE), np.uint8)
        labels = rng.integers(0, data.NUM_CLASSES, n)
        return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)

    train_images, train_labels = split(num_images)
    test_images, test_labels = split(num_test)

    def apply(images: torch.Tensor) -> torch.Tensor:
        with cast:
            normalized = (images / 255 - 0.5) / 0.29
            return model(normalized.to(memory_format=layout)).float()

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = apply(images)
        return functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()

    if form == "compiled":
        loss_of = torch.compile(loss_of, mode="max-autotune")
        apply = torch.compile(apply, mode="max-autotune")

    def train(images: torch.Tensor, labels: torch.Tensor) -> None:
        model.train()
        order = torch.randperm(len(images), device=device)
        metrics = []
        for indices in order.split(config.batch_size):
            inputs = augment(images[indices], config.augment)
            loss, accuracy = loss_of(inputs, labels[indices])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            taken = (loss.detach(), accuracy)
            metrics.append([x.item() if form == "plain" else x.clone() for x in taken])

    @torch.inference_mode()
    def test(images: torch.Tensor, labels: torch.Tensor) -> float:
        model.eval()
        logits = torch.cat([apply(batch).clone() for batch in images.split(_TEST_BATCH_SIZE)])
        return float(functional.cross_entropy(logits, labels))

    @torch.inference_mode()
    def forward(images: torch.Tensor) -> None:
        model.eval()
        apply(images)

    def timed(run: Callable, *args: torch.Tensor) -> Callable[[], Callable[[], float]]:
        wait = (lambda _: torch.cuda.synchronize()) if on_gpu else (lambda _: None)
        return lambda: worker.timed(lambda: run(*args), wait)

    batch = train_images[: config.batch_size], train_labels[: config.batch_size]

    def memory() -> Callable[[], float]:
        if on_gpu:
            return torch.cuda.max_memory_allocated
        return worker.peak_memory

    return {
        "augmentation": timed(lambda images: augment(images, config.augment), batch[0]),
        "forward": timed(forward, batch[0]),
        "step": timed(train, *batch),
        "epoch": timed(train, train_images, train_labels),
        "evaluation": timed(test, test_images, test_labels),
        "memory": memory,
    }


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    if settings["huge_pages"]:
        huge_pages.use()
    recipe = ConfigDict(settings["config"])
    on_gpu = settings["platform"] == "gpu"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU, JAX does")
    sizes = settings["num_images"], settings["num_test"]
    worker.serve(
        {"versions": {"torch": torch.__version__}},
        tasks(recipe, *sizes, settings["form"], on_gpu),
    )

"""The benchmark's worker for PyTorch: the same network and the same work, in several forms.

The forms are 'plain', as the original is written (NCHW, metrics fetched at every step);
'channels_last', the faster memory layout, with metrics kept on the device; 'bfloat16', which adds
autocast; and 'compiled', which adds `torch.compile` with CUDA graphs. All of them augment whole
batches, which favours PyTorch: the original augments one image at a time.
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

from mnist_flax.benchmark import worker
from mnist_flax.runtime import huge_pages

_SIDE, _NUM_CLASSES = 28, 10
_TEST_BATCH_SIZE = 2_000  # on a CPU, 500 was as fast and 100 slower


def network(config: ConfigDict) -> nn.Sequential:
    """Returns the original's network: strided convolutions, batch norm before ReLU."""
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
    head = [nn.Conv2d(features, _NUM_CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head)


def augment(images: torch.Tensor, config: ConfigDict) -> torch.Tensor:
    """Applies a different random affine map to each image; see `mnist_flax.augment`.

    Args:
      images: uint8 `[batch, 1, side, side]`.
      config: the group `augment` of a configuration.

    Returns:
      The augmented images, float32 in 0..255, of the same shape.
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


class Tasks:
    """The tasks of the worker; each method prepares a task that returns seconds.

    Args:
      config: the whole configuration.
      num_images: the number of images per epoch.
      num_test: the number of images in the evaluation.
      form: one of the forms that the module describes.
      on_gpu: whether to use CUDA.
    """

    def __init__(self, config: ConfigDict, num_images: int, num_test: int, form: str, on_gpu: bool):
        self._config, self._on_gpu, self._is_plain = config, on_gpu, form == "plain"
        self._device = torch.device("cuda" if on_gpu else "cpu")
        torch.manual_seed(config.seed)
        if on_gpu and not self._is_plain:
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self._layout = torch.contiguous_format if self._is_plain else torch.channels_last
        self._model = network(config.model).to(self._device, memory_format=self._layout)
        self._optimizer = torch.optim.Adam(
            self._model.parameters(),
            config.optimizer.learning_rate,
            weight_decay=config.optimizer.weight_decay,
            fused=on_gpu and not self._is_plain,
        )
        is_bfloat16 = form in ("bfloat16", "compiled")
        self._cast = (
            torch.autocast("cuda", torch.bfloat16) if is_bfloat16 else contextlib.nullcontext()
        )
        if form == "compiled":
            self._loss_of = torch.compile(self._loss_of, mode="max-autotune")
            self._apply = torch.compile(self._apply, mode="max-autotune")
        rng = np.random.default_rng(config.seed)
        self._train_set, self._test_set = self._noise(rng, num_images), self._noise(rng, num_test)
        self._batch = tuple(x[: config.batch_size] for x in self._train_set)

    def augmentation(self) -> Callable[[], float]:
        """Augments a batch."""
        return self._timed(lambda images: augment(images, self._config.augment), self._batch[0])

    def forward(self) -> Callable[[], float]:
        """Predicts a batch."""
        return self._timed(self._forward, self._batch[0])

    def step(self) -> Callable[[], float]:
        """Trains on one batch."""
        return self._timed(self._train, *self._batch)

    def epoch(self) -> Callable[[], float]:
        """Trains on all images."""
        return self._timed(self._train, *self._train_set)

    def evaluation(self) -> Callable[[], float]:
        """Evaluates the test set."""
        return self._timed(self._test, *self._test_set)

    def memory(self) -> Callable[[], float]:
        """The task returns the peak memory so far, in bytes."""
        return torch.cuda.max_memory_allocated if self._on_gpu else worker.peak_memory

    def _noise(self, rng: np.random.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(rng.integers(0, 256, (n, 1, _SIDE, _SIDE), np.uint8))
        labels = torch.from_numpy(rng.integers(0, _NUM_CLASSES, n))
        return images.to(self._device), labels.to(self._device)

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        with self._cast:
            normalized = (images / 255 - 0.5) / 0.29
            return self._model(normalized.to(memory_format=self._layout)).float()

    def _loss_of(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._apply(images)
        return functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()

    def _train(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._model.train()
        order = torch.randperm(len(images), device=self._device)
        metrics = []
        for indices in order.split(self._config.batch_size):
            inputs = augment(images[indices], self._config.augment)
            loss, accuracy = self._loss_of(inputs, labels[indices])
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            taken = (loss.detach(), accuracy)
            metrics.append([x.item() if self._is_plain else x.clone() for x in taken])

    @torch.inference_mode()
    def _test(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        self._model.eval()
        logits = torch.cat([self._apply(batch).clone() for batch in images.split(_TEST_BATCH_SIZE)])
        return float(functional.cross_entropy(logits, labels))

    @torch.inference_mode()
    def _forward(self, images: torch.Tensor) -> None:
        self._model.eval()
        self._apply(images)

    def _timed(self, run: Callable, *args: torch.Tensor) -> Callable[[], float]:
        wait = (lambda _: torch.cuda.synchronize()) if self._on_gpu else (lambda _: None)
        return worker.timed(lambda: run(*args), wait)


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    if settings["huge_pages"]:
        huge_pages.use()
    recipe = ConfigDict(settings["config"])
    on_gpu = settings["platform"] == "gpu"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU, although JAX does")
    sizes = settings["num_images"], settings["num_test"]
    tasks = Tasks(recipe, *sizes, settings["form"], on_gpu)
    worker.serve({"versions": {"torch": torch.__version__}}, lambda name: getattr(tasks, name)())

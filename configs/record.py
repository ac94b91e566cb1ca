"""The most accurate single network: 3x3 kernels, twice the width, small batches, averaged weights.

99.78 % test accuracy, 22 errors from either of two seeds, 42 and 43 (n = 2 is too few for an
interval). Each took 17 s of training on one NVIDIA H200 that it shared with five other trainings;
jax 0.11.2, 55,000 training images.

    python -m mnist_flax.study --config configs/record.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the default recipe, made more accurate; values chosen on the images set aside."""
    config = default.get_config()
    config.num_epochs = 25
    config.batch_size = 250
    config.label_smoothing = 0.05
    config.dataset.validation_size = 5_000
    config.augment.translation = 0.12
    config.augment.scale = (0.85, 1.15)
    config.augment.interpolation = "bilinear"
    config.model.channels = ((64, 64), (128, 128), (256,))
    config.model.kernel_sizes = ((3, 3), (3, 3), (3,))
    config.optimizer.learning_rate = 0.008
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.1
    config.optimizer.weight_decay = 0.0
    config.optimizer.ema_decay = 0.998
    config.study.num_seeds = 10
    return config

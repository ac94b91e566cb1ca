"""The best single network: wider, longer, with averaged weights and test-time augmentation.

Aim: a mean of 99.75 % test accuracy over 10 seeds. It wants a GPU, and has not been measured: these
values are where to begin, and none of them has been chosen on validation data yet.

    python -m mnist_flax.study --config configs/record.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the default recipe, made to be accurate whatever it takes."""
    config = default.get_config()
    config.num_epochs = 100
    config.batch_size = 500
    config.label_smoothing = 0.05
    config.dataset.validation_size = 5_000
    config.augment.interpolation = "bilinear"
    config.augment.translation = 0.1
    config.model.channels = ((64, 64), (128, 128), (256,))
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.1
    config.optimizer.ema_decay = 0.999
    config.evaluation.num_views = 16
    config.evaluation.strength = 0.5
    config.study.num_seeds = 10
    return config

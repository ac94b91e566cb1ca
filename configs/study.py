"""The original's questions, and those it left open, with error bars: ten variants of its recipe.

    python -m mnist_flax.study --config configs/study.py

Meant for a GPU, where it has not been run yet. For the original's three claims on a CPU, see
configs/claims.py.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the default recipe, and what is changed in each variant."""
    config = default.get_config()
    config.dataset.validation_size = 5_000
    config.study.num_seeds = 10
    config.study.variants = {
        "layer norm": {"model": {"norm": "layer"}},
        "group norm": {"model": {"norm": "group"}},
        "no norm": {"model": {"norm": "none"}},
        "norm after ReLU": {"model": {"norm_position": "after"}},
        "max pooling": {"model": {"downsample": "max"}},
        "average pooling": {"model": {"downsample": "avg"}},
        "SAME padding": {"model": {"padding": "SAME"}},
        "no augmentation": {"augment": {"enabled": False}},
        "no weight decay": {"optimizer": {"weight_decay": 0.0}},
        "constant rate": {"optimizer": {"learning_rate_decay": 1.0}},
    }
    return config

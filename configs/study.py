"""The original's questions, and those it left open, with error bars: ten variants of its recipe.

    python -m mnist_flax.study --config configs/study.py

Meant for a GPU. For the original's three claims alone, on a CPU, see configs/claims.py.
"""

from ml_collections import ConfigDict

from configs import claims


def get_config() -> ConfigDict:
    """Returns the study of the three claims with more variants, by the same protocol."""
    config = claims.get_config()
    config.study.num_seeds = 10
    config.study.variants.update(
        {
            "group norm": {"model": {"norm": "group"}},
            "no norm": {"model": {"norm": "none"}},
            "norm after ReLU": {"model": {"norm_position": "after"}},
            "average pooling": {"model": {"downsample": "avg"}},
            "SAME padding": {"model": {"padding": "SAME"}},
            "no weight decay": {"optimizer": {"weight_decay": 0.0}},
            "constant rate": {"optimizer": {"learning_rate_decay": 1.0}},
        }
    )
    return config

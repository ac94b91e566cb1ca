"""The original's three claims at its own size: strided convolution, batch norm, augmentation.

The protocol, written before the first replica ended, and the results: docs/results/claims.md.
A replica takes about 25 minutes alone on 2 cores of an AMD EPYC with AVX2.

    python -m mnist_flax.study --config configs/claims.py --workdir=runs/claims
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the default recipe, and a variant for each claim."""
    config = default.get_config()
    config.study.num_seeds = 5
    config.study.num_final_epochs = 5  # one epoch of this recipe swings by 0.1 points
    config.study.variants = {
        "max pooling": {"model": {"downsample": "max"}},
        "layer norm": {"model": {"norm": "layer"}},
        "no augmentation": {"augment": {"enabled": False}},
    }
    return config

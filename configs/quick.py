"""A narrower network and fewer epochs: a trained model and all pictures in minutes on a laptop."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the default configuration, made small."""
    config = default.get_config()
    config.num_epochs = 3
    config.batch_size = 32
    config.augment.translation = 0.08
    config.model.channels = ((8, 8), (16, 32), (64,))
    config.optimizer.learning_rate = 0.006
    config.optimizer.learning_rate_decay = 0.5
    return config

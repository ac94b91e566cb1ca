"""Adam with exponential decay, as optax transformations."""

import jax
import optax
from ml_collections import ConfigDict


def create_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step: `learning_rate * learning_rate_decay ** epoch`, epochs from 0.

    Args:
      config: the group `optimizer` of a configuration.
      steps_per_epoch: the last, smaller batch counted.
    """

    def schedule(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        # In integers: a rounded quotient, as of optax.exponential_decay, puts some epochs a step
        # late, those of 41 steps for one.
        return config.learning_rate * config.learning_rate_decay ** (step // steps_per_epoch)

    return schedule


def create_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015, arXiv 1412.6980), decayed weights included.

    Weight decay is coupled, `weight_decay * parameters` added to the gradient as
    `torch.optim.Adam` does; with `config.decoupled` it is added behind Adam's scaling (AdamW,
    Loshchilov and Hutter, 2019, arXiv 1711.05101). All parameters decay, biases too.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    decay = optax.add_decayed_weights(config.weight_decay)
    order = (adam, decay) if config.decoupled else (decay, adam)
    return optax.chain(*order, optax.scale_by_learning_rate(schedule))

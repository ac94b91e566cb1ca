"""Adam and its learning rate's schedules, as optax transformations."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def create_schedule(config: ConfigDict, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Learning rate by step: `learning_rate` times a factor.

    'exponential': `learning_rate_decay ** epoch`, epochs from 0. Down to 0 over the whole run, at
    `t` from 0 to 1: 'linear', `1 - t`, and 'cosine', `(1 + cos(pi t)) / 2` (Loshchilov and Hutter,
    2017, arXiv 1608.03983). Whichever it is, the first `warmup` of all steps take the rate up from
    0, by a line, and `t` runs over those that are left: so 'linear' is a one-cycle schedule (Smith
    and Topin, 2018, arXiv 1708.07120).

    Args:
      config: the group `optimizer` of a configuration.
      steps_per_epoch: the last, smaller batch counted.
      num_epochs: of the whole run.
    """
    num_steps = steps_per_epoch * num_epochs
    warmup_steps = round(config.warmup * num_steps)

    def factor(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        if config.schedule == "exponential":
            # In integers: a rounded quotient, as of optax.exponential_decay, puts some epochs a
            # step late, those of 41 steps for one.
            return config.learning_rate_decay ** (step // steps_per_epoch)
        t = jnp.clip((step - warmup_steps) / max(num_steps - warmup_steps, 1), 0, 1)
        return 1 - t if config.schedule == "linear" else (1 + jnp.cos(jnp.pi * t)) / 2

    def schedule(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        rate = config.learning_rate * factor(step)
        # The first step has a rate already: one of 0 would be a step for nothing.
        return rate * jnp.minimum((step + 1) / warmup_steps, 1) if warmup_steps else rate

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

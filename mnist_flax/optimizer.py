"""Adam and its learning rate schedules, as optax transformations."""

import optax
from ml_collections import ConfigDict

from mnist_flax.errors import check_choice

SCHEDULES = ("exponential", "linear", "cosine")


def create_schedule(config: ConfigDict, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    It rises linearly over the first `warmup` (0..1) of all steps, then follows `schedule`.
    'exponential' multiplies it by `learning_rate_decay` at the end of every epoch; 'linear' and
    'cosine' (Loshchilov and Hutter, 2017, arXiv 1608.03983) fall to 0 at the end of the run.
    'linear' with a warm-up is a one-cycle schedule (Smith and Topin, 2018, arXiv 1708.07120).

    Raises:
      UserError: `config.schedule` is unknown.
    """
    check_choice("schedule", config.schedule, SCHEDULES)
    rate, num_steps = config.learning_rate, steps_per_epoch * num_epochs
    warmup_steps = round(config.warmup * num_steps)
    steps_left = max(num_steps - warmup_steps, 1)
    schedule = {
        "exponential": optax.constant_schedule(rate),
        "linear": optax.linear_schedule(rate, 0, steps_left),
        "cosine": optax.cosine_decay_schedule(rate, steps_left),
    }[config.schedule]
    if warmup_steps:
        # Starts above 0: a first step with rate 0 would be wasted.
        rise = optax.linear_schedule(rate / warmup_steps, rate, warmup_steps - 1)
        schedule = optax.join_schedules([rise, schedule], [warmup_steps])
    if config.schedule != "exponential":
        return schedule
    # In integers: optax.exponential_decay divides floats, so that some epochs end late.
    decay = config.learning_rate_decay
    return lambda step: schedule(step) * decay ** (step // steps_per_epoch)


def create_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns Adam (Kingma and Ba, 2015, arXiv 1412.6980) with weight decay.

    Weight decay is coupled: `weight_decay * parameters` is added to the gradient, as in
    `torch.optim.Adam`. With `config.decoupled` it is added after Adam's scaling (AdamW,
    Loshchilov and Hutter, 2019, arXiv 1711.05101). All parameters decay, including biases.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    decay = optax.add_decayed_weights(config.weight_decay)
    order = (adam, decay) if config.decoupled else (decay, adam)
    return optax.chain(*order, optax.scale_by_learning_rate(schedule))

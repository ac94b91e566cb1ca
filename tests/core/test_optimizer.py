import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from mnist_flax.errors import UserError
from mnist_flax.optimizer import create_optimizer, create_schedule


def test_schedule_is_a_staircase_by_epochs():
    schedule = create_schedule(default.get_config().optimizer, steps_per_epoch=30, num_epochs=20)
    rates = [float(schedule(step)) for step in range(61)]
    np.testing.assert_allclose(rates[:30], 0.003, rtol=1e-6)
    np.testing.assert_allclose(rates[30:60], 0.003 * 0.99, rtol=1e-6)
    assert rates[60] == pytest.approx(0.003 * 0.99**2, rel=1e-6)


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 41, 55, 61, 235, 1875])
def test_every_epoch_begins_on_its_step(steps_per_epoch):
    """It is compiled, as in training; a rounded quotient could start an epoch one step late."""
    config = default.get_config().optimizer
    config.learning_rate_decay = 0.5
    schedule = jax.jit(create_schedule(config, steps_per_epoch, 20))
    for epoch in range(1, 20):
        for step, rate in ((-1, 0.5 ** (epoch - 1)), (0, 0.5**epoch)):
            actual = float(schedule(jnp.int32(epoch * steps_per_epoch + step)))
            assert actual == pytest.approx(0.003 * rate, rel=1e-6)


def test_a_decay_of_one_is_constant():
    config = default.get_config().optimizer
    config.learning_rate_decay = 1.0
    schedule = create_schedule(config, steps_per_epoch=5, num_epochs=20)
    assert float(schedule(1_000)) == pytest.approx(0.003, rel=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedules_end_at_zero(kind):
    """They agree with optax's schedules over 3 epochs of 10 steps."""
    config = default.get_config().optimizer
    config.schedule = kind
    theirs = (
        optax.linear_schedule(0.003, 0, 30)
        if kind == "linear"
        else optax.cosine_decay_schedule(0.003, 30)
    )
    ours = jax.jit(create_schedule(config, 10, 3))
    for step in range(31):
        assert float(ours(step)) == pytest.approx(float(theirs(step)), rel=1e-5, abs=1e-9)


def test_warmup_by_hand():
    """The rate rises during a fifth of 20 steps, then falls linearly to 0 over the other 16."""
    config = default.get_config().optimizer
    config.update(schedule="linear", learning_rate=1.0, warmup=0.2)
    schedule = create_schedule(config, 10, 2)
    rates = [float(schedule(step)) for step in range(21)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(rates[4:], np.linspace(1, 0, 17), atol=1e-6)


def test_warmup_of_the_exponential():
    config = default.get_config().optimizer
    config.warmup = 0.05
    schedule = create_schedule(config, 10, 20)
    assert float(schedule(0)) == pytest.approx(0.003 / 10)
    assert float(schedule(10)) == pytest.approx(0.003 * 0.99, rel=1e-5)


def test_an_unknown_schedule_is_refused():
    config = default.get_config().optimizer
    config.schedule = "exponental"
    with pytest.raises(UserError) as error:
        create_schedule(config, 10, 20)
    assert str(error.value) == (
        "schedule must be one of exponential, linear, cosine, got 'exponental'"
    )


@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
def test_the_first_step_by_hand(decoupled):
    """Adam divides the first gradient by its size; weight decay is added before or after that."""
    config = default.get_config().optimizer
    config.update(weight_decay=0.5, eps=0.25, decoupled=decoupled)
    params, gradient = jnp.array([2.0, -1.0]), jnp.array([0.5, 0.75])
    tx = create_optimizer(config, lambda step: 0.1)
    updates, _ = tx.update(gradient, tx.init(params), params)
    if decoupled:
        expected = -0.1 * (gradient / (jnp.abs(gradient) + 0.25) + 0.5 * params)
    else:
        total = gradient + 0.5 * params
        expected = -0.1 * total / (jnp.abs(total) + 0.25)
    # The second moment is divided by 1 - b2, which keeps only four of float32's seven digits.
    np.testing.assert_allclose(updates, expected, rtol=2e-4)

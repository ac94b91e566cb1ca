import concurrent.futures
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from mnist_flax import data
from mnist_flax import trainer as trainer_lib
from mnist_flax.model import create_model
from mnist_flax.ops import conv
from mnist_flax.step import shuffle
from mnist_flax.trainer import Trainer


class Counter:
    """Stands for the progress display: counts how often the host came back."""

    def __init__(self):
        self.calls = []

    def update(self, images, loss, accuracy):
        self.calls.append((images, loss, accuracy))


def small_dataset(config, num_train, num_test=50):
    whole = data.load(config.dataset, config.seed)
    pick = np.random.default_rng(0).permutation(4_000)[:num_train]
    return whole._replace(
        train=data.Split(whole.train.images[pick], whole.train.labels[pick]),
        test=data.Split(whole.test.images[:num_test], whole.test.labels[:num_test]),
    )


@pytest.fixture
def trainer(tiny_config):
    tiny_config.batch_size = 16
    return Trainer(tiny_config, small_dataset(tiny_config, 16 * 20 + 7))


def test_batches_hold_every_image_once(trainer):
    seen = [index for start, size in trainer.batches for index in range(start, start + size)]
    assert seen == list(range(16 * 20 + 7))
    assert trainer.batches[-1] == (320, 7)


def test_an_epoch_is_plain_steps_over_the_shuffled_images(tiny_config):
    """The compiled epoch against the same in the open: slices, optax, no step function of ours."""
    tiny_config.augment.enabled = False
    tiny_config.batch_size = 32
    # Adam divides a gradient by its own size; without this it would magnify rounding to a step.
    tiny_config.optimizer.eps = 0.1
    dataset = small_dataset(tiny_config, 80)
    trainer = Trainer(tiny_config, dataset)
    initial = jax.tree.map(np.asarray, trainer.state.variables)
    order = shuffle(trainer.state.key, 1, 80)
    apply_fn, tx = create_model(tiny_config.model).apply, trainer.state.tx
    metrics = trainer.train_epoch(1, Counter())

    params, batch_stats = initial["params"], initial["batch_stats"]
    opt_state = tx.init(params)

    @jax.jit
    def step(params, batch_stats, opt_state, images, labels):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, new = apply_fn(variables, images, train=True, mutable=["batch_stats"])
            one_hot = jax.nn.one_hot(labels, 10)
            return -jnp.mean(jnp.sum(one_hot * jax.nn.log_softmax(logits), -1)), (logits, new)

        (loss, (logits, new)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        accuracy = jnp.mean(logits.argmax(-1) == labels)
        return optax.apply_updates(params, updates), new["batch_stats"], opt_state, loss, accuracy

    for index, (start, stop) in enumerate([(0, 32), (32, 64), (64, 80)]):
        part = np.asarray(order[start:stop])
        images = (dataset.train.images[part] / 255 - dataset.mean) / dataset.std
        params, batch_stats, opt_state, loss, accuracy = step(
            params, batch_stats, opt_state, images.astype(np.float32), dataset.train.labels[part]
        )
        np.testing.assert_allclose(metrics.loss[index], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics.accuracy[index], accuracy)
    after = {"params": params, "batch_stats": batch_stats}
    for ours, theirs in zip(
        jax.tree.leaves(trainer.state.variables), jax.tree.leaves(after), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_host_waits_a_few_times_an_epoch(trainer):
    counter = Counter()
    metrics = trainer.train_epoch(1, counter)
    assert metrics.loss.shape == metrics.accuracy.shape == (21,)
    assert len(counter.calls) <= 9
    assert counter.calls[-1][0] == 16 * 20 + 7


def test_waiting_for_a_program_counts_as_compiling(trainer):
    last_step = trainer._steps[7].result()
    waits = []

    class Late(concurrent.futures.Future):
        def result(self, timeout=None):
            if not self.done():
                started = time.perf_counter()
                time.sleep(0.5)
                self.set_result(last_step)
                waits.append(time.perf_counter() - started)
            return super().result(timeout)

    trainer._steps[7] = Late()
    before = trainer.compile_seconds
    started = time.perf_counter()
    trainer.train_epoch(1, Counter())
    elapsed = time.perf_counter() - started
    waited = trainer.compile_seconds - before
    # And for nothing else, the steps under way included.
    assert 0.5 <= sum(waits) <= waited < sum(waits) + 0.2
    assert waited < elapsed


def test_a_program_that_cannot_be_compiled_ends_the_run_at_once(tiny_config, monkeypatch):
    monkeypatch.setattr(trainer_lib, "train_step", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Trainer(tiny_config, small_dataset(tiny_config, 200))


def test_state_buffers_are_donated(trainer):
    before = jax.tree.leaves((trainer.state.params, trainer.state.opt_state))
    trainer.train_epoch(1, Counter())
    assert all(leaf.is_deleted() for leaf in before)


def test_the_same_seed_gives_the_same_run(tiny_config):
    def losses(seed):
        tiny_config.seed = seed
        trainer = Trainer(tiny_config, small_dataset(tiny_config, 128))
        return trainer.train_epoch(1, Counter()).loss

    first, again, other = losses(0), losses(0), losses(1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_validation_images_are_evaluated_and_not_trained_on(tiny_config):
    tiny_config.dataset.validation_size = 500
    trainer = Trainer(tiny_config, data.load(tiny_config.dataset, tiny_config.seed))
    assert sum(size for _, size in trainer.batches) == 3_500
    assert trainer.evaluate("validation").confusion.sum() == 500
    assert trainer.evaluate("test").confusion.sum() == 1_000


def check_loss_curve(config, num_images, monkeypatch):
    """50 steps with the fast convolution and with `nn.Conv`'s own, from the same seed."""
    config.batch_size = num_images // 10
    dataset = small_dataset(config, num_images)
    curves = []
    for primitive in (conv.conv_general_dilated, jax.lax.conv_general_dilated):
        monkeypatch.setattr(conv, "conv_general_dilated", primitive)
        trainer = Trainer(config, dataset)
        epochs = [trainer.train_epoch(epoch, Counter()).loss for epoch in range(1, 6)]
        curves.append(np.concatenate(epochs))
    ours, plain = curves
    assert len(ours) == 50 and ours[-5:].mean() < ours[:5].mean()
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-6)
    # Adam takes as long a step for a gradient of rounding as for any other, and so the curves part:
    # two compilations of the plain one by up to 2e-4 in 5 steps and 4 % in 50 (default network).
    np.testing.assert_allclose(ours[:5], plain[:5], rtol=5e-3)
    np.testing.assert_allclose(ours, plain, rtol=0.1)


def test_loss_curve_is_that_of_the_plain_convolution(tiny_config, monkeypatch):
    check_loss_curve(tiny_config, 640, monkeypatch)


@pytest.mark.slow
def test_loss_curve_of_the_default_network(monkeypatch):
    config = default.get_config()
    config.dataset.source = "sample"
    check_loss_curve(config, 1280, monkeypatch)

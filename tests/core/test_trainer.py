import threading
import time
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from mnist_flax import data, step
from mnist_flax.errors import UserError
from mnist_flax.evaluate import evaluate
from mnist_flax.model import create_model
from mnist_flax.ops import conv
from mnist_flax.runtime import compilation, devices
from mnist_flax.step import StepMetrics
from mnist_flax.trainer import Trainer
from tests.runs import tiny
from tests.small import assert_close, ignore, small_dataset, train

NUM_IMAGES, NUM_HELD_OUT = 16 * 20 + 7, 30


@pytest.fixture(scope="module")
def config():
    config = tiny()
    config.batch_size = 16
    return config


@pytest.fixture(scope="module")
def dataset(config):
    """A data set whose splits are not multiples of the compiled programs' batch sizes."""
    dataset = small_dataset(config, NUM_IMAGES + NUM_HELD_OUT, num_test=130)
    train, validation = data.split_validation(dataset.train, NUM_HELD_OUT, seed=0)
    return dataset._replace(train=train, validation=validation)


@pytest.fixture(scope="module")
def trainer(config, dataset):
    trainer = Trainer(config, dataset)
    trainer.compile()
    return trainer


def test_batches_hold_every_image_once(trainer):
    seen = [index for start, size in trainer.batches for index in range(start, start + size)]
    assert seen == list(range(NUM_IMAGES))
    assert trainer.batches[-1] == (320, 7)


def test_epoch_is_plain_steps_over_the_shuffled_images(tiny_config):
    """The epoch agrees with the same steps written out with slices and optax, without our step."""
    tiny_config.augment.enabled = False
    tiny_config.batch_size = 32
    # Adam divides a gradient by its size; a large eps keeps it from magnifying rounding errors.
    tiny_config.optimizer.eps = 0.1
    dataset = small_dataset(tiny_config, 80)
    trainer = Trainer(tiny_config, dataset)
    trainer.compile()
    state = trainer.create_state(0)
    initial = jax.tree.map(np.asarray, state.variables)
    order = step.shuffle(state.key, 1, 80)
    apply_fn, tx = create_model(tiny_config.model, 10).apply, state.tx
    state, metrics, _ = trainer.train_epoch(state, 1, ignore)

    @jax.jit
    def plain_step(params, batch_stats, opt_state, images, labels):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, new = apply_fn(variables, images, train=True, mutable=["batch_stats"])
            log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -jnp.mean(log_p), new["batch_stats"]

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return loss, optax.apply_updates(params, updates), new, opt_state

    plain = (initial["params"], initial["batch_stats"], tx.init(initial["params"]))
    for index, (start, stop) in enumerate([(0, 32), (32, 64), (64, 80)]):
        part = np.asarray(order[start:stop])
        images = (dataset.train.images[part] / 255 - dataset.mean) / dataset.std
        batch = (images.astype(np.float32), dataset.train.labels[part])
        loss, *plain = plain_step(*plain, *batch)
        np.testing.assert_allclose(metrics.loss[index], loss, rtol=1e-5)
    assert int(state.step) == 3
    assert_close(state.variables, {"params": plain[0], "batch_stats": plain[1]}, 1e-4)


def test_on_step_is_called_for_every_step_and_waits_for_a_few(trainer):
    """Calls of `on_step` that waited have the loss and accuracy of their step; the others None."""
    calls = []
    state, on_step = trainer.create_state(0), lambda *args: calls.append(args)
    _, metrics, seconds = trainer.train_epoch(state, 1, on_step)
    assert metrics.loss.shape == metrics.accuracy.shape == (21,)
    assert metrics.loss.dtype == np.float32 and seconds > 0
    assert [images for images, _ in calls] == [*range(16, 321, 16), NUM_IMAGES]
    waits = {index: of_step for index, (_, of_step) in enumerate(calls) if of_step is not None}
    assert 2 <= len(waits) <= 8 and max(waits) == 20
    for index, of_step in waits.items():
        assert of_step.loss == pytest.approx(metrics.loss[index])
        assert of_step.accuracy == pytest.approx(metrics.accuracy[index])


def test_on_step_may_stop_the_epoch(trainer):
    def stop(images, metrics):
        raise UserError(f"after {images}")

    with pytest.raises(UserError, match="after 16"):
        trainer.train_epoch(trainer.create_state(0), 1, stop)


def test_waiting_for_a_program_counts_as_compiling(config, dataset, monkeypatch):
    """The time counts as compiling and not as training."""
    late, programs, start = Future(), {}, compilation.start

    def start_late(jobs):
        programs.update(start(jobs))
        return {**programs, 7: late}

    monkeypatch.setattr(compilation, "start", start_late)
    trainer = Trainer(config, dataset)
    trainer.compile()
    state, before = trainer.create_state(0), trainer.compile_seconds
    threading.Timer(1, lambda: late.set_result(programs[7].result())).start()
    started = time.perf_counter()
    _, _, seconds = trainer.train_epoch(state, 1, ignore)
    elapsed, waited = time.perf_counter() - started, trainer.compile_seconds - before
    assert waited > 0.3
    assert seconds == pytest.approx(elapsed - waited, abs=0.05)


def test_program_that_cannot_be_compiled_ends_the_run_at_once(tiny_config, monkeypatch):
    monkeypatch.setattr(step, "train_step", lambda *args, **options: 1 / 0)
    trainer = Trainer(tiny_config, small_dataset(tiny_config, 200))
    with pytest.raises(ZeroDivisionError):
        trainer.compile()


def test_batch_size_that_the_images_do_not_fill_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"batch_size .*\b63 .* got 64"):
        Trainer(tiny_config, small_dataset(tiny_config, 63))


def test_state_buffers_are_donated(trainer):
    state = trainer.create_state(0)
    before = jax.tree.leaves((state.params, state.opt_state))
    trainer.train_epoch(state, 1, ignore)
    assert all(leaf.is_deleted() for leaf in before)


def test_the_same_seed_gives_the_same_run(trainer):
    first, again, other = (
        train(trainer, trainer.create_state(seed), 1)[1].loss for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_image_is_predicted_in_its_place(trainer, dataset, config):
    """The logits are those of the bare network; the padding of a last batch is cut off again."""
    state = trainer.create_state(3)
    network = create_model(config.model, 10)
    for name, split in dataset.eval_splits.items():
        logits = trainer.predict(state, name)
        assert logits.shape == (len(split), 10) and logits.dtype == np.float32
        images = data.normalize(split.images, dataset.mean, dataset.std)
        expected = network.apply(state.variables, images, train=False)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        result, by_hand = trainer.evaluate(state)[name], evaluate(logits, split.labels)
        assert (result.loss, result.accuracy) == (by_hand.loss, by_hand.accuracy)
        np.testing.assert_array_equal(result.confusion, by_hand.confusion)


@pytest.mark.parametrize(("backend", "size"), [("cpu", 100), ("gpu", 2_000)])
def test_cpu_predicts_fewer_images_at_a_time(monkeypatch, backend, size):
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    assert devices.predicted_at_a_time() == size


def test_record_by_hand(trainer):
    """Every image counts alike, so the last batch of 7 images counts less than those of 16."""
    loss, accuracy = np.zeros(21, np.float32), np.ones(21, np.float32)
    loss[-1], accuracy[-1] = 327, 0
    logits = np.log([[0.75, 0.25], [0.5, 0.5]])
    results = {"test": evaluate(logits, np.array([0, 1]))}
    record = trainer.record(2, StepMetrics(loss, accuracy), results, seconds=3.0)
    assert record == {
        "epoch": 2,
        "step": 42,
        "train/loss": pytest.approx(7),
        "train/accuracy": pytest.approx(320 / 327),
        "test/loss": pytest.approx(-np.log([0.75, 0.5]).mean()),
        "test/accuracy": 0.5,
        "learning_rate": pytest.approx(0.003 * 0.99),
        "seconds": 3.0,
        "images_per_second": 109.0,
    }


def check_loss_curve(config, num_images, monkeypatch):
    """Compares 50 steps with the fast convolution and with XLA's own, from the same seed.

    Adam divides a gradient by its size, and so turns the rounding errors of a gradient near 0 into
    whole steps, unless epsilon is larger. With a small epsilon, or with augmentation, where
    rounding decides which pixel is read, even two compilations of one program differ by some
    percent.
    """
    config.augment.enabled = False
    config.optimizer.eps = 0.01
    config.batch_size = num_images // 10
    dataset = small_dataset(config, num_images)
    curves = []
    for primitive in (conv.conv_general_dilated, jax.lax.conv_general_dilated):
        monkeypatch.setattr(conv, "conv_general_dilated", primitive)
        trainer = Trainer(config, dataset)
        trainer.compile()
        curves.append(train(trainer, trainer.create_state(0), 5)[1].loss)
    ours, plain = curves
    fallen = 1 - plain[-5:].mean() / plain[:5].mean()
    assert len(ours) == 50 and fallen > 0.02
    # One step is as exact as a convolution (see test_conv). Over all 50 steps, an error of a
    # twentieth in the gradients would show in the loss.
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(ours, plain, rtol=fallen / 20)


def test_loss_curve_is_that_of_the_plain_convolution(tiny_config, monkeypatch):
    check_loss_curve(tiny_config, 640, monkeypatch)


@pytest.mark.slow
def test_loss_curve_of_the_default_network(monkeypatch):
    config = default.get_config()
    config.dataset.source = "sample"
    check_loss_curve(config, 1280, monkeypatch)

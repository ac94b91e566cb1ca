import dataclasses
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax import optimizer, step
from mnist_flax.errors import UserError
from mnist_flax.run.checkpoint import Checkpoints
from mnist_flax.run.history import History
from mnist_flax.runtime.files import explain
from tests.runs import python, tiny

STEPS = 3  # per epoch


def record(epoch, accuracy):
    return {"epoch": epoch, "step": epoch * STEPS, "test/loss": 1 / 3, "test/accuracy": accuracy}


def histories(*accuracies):
    """Returns the history before the first epoch, and after each epoch."""
    found = [History("run", "digits")]
    for epoch, accuracy in enumerate(accuracies, 1):
        losses = np.random.default_rng(epoch).random(STEPS, np.float32)
        found.append(found[-1].extended(record(epoch, accuracy), losses, losses / 3))
    return found


def plain(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(plain(mine), plain(other))


def create(config):
    """Returns the state before the first step."""
    schedule = optimizer.create_schedule(config.optimizer, STEPS, 1)
    return jax.jit(lambda seed: step.create_state(seed, config, (28, 28, 1), 10, schedule))(0)


def like(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def save(folder, state, *accuracies, keep=2):
    checkpoints = Checkpoints(folder, keep)
    for history in histories(*accuracies):
        checkpoints.save(state, history)
    return history


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def state():
    return create(tiny())


@pytest.mark.parametrize(("norm", "decoupled"), [("batch", False), ("none", True), ("layer", True)])
def test_what_is_saved_is_restored(tiny_config, tmp_path, norm, decoupled):
    tiny_config.model.norm = norm
    tiny_config.optimizer.decoupled = decoupled
    state = create(tiny_config).replace(step=jnp.int32(6))
    history = save(tmp_path / "c", state, 0.5, 0.75)
    restored, past = Checkpoints(tmp_path / "c", 2).restore(like(state), True, print)
    assert_same(restored, state)
    assert restored.key.sharding == state.key.sharding
    for field in dataclasses.fields(history):
        np.testing.assert_array_equal(getattr(past, field.name), getattr(history, field.name))
    assert past.losses.dtype == np.float32 and past.epoch == 2 and past.best["epoch"] == 2


def test_there_is_a_state_before_the_first_epoch(state, tmp_path):
    save(tmp_path, state)
    restored, past = Checkpoints(tmp_path, 2).restore(like(state), False, print)
    assert_same(restored, state)
    assert past.epoch == 0 and past.best is None and past.run_id == "run"


@pytest.mark.parametrize(
    ("accuracies", "keep", "kept"),
    [
        ((0.1, 0.9, 0.3, 0.4, 0.5), 2, ["2", "4", "5"]),
        ((0.1, 0.9, 0.3, 0.4, 0.9), 1, ["2", "5"]),  # the first of two equally good ones
        ((0.1, 0.2, 0.3, 0.4, 0.5), 2, ["4", "5"]),
    ],
)
def test_the_newest_and_the_best_are_kept(state, tmp_path, accuracies, keep, kept):
    save(tmp_path, state, *accuracies, keep=keep)
    assert names(tmp_path) == kept


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ((0.1, 0.9, 0.3), (0.4, 0.5), ["2", "5"]),
        ((0.1, 0.9, 0.3), (0.9, 0.5), ["2", "5"]),  # the first of two equally good ones
        ((0.1, 0.5, 0.3), (0.9, 0.4), ["4", "5"]),
    ],
)
def test_the_best_of_an_earlier_process_is_kept(state, tmp_path, before, after, kept):
    save(tmp_path, state, *before, keep=1)
    checkpoints = Checkpoints(tmp_path, 1)
    _, history = checkpoints.restore(like(state), True, print)
    assert history.epoch == len(before)
    for past in histories(*before, *after)[len(before) + 1 :]:
        checkpoints.save(state, past)
    assert names(tmp_path) == kept


def test_best_is_by_validation_where_there_is_any():
    records = [
        {"epoch": 1, "validation/accuracy": 0.9, "test/accuracy": 0.1},
        {"epoch": 2, "validation/accuracy": 0.8, "test/accuracy": 0.2},
    ]
    assert History("", "", tuple(records)).best["epoch"] == 1


def test_any_damaged_file_is_noticed(state, tmp_path):
    """Each file of the newest checkpoint in turn has a flipped bit, is cut, emptied or removed."""
    chance = random.Random(0)
    whole = tmp_path / "whole"
    save(whole, state, 0.5, 0.75)
    files = [path.relative_to(whole) for path in (whole / "2").rglob("*") if path.is_file()]
    assert len(files) > 10
    kinds = [("flip", "cut", "empty", "gone")[index % 4] for index in range(len(files))]
    for name, kind in zip(files, kinds, strict=True):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        content = bytearray((folder / name).read_bytes())
        if kind == "gone":
            (folder / name).unlink()
        else:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            half = len(content) // 2
            (folder / name).write_bytes(
                {"flip": content, "cut": content[:half], "empty": b""}[kind]
            )
        said = []
        restored, past = Checkpoints(folder, 2).restore(like(state), True, said.append)
        assert past.epoch == 1, (name, kind)
        assert_same(restored, state)
        assert len(said) == 1 and said[0].startswith(
            f"warning: the checkpoint {folder}/2 is damaged: "
        )
        # The damaged checkpoint is kept, and its epoch can be saved again.
        assert names(folder) == ["1", "2.damaged"]


def test_it_is_an_error_if_none_can_be_read(state, tmp_path):
    save(tmp_path, state, 0.5, 0.75)
    for epoch in ("1", "2"):
        (tmp_path / epoch / "details" / "metadata").unlink()
    with pytest.raises(
        UserError, match=r"no checkpoint in .* can be read \(2: details/metadata is"
    ):
        Checkpoints(tmp_path, 2).restore(like(state), False, print)
    assert names(tmp_path) == ["1", "2"]


def test_it_is_an_error_if_there_is_none_though_an_epoch_was_finished(state, tmp_path):
    with pytest.raises(UserError, match="there is none"):
        Checkpoints(tmp_path / "c", 2).restore(like(state), True, print)
    assert Checkpoints(tmp_path / "c", 2).restore(like(state), False, print) is None


def test_a_first_one_that_was_interrupted_is_not_damaged(state, tmp_path):
    save(tmp_path, state)
    (tmp_path / "0" / "files.sha256").unlink()
    said = []
    assert Checkpoints(tmp_path, 2).restore(like(state), False, said.append) is None
    assert said == []
    save(tmp_path, state, 0.5)


def test_another_network_does_not_fit(tmp_path):
    """This runs in its own process, because coroutines that Orbax leaves warn when freed."""
    script = f"""
import pathlib
from mnist_flax.errors import UserError
from mnist_flax.run.checkpoint import Checkpoints
from tests.run.test_checkpoint import STEPS, create, like, save
from tests.runs import tiny

folder, config = pathlib.Path({str(tmp_path)!r}), tiny()
save(folder, create(config), 0.5)
config.model.channels = ((4,), (16,))
try:
    Checkpoints(folder, 2).restore(like(create(config)), True, print)
except UserError as error:
    print(error)
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"no checkpoint in {tmp_path} can be read (1: ")


def test_what_cannot_be_written_is_reported(state, tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints", 2)
    with pytest.raises(OSError, match="Not a directory") as error:
        checkpoints.save(state, *histories())
    assert explain(error.value) == "Not a directory"

import errno
import hashlib
import os
import random

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from mnist_flax.errors import UserError
from mnist_flax.history import History
from mnist_flax.run.checkpoint import Checkpoints, DamagedError, read
from tests.runs import files, read_checkpoint, tiny
from tests.small import create_state

CONFIG, ABOUT = {"seed": 1, "model": {"channels": [[4], [8]]}}, {"title": "digits"}
STEPS = 3  # per epoch


def histories(*accuracies):
    """Returns the history before the first epoch, and after each epoch."""
    found = [History("run", "digits")]
    for epoch, accuracy in enumerate(accuracies, 1):
        losses = np.random.default_rng(epoch).random(STEPS, np.float32)
        record = {"epoch": epoch, "step": epoch * STEPS, "test/accuracy": accuracy}
        found.append(found[-1].extended(record, {"loss": losses, "accuracy": losses / 3}))
    return found


def create(config):
    """Returns the state before the first step."""
    return jax.jit(lambda: create_state(config, 0, STEPS))()


def like(state):
    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(shape, state)


def save(folder, state, *accuracies, keep=2):
    for history in histories(*accuracies):
        Checkpoints(folder, keep).save(state, history, CONFIG, ABOUT)
    return history


def restore(folder, state, must_exist=True):
    """Returns the restored state and history, and the warnings."""
    said = []
    return Checkpoints(folder, 2).restore(like(state), must_exist, said.append), said


def refusal(folder, state, must_exist=True):
    """Returns the line of a folder that cannot be restored, which stays as it is."""
    before = files(folder)
    with pytest.raises(UserError) as error:
        restore(folder, state, must_exist)
    assert not isinstance(error.value, DamagedError) and files(folder) == before
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def plain(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(plain(mine), plain(other))


@pytest.fixture(scope="module")
def state():
    return create(tiny())


@pytest.mark.parametrize(("norm", "decoupled"), [("batch", False), ("none", True), ("layer", True)])
def test_restores_what_was_saved(tiny_config, tmp_path, norm, decoupled):
    tiny_config.model.norm, tiny_config.optimizer.decoupled = norm, decoupled
    state = create(tiny_config).replace(step=jnp.int32(6))
    history = save(tmp_path, state, 0.5, 0.75)
    (restored, past), said = restore(tmp_path, state)
    assert_same(restored, state)
    assert_same(past.steps, history.steps)
    assert restored.key.sharding == state.key.sharding and said == []
    assert (past.run_id, past.data, past.records) == ("run", "digits", history.records)
    checkpoint = read(tmp_path / "2.msgpack")
    assert (checkpoint.config, checkpoint.about) == (CONFIG, ABOUT)


def test_file_is_readable_without_our_code(state, tmp_path):
    history = save(tmp_path, state, 0.5)
    content = read_checkpoint(tmp_path / "1.msgpack")
    assert_same(content["state"]["params"], dict(state.params))
    np.testing.assert_array_equal(content["state"]["key"], plain(state.key))
    assert_same(content["steps"], dict(history.steps))
    records = list(history.records)
    details = {"run_id": "run", "data": "digits", "records": records}
    assert content["details"] == {**details, "config": CONFIG, "about": ABOUT}


def test_state_before_the_first_epoch(state, tmp_path):
    assert restore(tmp_path / "new", state, must_exist=False) == (None, [])
    save(tmp_path, state)
    (restored, past), _ = restore(tmp_path, state)
    assert_same(restored, state)
    assert (past.epoch, past.best, past.run_id) == (0, None, "run")


@pytest.mark.parametrize(
    ("before", "after", "keep", "kept"),
    [
        ((0.1, 0.9, 0.3, 0.4, 0.5), (), 2, [2, 4, 5]),
        ((0.1, 0.9, 0.3, 0.4, 0.9), (), 1, [2, 5]),  # the first of two equally good ones
        ((0.1, 0.2, 0.3, 0.4, 0.5), (), 2, [4, 5]),
        ((0.1, 0.9, 0.3), (0.9, 0.5), 1, [2, 5]),  # the best of an earlier process
    ],
)
def test_keeps_the_newest_and_the_best(state, tmp_path, before, after, keep, kept):
    save(tmp_path, state, *before, keep=keep)
    for past in histories(*before, *after)[len(before) + 1 :]:
        Checkpoints(tmp_path, keep).save(state, past, CONFIG, ABOUT)
    assert Checkpoints(tmp_path, keep).epochs() == kept
    assert files(tmp_path).keys() == {f"{epoch}.msgpack" for epoch in kept}


def test_best_is_by_validation_where_there_is_any():
    pairs = enumerate([(0.9, 0.1), (0.8, 0.2)], 1)
    records = [{"epoch": e, "validation/accuracy": v, "test/accuracy": t} for e, (v, t) in pairs]
    assert History("", "", tuple(records)).best["epoch"] == 1


def test_damage_to_any_bit_is_noticed(state, tmp_path):
    """Every bit at either end is flipped, and some between; the file is cut, or goes on."""
    save(tmp_path, state)
    path, chance = tmp_path / "0.msgpack", random.Random(0)
    whole = path.read_bytes()
    places = [*range(160), *range(-100, 0), *chance.sample(range(len(whole)), 50)]
    damaged = [b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0", whole + whole]
    for place, bit in ((place, bit) for place in places for bit in range(8)):
        content = bytearray(whole)
        content[place] ^= 1 << bit
        damaged.append(content)
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DamagedError):
            read(path)


def test_damaged_newest_is_reported_and_the_one_before_taken(state, tmp_path):
    save(tmp_path, state, 0.5, 0.75)
    newest = tmp_path / "2.msgpack"
    newest.write_bytes(newest.read_bytes()[:-1])
    (restored, past), (line,) = restore(tmp_path, state)
    assert past.epoch == 1 and str(newest) in line and "epoch 1" in line
    assert_same(restored, state)
    save(tmp_path, state, 0.5, 0.75)
    assert restore(tmp_path, state)[0][1].epoch == 2


def test_no_usable_checkpoint_is_an_error(state, tmp_path):
    refusal(tmp_path, state)
    save(tmp_path, state, 0.5, 0.75)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    refusal(tmp_path, state, must_exist=False)


def test_files_of_others_are_ignored(state, tmp_path):
    save(tmp_path, state, 0.5, 0.75)
    others = {".DS_Store", "._3.msgpack", ".nfs0001", "Thumbs.db", "3.msgpack.partial"}
    for name in others:
        (tmp_path / name).write_bytes(b"\xff")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (_, past), said = restore(tmp_path, state)
    assert past.epoch == 2 and said == []
    save(tmp_path, state, 0.5, 0.75, 0.8, 0.9)
    assert files(tmp_path).keys() > others - {"3.msgpack.partial"}


def test_file_that_cannot_be_opened_is_not_damaged(state, tmp_path):
    """Root may open every file, but none that is a link to itself."""
    save(tmp_path, state, 0.5, 0.75)
    newest = tmp_path / "2.msgpack"
    newest.unlink()
    newest.symlink_to(newest)
    line = refusal(tmp_path, state)
    assert os.strerror(errno.ELOOP) in line and str(newest) in line


def test_older_form_is_one_line(state, tmp_path):
    (tmp_path / "4" / "state").mkdir(parents=True)
    refusal(tmp_path, state)


def test_form_of_a_later_version_is_not_damage(state, tmp_path):
    content = msgpack.packb({"format": 2, "news": "a later version's"})
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "1.msgpack").write_bytes(msgpack.packb({"content": content, "sha256": digest}))
    assert "1.msgpack" in refusal(tmp_path, state)

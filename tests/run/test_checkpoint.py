import dataclasses
import errno
import hashlib
import os
import pathlib
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

STEPS = 3  # per epoch
CONFIG, ABOUT = {"seed": 1, "model": {"channels": [[4], [8]]}}, {"title": "digits"}


def histories(*accuracies):
    """Returns the history before the first epoch, and after each epoch."""
    found = [History("run", "digits")]
    for epoch, accuracy in enumerate(accuracies, 1):
        record = {"epoch": epoch, "step": epoch * STEPS, "test/loss": 1 / 3}
        losses = np.random.default_rng(epoch).random(STEPS, np.float32)
        steps = {"loss": losses, "accuracy": losses / 3}
        found.append(found[-1].extended(record | {"test/accuracy": accuracy}, steps))
    return found


def create(config):
    """Returns the state before the first step."""
    return jax.jit(lambda: create_state(config, 0, STEPS))()


def like(state):
    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(shape, state)


def save(folder, state, *accuracies, keep=2):
    checkpoints = Checkpoints(folder, keep)
    for history in histories(*accuracies):
        checkpoints.save(state, history, CONFIG, ABOUT)
    return history


def restore(folder, state, must_exist=True):
    """Returns the restored state and history, and the warnings."""
    said = []
    return Checkpoints(folder, 2).restore(like(state), must_exist, said.append), said


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
    history = save(tmp_path / "c", state, 0.5, 0.75)
    (restored, past), said = restore(tmp_path / "c", state)
    assert_same(restored, state)
    assert restored.key.sharding == state.key.sharding and said == []
    for field in dataclasses.fields(History)[:3]:
        assert getattr(past, field.name) == getattr(history, field.name)
    assert past.epoch == 2 and past.best["epoch"] == 2
    for name in ("loss", "accuracy"):
        assert past.steps[name].dtype == np.float32
        np.testing.assert_array_equal(past.steps[name], history.steps[name])
    checkpoint = read(tmp_path / "c" / "2.msgpack")
    assert (checkpoint.config, checkpoint.about) == (CONFIG, ABOUT)


def test_file_is_readable_without_our_code(state, tmp_path):
    history = save(tmp_path, state, 0.5)
    content = read_checkpoint(tmp_path / "1.msgpack")
    assert_same(content["state"]["params"], dict(state.params))
    np.testing.assert_array_equal(content["state"]["key"], plain(state.key))
    np.testing.assert_array_equal(content["steps"]["loss"], history.steps["loss"])
    details = content["details"]
    assert (details["run_id"], details["data"]) == ("run", "digits")
    assert tuple(details["records"]) == history.records
    assert (details["config"], details["about"]) == (CONFIG, ABOUT)


def test_state_before_the_first_epoch(state, tmp_path):
    assert restore(tmp_path / "new", state, must_exist=False) == (None, [])
    save(tmp_path, state)
    (restored, past), _ = restore(tmp_path, state, must_exist=False)
    assert_same(restored, state)
    assert past.epoch == 0 and past.best is None and past.run_id == "run"


@pytest.mark.parametrize(
    ("before", "after", "keep", "kept"),
    [
        ((0.1, 0.9, 0.3, 0.4, 0.5), (), 2, [2, 4, 5]),
        ((0.1, 0.9, 0.3, 0.4, 0.9), (), 1, [2, 5]),  # the first of two equally good ones
        ((0.1, 0.2, 0.3, 0.4, 0.5), (), 2, [4, 5]),
        ((0.1, 0.9, 0.3), (0.9, 0.5), 1, [2, 5]),  # the best of an earlier process
        ((0.1, 0.5, 0.3), (0.9, 0.4), 1, [4, 5]),
    ],
)
def test_keeps_the_newest_and_the_best(state, tmp_path, before, after, keep, kept):
    save(tmp_path, state, *before, keep=keep)
    checkpoints = Checkpoints(tmp_path, keep)
    _, history = checkpoints.restore(like(state), True, print)
    assert history.epoch == len(before)
    for past in histories(*before, *after)[len(before) + 1 :]:
        checkpoints.save(state, past, CONFIG, ABOUT)
    assert checkpoints.epochs() == kept
    assert files(tmp_path).keys() == {f"{epoch}.msgpack" for epoch in kept}


def test_best_is_by_validation_where_there_is_any():
    records = [
        {"epoch": 1, "validation/accuracy": 0.9, "test/accuracy": 0.1},
        {"epoch": 2, "validation/accuracy": 0.8, "test/accuracy": 0.2},
    ]
    assert History("", "", tuple(records)).best["epoch"] == 1


def test_damage_to_any_bit_is_noticed(state, tmp_path):
    """Every bit at either end is flipped, and some between; the file is cut, or goes on."""
    save(tmp_path, state)
    path, chance = tmp_path / "0.msgpack", random.Random(0)
    whole = path.read_bytes()
    ends = [*range(160), *range(len(whole) - 100, len(whole))]
    flips = [(at, bit) for at in ends for bit in range(8)]
    flips += [(chance.randrange(len(whole)), chance.randrange(8)) for _ in range(300)]
    for at, bit in flips:
        content = bytearray(whole)
        content[at] ^= 1 << bit
        path.write_bytes(content)
        with pytest.raises(DamagedError):
            read(path)
    for content in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0", whole + whole):
        path.write_bytes(content)
        with pytest.raises(DamagedError):
            read(path)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_newest_is_reported_and_the_one_before_taken(state, tmp_path, damage):
    save(tmp_path, state, 0.5, 0.75)
    newest = tmp_path / "2.msgpack"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"flip": content, "cut": content[:99], "empty": b""}[damage])
    (restored, past), said = restore(tmp_path, state)
    assert past.epoch == 1
    assert_same(restored, state)
    assert len(said) == 1 and str(newest) in said[0] and "epoch 1" in said[0]
    save(tmp_path, state, 0.5, 0.75)
    assert restore(tmp_path, state)[0][1].epoch == 2


def test_no_usable_checkpoint_is_an_error(state, tmp_path):
    save(tmp_path / "c", state, 0.5, 0.75)
    for path in (tmp_path / "c").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    before = files(tmp_path)
    for folder, must_exist in (("c", False), ("c", True), ("none", True)):
        with pytest.raises(UserError) as error:
            restore(tmp_path / folder, state, must_exist)
        assert str(tmp_path / folder) in str(error.value) and "\n" not in str(error.value)
    assert files(tmp_path) == before


def test_files_of_others_are_ignored(state, tmp_path):
    save(tmp_path, state, 0.5, 0.75)
    others = [".DS_Store", "._3.msgpack", ".nfs0001", "Thumbs.db", "3.msgpack.partial", "3 (1).txt"]
    for name in others:
        (tmp_path / name).write_bytes(b"\xff")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (_, past), said = restore(tmp_path, state)
    assert past.epoch == 2 and said == []
    save(tmp_path, state, 0.5, 0.75, 0.8, 0.9)
    assert {path.name for path in tmp_path.iterdir()} >= {*others[:-2], others[-1], "4.msgpack"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_file_that_cannot_be_opened_is_not_damaged(state, tmp_path, monkeypatch, number):
    """Root may open every file, so fake the system's answer."""
    save(tmp_path, state, 0.5, 0.75)

    def refuse(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    with pytest.raises(UserError) as error:
        restore(tmp_path, state)
    assert not isinstance(error.value, DamagedError)
    assert os.strerror(number) in str(error.value) and "2.msgpack" in str(error.value)


def test_older_form_is_one_line(state, tmp_path):
    for epoch in ("3", "4"):
        (tmp_path / epoch / "state").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        restore(tmp_path, state)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_form_of_another_version_is_not_damage(state, tmp_path):
    save(tmp_path, state, 0.5)
    path = tmp_path / "1.msgpack"
    content = msgpack.packb({"format": 2, "news": "the form of a later version"})
    path.write_bytes(
        msgpack.packb({"content": content, "sha256": hashlib.sha256(content).hexdigest()})
    )
    with pytest.raises(UserError) as error:
        restore(tmp_path, state)
    assert not isinstance(error.value, DamagedError) and str(path) in str(error.value)


@pytest.mark.parametrize("name", ["a[1]*?", "{x} %d%", "C: \\é\n'\"", os.fsdecode(b"\xff\xfe")])
def test_folder_with_any_name(state, tmp_path, name):
    save(tmp_path / name, state, 0.5)
    (restored, past), said = restore(tmp_path / name, state)
    assert past.epoch == 1 and said == []
    assert_same(restored, state)


def test_what_cannot_be_written_is_one_line(state, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        save(tmp_path / "file" / "checkpoints", state)
    assert os.strerror(errno.ENOTDIR) in str(error.value) and "0.msgpack" in str(error.value)

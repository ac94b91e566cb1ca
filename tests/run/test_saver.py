import threading

import jax
import pytest

from mnist_flax.errors import UserError
from mnist_flax.run import saver as saver_lib
from mnist_flax.run.checkpoint import Checkpoints
from mnist_flax.run.saver import Saver
from tests.run.test_checkpoint import assert_same, create, histories, like
from tests.runs import tiny


@pytest.fixture(scope="module")
def state():
    return create(tiny())


def test_a_checkpoint_is_complete_when_that_is_announced(state, tmp_path):
    first, history = histories(0.5)
    saver = Saver(tmp_path, 2)
    found = []

    def then():
        assert threading.current_thread() is not threading.main_thread()
        found.append(Checkpoints(tmp_path, 2).restore(like(state), True, print)[1].epoch)

    saver.save(state, first)
    saver.save(state, history, then)
    saver.wait()
    assert found == [1] and saver.saved_epochs == 1


def test_what_is_saved_is_restored(state, tmp_path):
    saver = Saver(tmp_path, 2)
    assert saver.restore(state, False, print) is None
    for history in histories(0.5, 0.75):
        saver.save(state, history)
    saver.wait()
    saver = Saver(tmp_path, 2)
    restored, past = saver.restore(state, True, print)
    assert_same(restored, state)
    assert past.epoch == saver.saved_epochs == 2


def test_an_abort_waits_for_some_time_only(state, tmp_path, monkeypatch):
    monkeypatch.setattr(saver_lib, "_ABORT_SECONDS", 0.1)
    saver, may_end = Saver(tmp_path, 2), threading.Event()
    saver.save(state, *histories(), may_end.wait)
    assert saver.abort() is None
    may_end.set()


@pytest.mark.parametrize("fails", ["checkpoint", "metrics"])
def test_what_cannot_be_saved_is_reported_once(state, tmp_path, fails):
    """Saving the checkpoint may fail, or adding the line to metrics.jsonl after it."""

    def no_room():
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("")
    folder = tmp_path / ("file/checkpoints" if fails == "checkpoint" else "checkpoints")
    saver = Saver(folder, 2)
    saver.save(state, *histories(), no_room)
    with pytest.raises(UserError, match=f"epoch 0 cannot be saved in {folder.parent}: ") as error:
        saver.wait()
    reason = "Not a directory" if fails == "checkpoint" else "No space left on device"
    assert reason in str(error.value)
    assert str(error.value).endswith("; what was saved before is still there")
    assert saver.saved_epochs == 0
    saver.wait()


def test_saving_does_not_change_the_state(state, tmp_path):
    before = jax.tree.map(jax.numpy.copy, state)
    saver = Saver(tmp_path, 2)
    saver.save(state, *histories())
    saver.wait()
    assert_same(state, before)

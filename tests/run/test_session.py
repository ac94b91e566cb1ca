"""What a run tells its observers, in which order, and what is on the disk at that moment."""

import collections
import errno
import os
import pathlib
import threading

import jax.numpy as jnp
import pytest

from mnist_flax import data, train
from mnist_flax.errors import UserError
from mnist_flax.run.session import Console, Page, Pictures, WandB
from mnist_flax.trainer import Trainer
from tests.runs import epochs, load_few, records, tiny

KINDS = (Pictures, Page, Console, WandB)


class Watched:
    """Runs a small configuration in one folder, and records what the observers are told.

    Attributes:
      told: the calls as (verb, observer), in order.
      seen: by verb: the epochs of the history, those in metrics.jsonl and in the newest checkpoint,
        whether summary.json exists, and whether the call is on the main thread.
    """

    def __init__(self, workdir, monkeypatch):
        self.workdir = workdir
        monkeypatch.setattr(data, "load", load_few)
        for kind in KINDS:
            for verb in ("start", "epoch", "finish", "abort"):
                monkeypatch.setattr(kind, verb, self._watch(kind, verb, getattr(kind, verb)))

    def run(self, num_epochs):
        self.told, self.seen = [], collections.defaultdict(list)
        config = tiny()
        config.num_epochs = num_epochs
        train.run(config, self.workdir)

    def _watch(self, kind, verb, real):
        def tell(observer, *args):
            self.told.append((verb, kind))
            lines = len(records(self.workdir)) if self._has("metrics.jsonl") else 0
            saved = max(epochs(self.workdir), default=0)
            on_main = threading.current_thread() is threading.main_thread()
            epoch = args[0].epoch if args else None
            self.seen[verb].append((epoch, lines, saved, self._has("summary.json"), on_main))
            return real(observer, *args)

        return tell

    def _has(self, name):
        return (self.workdir / name).exists()


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """Runs two epochs, extends them to three, and starts again: told and seen of each."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        watched, found = Watched(tmp_path_factory.mktemp("watched") / "run", monkeypatch), []
        for num_epochs in (2, 3, 3):
            watched.run(num_epochs)
            found.append((watched.told, watched.seen))
        return found


def every(verb, kinds=KINDS):
    return [(verb, kind) for kind in kinds]


def test_observers_are_told_in_one_order(starts):
    """The console says that the run is done before W&B, which may take long."""
    new, resumed, finished = (told for told, _ in starts)
    assert new == every("start") + every("epoch") * 2 + every("finish")
    assert resumed == every("start") + every("epoch") + every("finish")
    shown = every("start", KINDS[:3]) + every("finish", KINDS[:3])
    assert [call for call in finished if call != ("epoch", Pictures)] == shown


def test_results_are_on_the_disk_before_observers_are_told(starts):
    new, resumed, _ = (seen for _, seen in starts)
    assert new["epoch"] == [(1, 1, 1, False, True)] * 4 + [(2, 2, 2, False, True)] * 4
    assert new["finish"] == [(2, 2, 2, True, True)] * 4
    # The run is unfinished again as soon as it resumes.
    assert resumed["start"] == [(2, 2, 2, False, True)] * 4
    assert resumed["epoch"] == [(3, 3, 3, False, True)] * 4


def test_failing_run_aborts_its_observers(tmp_path, monkeypatch):
    train_epoch = Trainer.train_epoch

    def poisoned(self, state, epoch, on_step):
        state, metrics, seconds = train_epoch(self, state, epoch, on_step)
        if epoch == 2:
            metrics = metrics._replace(loss=jnp.full_like(metrics.loss, jnp.nan))
        return state, metrics, seconds

    watched = Watched(tmp_path / "run", monkeypatch)
    monkeypatch.setattr(Trainer, "train_epoch", poisoned)
    with pytest.raises(UserError, match="epoch 2"):
        watched.run(3)
    assert watched.told == every("start") + every("epoch") + every("abort")
    assert watched.seen["abort"] == [(None, 1, 1, False, True)] * 4


def test_failing_start_aborts_its_observers(tmp_path, monkeypatch):
    watched = Watched(tmp_path / "run", monkeypatch)

    def fail(observer, history):
        raise UserError("no start")

    monkeypatch.setattr(Page, "start", fail)
    with pytest.raises(UserError, match="no start"):
        watched.run(1)
    assert watched.told == [("start", Pictures), *every("abort")]


@pytest.mark.parametrize("name", ["1.msgpack", "metrics.jsonl"])
def test_epoch_that_cannot_be_written_is_not_announced(tmp_path, monkeypatch, capsys, name):
    replace = os.replace

    def full(source, target):
        if pathlib.Path(target).name == name and len(watched.told) >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    watched = Watched(tmp_path / "run", monkeypatch)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=os.strerror(errno.ENOSPC)):
        watched.run(2)
    assert watched.told == every("start") + every("abort")
    assert os.strerror(errno.ENOSPC) not in "".join(capsys.readouterr())  # the command prints it
    assert not list(tmp_path.rglob("*.partial"))

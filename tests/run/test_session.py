"""What a run tells its observers, in which order, and what is on the disk at that moment."""

import threading

import jax.numpy as jnp
import pytest

from mnist_flax import data, train
from mnist_flax.errors import UserError
from mnist_flax.report.observers import Console, Page, Pictures, WandB
from mnist_flax.run.workdir import Files
from mnist_flax.trainer import Trainer
from tests.runs import epochs, load_few, records, tiny

KINDS = (Pictures, Files, Page, WandB, Console)
VERBS = ("start", "epoch", "finish", "abort")


class Watched:
    """Runs a small configuration in one folder, and records what the observers are told.

    Attributes:
      told: the calls as (verb, observer), in order.
      seen: by call, for each time: the number of epochs in the history, the lines of metrics.jsonl,
        the complete checkpoints, whether summary.json exists, and the name of the thread.
    """

    def __init__(self, workdir, monkeypatch):
        self.workdir = workdir
        self.told, self.seen = [], {}
        monkeypatch.setattr(data, "load", load_few)
        for kind in KINDS:
            for verb in VERBS:
                monkeypatch.setattr(kind, verb, self._watch(kind, verb))

    def run(self, num_epochs):
        self.told, self.seen = [], {}
        config = tiny()
        config.num_epochs = num_epochs
        config.checkpoint.keep = 10
        train.run(config, str(self.workdir))

    def _watch(self, kind, verb):
        real = getattr(kind, verb)

        def tell(observer, *args):
            call = (verb, kind)
            self.told.append(call)
            self.seen.setdefault(call, []).append(
                {
                    "history": args[0].epoch if args else None,
                    "lines": len(records(self.workdir)) if self._has("metrics.jsonl") else 0,
                    "checkpoints": epochs(self.workdir),
                    "summary": self._has("summary.json"),
                    "thread": threading.current_thread().name,
                }
            )
            return real(observer, *args)

        return tell

    def _has(self, name):
        return (self.workdir / name).exists()


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Runs two epochs, extends them to three, and starts again: (told, seen) of each start."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        watched = Watched(tmp_path_factory.mktemp("watched") / "run", monkeypatch)
        found = []
        for num_epochs in (2, 3, 3):
            watched.run(num_epochs)
            found.append((watched.told, watched.seen))
        return found


def every(verb, kinds=KINDS):
    return [(verb, kind) for kind in kinds]


def test_observers_are_told_in_one_order(watched):
    new, resumed, finished = (told for told, _ in watched)
    assert new == every("start") + every("epoch") * 2 + every("finish")
    assert resumed == every("start") + every("epoch") + every("finish")
    # A finished run only draws its pictures and its page again, as after its last epoch.
    shown = (Pictures, Page, Console)
    assert finished == [
        *every("start", shown),
        *[("finish", Pictures), ("epoch", Pictures), ("finish", Page), ("finish", Console)],
    ]


def test_numbers_are_on_the_disk_before_wandb_hears_of_them(watched):
    _, seen = watched[0]
    for kind, lines in ((Pictures, [0, 1]), (Files, [0, 1]), (WandB, [1, 2]), (Console, [1, 2])):
        told = seen["epoch", kind]
        assert [now["lines"] for now in told] == lines
        assert [now["history"] for now in told] == [1, 2]
        # The observers hear of an epoch on the saving thread, once its checkpoint is complete.
        assert [now["checkpoints"] for now in told] == [[0, 1], [0, 1, 2]]
        assert {now["thread"] for now in told} == {"saving"}
    for kind, is_there in (
        (Pictures, False),
        (Files, False),
        (Page, True),
        (WandB, True),
        (Console, True),
    ):
        assert [now["summary"] for now in seen["finish", kind]] == [is_there]


def test_a_run_that_resumes_starts_with_its_past(watched):
    _, seen = watched[1]
    for kind in KINDS:
        (start,) = seen["start", kind]
        assert (start["history"], start["lines"]) == (2, 2)
        # `Files` removes summary.json when the run resumes, before the next observers are told.
        assert start["summary"] == (kind in (Pictures, Files))
        assert [now["history"] for now in seen["epoch", kind]] == [3]


def test_those_who_watch_a_run_that_fails_are_told(tmp_path, monkeypatch):
    train_epoch = Trainer.train_epoch

    def poisoned(self, state, epoch, on_step):
        state, metrics, seconds = train_epoch(self, state, epoch, on_step)
        if epoch == 2:
            metrics = metrics._replace(loss=jnp.full_like(metrics.loss, jnp.nan))
        return state, metrics, seconds

    watched = Watched(tmp_path / "run", monkeypatch)
    monkeypatch.setattr(Trainer, "train_epoch", poisoned)
    with pytest.raises(UserError, match="no longer finite in epoch 2"):
        watched.run(3)
    assert watched.told == every("start") + every("epoch") + every("abort")
    # The finished epoch is saved, and all observers are told, before the first hears of the end.
    assert watched.seen["abort", Pictures][0]["checkpoints"] == [0, 1]
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_run_that_cannot_start_ends_its_observers(tmp_path, monkeypatch):
    def full(folder):
        raise UserError("No space left on device")

    watched = Watched(tmp_path / "run", monkeypatch)
    monkeypatch.setattr("mnist_flax.run.workdir.Workdir.reopen", full)
    with pytest.raises(UserError, match="No space left on device"):
        watched.run(1)
    assert watched.told == [("start", Pictures), ("start", Files), *every("abort")]


def test_an_epoch_that_is_not_on_the_disk_is_not_announced(tmp_path, monkeypatch, capsys):
    def full(folder, record):
        raise OSError(28, "No space left on device")

    watched = Watched(tmp_path / "run", monkeypatch)
    monkeypatch.setattr("mnist_flax.run.workdir.Workdir.append_metrics", full)
    with pytest.raises(UserError, match=r"epoch 1 cannot be saved in .*: No space left on device"):
        watched.run(2)
    told = [("epoch", Pictures), ("epoch", Files)]
    assert watched.told == every("start") + told + every("abort")
    out, err = capsys.readouterr()
    assert "No space" not in out + err  # only the command prints the error


def test_a_run_can_resume_in_the_same_process(watched):
    """The fixture has done it: a run unlocks its folder as soon as it ends."""
    assert [seen["start", Pictures][0]["history"] for _, seen in watched] == [0, 2, 3]

import sys
import threading
import time

import numpy as np
import pytest

from mnist_flax import report
from mnist_flax.data import Dataset
from mnist_flax.evaluate import evaluate
from mnist_flax.report import observers
from mnist_flax.report.observers import Console, Pictures
from mnist_flax.sources import Split
from tests.report.pages import history

EVERY = {"augmentation", "confusion", "curves", "misclassified", "predictions"}


def random_split(count: int) -> Split:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 28, 28, 1)).astype(np.uint8)
    return Split(images, np.arange(count, dtype=np.int32) % 10)


DATASET = Dataset(
    "mnist", "tfds", tuple("0123456789"), random_split(40), None, random_split(30), 0.13, 0.31
)
# The last 7 are classified as the next digit.
TEST = evaluate(
    8.0 * np.eye(10)[(DATASET.test.labels + (np.arange(30) >= 23)) % 10], np.arange(30) % 10
)


class TestPictures:
    @pytest.fixture
    def create(self, tmp_path):
        """Returns a function that creates `Pictures`; `create.said` collects what they report."""
        said = []

        def create(create_examples=lambda: (DATASET.train.images[0], DATASET.train.images[:29])):
            return Pictures(tmp_path, DATASET, create_examples, said.append)

        create.said = said
        return create

    def test_every_picture_is_a_file_and_there_for_others(self, create, tmp_path):
        pictures = create()
        pictures.start(history(0))
        for epoch in (1, 2):
            pictures.epoch(history(epoch), TEST)
        pictures.finish(history(2), TEST, {}, {})
        assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in EVERY}
        assert pictures.drawn.keys() == EVERY
        for name, drawn in pictures.drawn.items():
            assert drawn.result(60) == (tmp_path / f"{name}.png").read_bytes()
            assert drawn.result().startswith(b"\x89PNG")
        assert create.said == []

    def test_a_run_without_augmentation_has_no_sheet(self, create, tmp_path):
        pictures = create(None)
        pictures.start(history(0))
        # This process has trained no epoch, so the last epoch's pictures are drawn now.
        pictures.finish(history(2), TEST, {}, {})
        wanted = EVERY - {"augmentation"}
        assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in wanted}

    def test_a_picture_that_fails_is_reported_once_and_stops_no_other(self, create, tmp_path):
        def fail():
            raise ValueError("no examples")

        pictures = create(fail)
        pictures.start(history(0))
        pictures.start(history(0))
        pictures.epoch(history(1), TEST)
        pictures.finish(history(1), TEST, {}, {})
        assert create.said == ["drawing failed: ValueError: no examples"]
        assert not (tmp_path / "augmentation.png").exists()
        assert (tmp_path / "confusion.png").exists()

    def test_an_aborted_run_does_not_wait_for_ever(self, create, tmp_path, monkeypatch):
        monkeypatch.setattr(observers, "ABORT_SECONDS", 0.2)
        may_end = threading.Event()
        pictures = create(lambda: may_end.wait(60))
        pictures.start(history(0))
        started = time.monotonic()
        pictures.abort()
        assert time.monotonic() - started < 30
        may_end.set()

    def test_without_matplotlib_a_line_says_so(self, create, monkeypatch):
        monkeypatch.setitem(sys.modules, "mnist_flax.report.figures", None)
        monkeypatch.delattr(report, "figures", raising=False)
        pictures = create()
        pictures.finish(history(2), TEST, {}, {})
        assert all(drawn.result() is None for drawn in pictures.drawn.values())
        (line,) = create.said
        assert line.startswith("drawing failed: ModuleNotFoundError: ")

    def test_drawing_leaves_the_cpu_to_the_training(self, create, monkeypatch):
        lowered = []
        monkeypatch.setattr(observers, "lower_priority", lambda: lowered.append(1))
        pictures = create()
        pictures.start(history(0))
        pictures.abort()
        assert lowered == [1]


class FakeProgress:
    def __init__(self):
        self.shown = []

    def line(self, text):
        self.shown.append(text)

    def finish_epoch(self, record):
        self.shown.append(record["epoch"])

    def close(self):
        self.shown.append("closed")


class TestConsole:
    def shown(self, tell, is_finished=False):
        progress = FakeProgress()
        tell(Console(progress, 3, "MNIST", "runs/1", is_finished))
        return progress.shown

    @pytest.mark.parametrize(
        ("epoch", "is_finished", "said"),
        [
            (0, False, []),
            (2, False, ["Resuming after epoch 2 of 3"]),
            (3, False, ["Resuming after epoch 3 of 3"]),  # killed before it was finished
            (3, True, ["Run is complete; redrawing its figures and report"]),
        ],
    )
    def test_the_start(self, epoch, is_finished, said):
        assert self.shown(lambda console: console.start(history(epoch)), is_finished) == said

    def test_an_epoch(self):
        assert self.shown(lambda console: console.epoch(history(2), TEST)) == [2]

    def test_the_end(self):
        assert self.shown(lambda console: console.finish(history(3), TEST, {}, {})) == [
            "closed",
            "Done: 76.67% test accuracy, 7 errors, on MNIST; results in runs/1",
        ]
        assert self.shown(Console.abort) == ["closed"]

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mnist_flax.data import Dataset
from mnist_flax.evaluate import evaluate
from mnist_flax.report import media, observers
from mnist_flax.report.observers import Console, Pictures, WandB
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
        monkeypatch.setattr(observers, "_ABORT_SECONDS", 0.2)
        may_end = threading.Event()
        pictures = create(lambda: may_end.wait(60))
        pictures.start(history(0))
        started = time.monotonic()
        pictures.abort()
        assert time.monotonic() - started < 30
        may_end.set()

    def test_drawing_leaves_the_cpu_to_the_training(self, create, monkeypatch):
        lowered = []
        monkeypatch.setattr(observers, "lower_priority", lambda: lowered.append(1))
        create().abort()
        assert lowered == [1]


class FakeTracker:
    """Records the calls that would go to W&B."""

    def __init__(self):
        self.told = []
        self.offline_folder = ""

    def log_steps(self, first, losses, accuracies):
        self.told.append(("steps", first, losses.tolist(), accuracies.tolist()))

    def log(self, step, values):
        self.told.append(("log", step, values))

    def log_model(self, workdir, epoch, is_best):
        self.told.append(("model", workdir, epoch, is_best))

    def finish(self, summary, **options):
        self.told.append(("finish", summary, options))
        self.offline_folder = "run/wandb/offline"


class TestWandB:
    @pytest.fixture
    def wandb(self, tmp_path):
        self.said = []
        pictures, page = SimpleNamespace(drawn={}), SimpleNamespace(path=tmp_path / "report.html")
        return WandB(FakeTracker(), DATASET, pictures, page, "none", self.said.append)

    @pytest.mark.parametrize(("models", "expected"), [("none", []), ("best", [2]), ("all", [1, 2])])
    def test_checkpoints_and_the_page(self, wandb, tmp_path, models, expected):
        wandb.models = models
        wandb.page.path.write_text("<p>")
        wandb.start(history(0))
        wandb.epoch(history(1), TEST)
        wandb.epoch(history(2), TEST)
        wandb.finish(history(2), TEST, {}, {})
        told = [entry for entry in wandb.tracker.told if entry[0] == "model"]
        assert told == [("model", tmp_path, epoch, True) for epoch in expected]
        (page,) = [e[2]["report"] for e in wandb.tracker.told if e[0] == "log" and "report" in e[2]]
        assert (page.func, page.args) == (media.page, (wandb.page.path,))

    def test_numbers_of_an_epoch_come_before_its_pictures(self, wandb):
        wandb.pictures.drawn = {"curves": "C", "predictions": "P", "augmentation": "A"}
        wandb.start(history(0))
        wandb.epoch(history(1), TEST)
        wandb.epoch(history(2), TEST)
        pictures, *told = wandb.tracker.told
        assert pictures == ("log", 0, {"augmentation": "A"})
        assert [kind for kind, *_ in told] == ["steps", "log", "log"] * 2
        assert told[3][1:3] == (4, [2.0, 2.25, 2.5])  # the second epoch's steps; steps count from 1
        np.testing.assert_allclose(told[3][3], [0.2, 0.225, 0.25], rtol=1e-6)
        step, numbers = told[4][1:]
        assert step == 6
        assert numbers == {
            "epoch": 2,
            "learning_rate": 0.1,
            "train/epoch_loss": 0.5,
            "train/epoch_accuracy": 0.9375,
            "test/loss": 1.0,
            "test/accuracy": 0.875,
        }
        assert told[5] == ("log", 6, {"predictions": "P"})

    def test_a_run_that_resumes_is_told_from_its_start(self, wandb):
        wandb.pictures.drawn = {"augmentation": "A"}
        wandb.start(history(2))
        assert [(kind, step) for kind, step, *_ in wandb.tracker.told] == [
            *(("steps", 1), ("log", 3)),
            *(("steps", 4), ("log", 6)),
        ]

    def test_the_end(self, wandb):
        wandb.pictures.drawn = {"misclassified": "M", "confusion": "C"}
        summary = {"final_test_accuracy": 0.75, "title": "MNIST", "confusion_matrix": [[1]]}
        wandb.finish(history(1), TEST, summary, {})
        (_, *pictures), (_, *table), (_, *finish) = wandb.tracker.told
        assert pictures == [3, {"misclassified": "M", "confusion": "C"}]
        step, create = table[0], table[1]["misclassified_table"]
        images, labels, probabilities, names = create.args
        assert create.func == media.misclassified
        assert step == 3 and names == DATASET.class_names
        np.testing.assert_array_equal(images, DATASET.test.images[23:])
        np.testing.assert_array_equal(labels, DATASET.test.labels[23:])
        np.testing.assert_array_equal(probabilities.argmax(1), (labels + 1) % 10)
        assert finish == [{"final_test_accuracy": 0.75, "title": "MNIST"}, {}]
        command = "wandb sync run/wandb/offline"
        assert self.said == [f"W&B: the run is kept offline; to upload it: {command}"]

    def test_a_run_that_fails_is_marked_as_failed(self, wandb):
        wandb.abort()
        ((_, summary, options),) = wandb.tracker.told
        assert summary == {} and options == {"exit_code": 1, "timeout": observers._ABORT_SECONDS}


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
            (3, True, ["This run is already finished; drawing its figures again"]),
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

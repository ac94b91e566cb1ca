"""The observers of a run, all with the same four methods: pictures, page, W&B and console."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from mnist_flax.data import Dataset
from mnist_flax.evaluate import Evaluation
from mnist_flax.report import media
from mnist_flax.report.page.content import CreateExamples
from mnist_flax.report.progress import Progress
from mnist_flax.report.tracking import Tracker
from mnist_flax.runtime.background import IMPORTING, Background, attempt, lower_priority
from mnist_flax.runtime.files import write_whole

_NUM_SHOWN = 20  # test digits in predictions.png
_ABORT_SECONDS = 5  # how long to wait for drawings, and for W&B, when a run is aborted

# The finished epochs of a run: a `run.history.History`, but `report` may not import `run`.
History = Any


class Observer:
    """Watches a run. Every method is optional; only `finish` and `abort` may take long."""

    def start(self, history: History) -> None:
        """Called when the run starts, or resumes after the epochs of `history`."""

    def epoch(self, history: History, test: Evaluation) -> None:
        """Called when the last epoch of `history` is on disk; `test` holds its results."""

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        """Called when the run is finished; waits until everything is done.

        Args:
          history: all epochs.
          test: the results of the last epoch.
          summary: the contents of summary.json.
          variables: the evaluated parameters and statistics, as NumPy arrays.
        """

    def abort(self) -> None:
        """Called when the run stops before its end; its finished epochs are kept."""


@dataclasses.dataclass
class Pictures(Observer):
    """Draws in the background.

    Attributes:
      folder: the folder of the PNG files.
      dataset: the data that the titles name, and the test images.
      create_examples: returns an image and augmentations of it; None: draw no augmentation.png.
      warn: prints a line.
      drawn: for each kind of picture, the future bytes of the newest PNG.
    """

    folder: pathlib.Path
    dataset: Dataset
    create_examples: CreateExamples | None
    warn: Callable[[str], None]

    def __post_init__(self):
        self.drawn: dict[str, Future[bytes]] = {}
        self._background = Background("drawing failed", self.warn)
        self._background.submit(lower_priority)

    def start(self, history: History) -> None:
        if self.create_examples is not None:
            self._draw("augmentation", self._augmentation, self.create_examples)

    def epoch(self, history: History, test: Evaluation) -> None:
        self._draw("curves", self._curves, history)
        self._draw("predictions", self._predictions, history.epoch, test)

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        if "curves" not in self.drawn:  # no epoch was trained in this process
            self.epoch(history, test)
        self._draw("misclassified", self._misclassified, test)
        self._draw("confusion", self._confusion, test)
        self._background.close()

    def abort(self) -> None:
        self._background.close(_ABORT_SECONDS)

    def _draw(self, name: str, create: Callable[..., Any], *args: Any) -> None:
        def draw() -> bytes:
            # Imported in the background, so that the first step does not wait for matplotlib.
            with IMPORTING:
                from mnist_flax.report import figures

            png = figures.to_png(create(figures, *args))
            write_whole(self.folder / f"{name}.png", png)
            return png

        self.drawn[name] = self._background.submit(draw)

    def _augmentation(self, figures: Any, create: Callable[[], tuple]) -> Any:
        return figures.augmentation_sheet(*create(), self.dataset.title)

    def _curves(self, figures: Any, history: History) -> Any:
        steps = (history.steps_per_epoch, history.steps["loss"], history.steps["accuracy"])
        return figures.curves(*steps, history.records, self.dataset.title)

    def _predictions(self, figures: Any, epoch: int, test: Evaluation) -> Any:
        title = f"the first {_NUM_SHOWN} test images after epoch {epoch}"
        return self._digits(figures, slice(0, _NUM_SHOWN), test, title)

    def _misclassified(self, figures: Any, test: Evaluation) -> Any:
        return self._digits(figures, test.misclassified, test, self._count(test))

    def _confusion(self, figures: Any, test: Evaluation) -> Any:
        title = f"{self.dataset.title}: {self._count(test)}"
        return figures.confusion(test.confusion, self.dataset.class_names, title)

    def _count(self, test: Evaluation) -> str:
        return (
            f"{len(test.misclassified):,} misclassified of {len(self.dataset.test):,} test images"
        )

    def _digits(self, figures: Any, which: Any, test: Evaluation, title: str) -> Any:
        split, names = self.dataset.test, self.dataset.class_names
        chosen = (array[which] for array in (*split, test.probabilities))
        return figures.digits_with_bars(*chosen, names, f"{self.dataset.title}: {title}")


@dataclasses.dataclass
class Page(Observer):
    """Writes report.html at the end.

    Attributes:
      path: the file.
      create_run: returns a `page.content.Run`, given what `finish` is given.
      warn: prints a line.
    """

    path: pathlib.Path
    create_run: Callable[..., Any]
    warn: Callable[[str], None]

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        results = {"history": history, "test": test, "summary": summary, "variables": variables}
        attempt(f"writing {self.path.name} failed", self.warn, self._write, results)

    def _write(self, results: dict[str, Any]) -> None:
        from mnist_flax.report.page import render  # jinja2 takes a while to import

        write_whole(self.path, render.render(self.create_run(**results)))


@dataclasses.dataclass
class WandB(Observer):
    """Logs to Weights & Biases, with the steps in order.

    Attributes:
      tracker: logs to the W&B run.
      dataset: holds the images for the table of misclassified digits.
      pictures: the pictures to log when they are drawn.
      page: the page to log at the end.
      models: the checkpoints to log: 'none', 'best' or 'all'.
      line: prints a line.
    """

    tracker: Tracker
    dataset: Dataset
    pictures: Pictures
    page: Page
    models: str
    line: Callable[[str], None]

    def start(self, history: History) -> None:
        for epoch in range(1, history.epoch + 1):
            self._log_epoch(history, epoch)
        if not history.epoch:
            self._log_pictures(0, ["augmentation"])

    def epoch(self, history: History, test: Evaluation) -> None:
        self._log_epoch(history, history.epoch)  # first, so that it does not wait for drawings
        self._log_pictures(history.records[-1]["step"], ["predictions"])
        if self.models == "all":
            self._log_model(history, history.epoch)

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        step, wrong = history.records[-1]["step"], test.misclassified
        images, labels = (array[wrong] for array in self.dataset.test)
        self._log_pictures(step, ["misclassified", "confusion"])
        digits = (images, labels, test.probabilities[wrong], self.dataset.class_names)
        table = functools.partial(media.misclassified, *digits)
        self.tracker.log(step, {"misclassified_table": table})
        if self.page.path.exists():
            self.tracker.log(step, {"report": functools.partial(media.page, self.page.path)})
        if self.models == "best":
            self._log_model(history, history.best["epoch"])
        scalars = {k: v for k, v in summary.items() if isinstance(v, int | float | str)}
        self._finish(scalars)

    def abort(self) -> None:
        self._finish({}, exit_code=1, timeout=_ABORT_SECONDS)

    def _finish(self, summary: dict[str, Any], **options: Any) -> None:
        self.tracker.finish(summary, **options)
        if folder := self.tracker.offline_folder:
            self.line(f"W&B: the run is kept offline; to upload it: wandb sync {folder}")

    def _log_epoch(self, history: History, epoch: int) -> None:
        record = history.records[epoch - 1]
        steps = slice((epoch - 1) * history.steps_per_epoch, epoch * history.steps_per_epoch)
        first = steps.start + 1
        self.tracker.log_steps(
            first, history.steps["loss"][steps], history.steps["accuracy"][steps]
        )
        # Each step already logs train/loss and train/accuracy, so the epoch's means are renamed.
        renamed = {k.replace("train/", "train/epoch_"): v for k, v in record.items() if k != "step"}
        self.tracker.log(record["step"], renamed)

    def _log_model(self, history: History, epoch: int) -> None:
        is_best = history.best["epoch"] == epoch
        self.tracker.log_model(self.page.path.parent, epoch, is_best)

    def _log_pictures(self, step: int, names: Sequence[str]) -> None:
        drawn = self.pictures.drawn
        self.tracker.log(step, {name: drawn[name] for name in names if name in drawn})


@dataclasses.dataclass
class Console(Observer):
    """Prints a line per epoch, and the result of the run.

    Attributes:
      progress: shows the lines and the bar.
      num_epochs: the number of epochs in the whole run.
      title: the title of the data.
      path: the path of the workdir.
      is_finished: whether the run was finished before.
    """

    progress: Progress
    num_epochs: int
    title: str
    path: pathlib.Path
    is_finished: bool

    def start(self, history: History) -> None:
        if self.is_finished:
            self.progress.line("This run is already finished; drawing its figures again")
        elif history.epoch:
            self.progress.line(f"Resuming after epoch {history.epoch} of {self.num_epochs}")

    def epoch(self, history: History, test: Evaluation) -> None:
        self.progress.finish_epoch(history.records[-1])

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        self.progress.close()
        self.progress.line(
            f"Done: {test.accuracy:.2%} test accuracy, {len(test.misclassified):,} errors, on "
            f"{self.title}; results in {self.path}"
        )

    def abort(self) -> None:
        self.progress.close()

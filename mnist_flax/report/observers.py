"""The observers of a run, all with the same four methods; `tracking` has one more, for W&B."""

import concurrent.futures
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from mnist_flax.data import Dataset
from mnist_flax.evaluate import Evaluation
from mnist_flax.history import History
from mnist_flax.report.progress import Progress
from mnist_flax.runtime.background import IMPORTING, attempt, lower_priority
from mnist_flax.runtime.files import write_whole

ABORT_SECONDS = 5  # how long to wait for drawings, and for W&B, when a run is aborted
_NUM_SHOWN = 20  # test digits in predictions.png

# Returns an image, uint8 `[side, side, 1]`, and augmentations `[n, side, side, 1]`: uint8, or
# float32 in 0..255 with bilinear interpolation.
CreateExamples = Callable[[], tuple[np.ndarray, np.ndarray]]


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


class Pictures(Observer):
    """Draws on a thread of its own.

    Attributes:
      drawn: for each kind of picture, the future bytes of the newest PNG; None if drawing fails.

    Args:
      folder: the folder of the PNG files.
      dataset: the data that the titles name, and the test images.
      create_examples: returns an image and augmentations of it; None: draw no augmentation.png.
      warn: prints a line.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        dataset: Dataset,
        create_examples: CreateExamples | None,
        warn: Callable[[str], None],
    ):
        self.drawn: dict[str, Future[bytes | None]] = {}
        self._folder, self._dataset, self._create_examples = folder, dataset, create_examples
        self._warn = functools.cache(warn)  # not the same line for every epoch
        self._thread = ThreadPoolExecutor(1, initializer=lower_priority)

    def start(self, history: History) -> None:
        if create := self._create_examples:
            title = self._dataset.title
            self._draw("augmentation", lambda figures: figures.augmentation_sheet(*create(), title))

    def epoch(self, history: History, test: Evaluation) -> None:
        title = self._dataset.title
        self._draw("curves", lambda figures: figures.curves(history, title))
        what = f"the first {_NUM_SHOWN} test images after epoch {history.epoch}"
        self._draw_digits("predictions", slice(_NUM_SHOWN), test, what)

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        if "curves" not in self.drawn:  # no epoch was trained in this process
            self.epoch(history, test)
        wrong, names = test.misclassified, self._dataset.class_names
        count = f"{len(wrong):,} misclassified of {len(self._dataset.test):,} test images"
        self._draw_digits("misclassified", wrong, test, count)
        title = f"{self._dataset.title}: {count}"
        self._draw("confusion", lambda figures: figures.confusion(test.confusion, names, title))
        self._thread.shutdown()

    def abort(self) -> None:
        concurrent.futures.wait(self.drawn.values(), ABORT_SECONDS)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _draw_digits(self, name: str, which: Any, test: Evaluation, what: str) -> None:
        chosen = [array[which] for array in (*self._dataset.test, test.probabilities)]
        title = f"{self._dataset.title}: {what}"
        options = (*chosen, self._dataset.class_names, title)
        self._draw(name, lambda figures: figures.digits_with_bars(*options))

    def _draw(self, name: str, create: Callable[[Any], Any]) -> None:
        def draw() -> bytes:
            # Imported here, so that the first step does not wait for matplotlib.
            with IMPORTING:
                from mnist_flax.report import figures

            png = figures.to_png(create(figures))
            write_whole(self._folder / f"{name}.png", png)
            return png

        self.drawn[name] = self._thread.submit(attempt, "drawing failed", self._warn, draw)


@dataclasses.dataclass
class Page(Observer):
    """Writes report.html at the end."""

    path: pathlib.Path  # of the file
    create_run: Callable[..., Any]  # returns a `page.content.Run`, given what `finish` is given
    warn: Callable[[str], None]  # prints a line

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        def write() -> None:
            from mnist_flax.report.page import render  # jinja2 takes a while to import

            run = self.create_run(history=history, test=test, summary=summary, variables=variables)
            write_whole(self.path, render.render(run))

        attempt(f"writing {self.path.name} failed", self.warn, write)


@dataclasses.dataclass
class Console(Observer):
    """Prints a line per epoch, and the result of the run."""

    progress: Progress
    num_epochs: int  # in the whole run
    title: str  # of the data
    path: pathlib.Path  # of the workdir
    is_finished: bool  # whether the run was finished before

    def start(self, history: History) -> None:
        if self.is_finished:
            self.progress.line("Run is complete; redrawing its figures and report")
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

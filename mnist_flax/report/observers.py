"""Who watches a run, all with the same four verbs: pictures, page, Weights & Biases, console."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from mnist_flax.data import Dataset
from mnist_flax.evaluate import Evaluation
from mnist_flax.report.progress import Progress
from mnist_flax.report.tracking import Tracker
from mnist_flax.runtime.background import IMPORTING, Background, lower_priority
from mnist_flax.runtime.files import write_whole

_NUM_SHOWN = 20  # test digits in predictions.png
_ABORT_SECONDS = 5  # for drawings, and for W&B, when a run is aborted

# The finished epochs of a run, `run.history.History`; report does not import run.
History = Any


class Observer:
    """Watches a run. Every verb is optional; none may take long, except `finish` and `abort`."""

    def start(self, history: History) -> None:
        """The run starts, or resumes after the epochs of `history`."""

    def epoch(self, history: History, test: Evaluation) -> None:
        """The last epoch of `history` is on the disk; `test` holds its results."""

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        """The run is finished; waits for what is left to do.

        Args:
          history: of all epochs.
          test: the results of the last.
          summary: as summary.json has it.
          variables: what the network was evaluated with, as NumPy arrays.
        """

    def abort(self) -> None:
        """The run did not reach its end; its finished epochs stay."""


@dataclasses.dataclass
class Pictures(Observer):
    """Draws in the background.

    Attributes:
      folder: of the PNG files.
      dataset: which data the titles name, and the test images.
      steps_per_epoch: to place steps on the axis of epochs.
      create_examples: returns an image and augmentations of it; None draws no augmentation.png.
      warn: prints a line.
      drawn: the newest picture of each kind, as the future bytes of a PNG.
    """

    folder: Any
    dataset: Dataset
    steps_per_epoch: int
    create_examples: Callable[[], tuple[np.ndarray, np.ndarray]] | None
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
            # Imported in the background: the first step need not wait for matplotlib.
            with IMPORTING:
                from mnist_flax.report import figures

            png = figures.to_png(create(figures, *args))
            write_whole(self.folder / f"{name}.png", png)
            return png

        self.drawn[name] = self._background.submit(draw)

    def _augmentation(self, figures: Any, create: Callable[[], tuple]) -> Any:
        return figures.augmentation_sheet(*create(), self.dataset.title)

    def _curves(self, figures: Any, history: History) -> Any:
        steps = (self.steps_per_epoch, history.losses, history.accuracies)
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
      path: of the file.
      dataset: what the run was trained and tested on.
      steps_per_epoch: of the run.
      config: by field, as in 'model.norm'.
      default: the default recipe, likewise; empty if it is not there.
      create_examples: as of `Pictures`.
      command: repeats the run; empty if Python code started it.
      warn: prints a line.
    """

    path: Any
    dataset: Dataset
    steps_per_epoch: int
    config: dict[str, Any]
    default: dict[str, Any]
    create_examples: Callable[[], tuple[np.ndarray, np.ndarray]] | None
    command: str
    warn: Callable[[str], None]

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        # A thread of its own, so that an error is a line and not the end of the run.
        background = Background(f"writing {self.path.name} failed", self.warn)
        background.submit(self._write, history, test, summary, variables)
        background.close()

    def _write(self, history: History, test: Evaluation, summary: Any, variables: Any) -> None:
        from mnist_flax.report.page import content, render

        run = content.Run(
            config=self.config,
            default=self.default,
            dataset=self.dataset,
            steps_per_epoch=self.steps_per_epoch,
            history=history,
            test=test,
            summary=summary,
            variables=variables,
            examples=self.create_examples and self.create_examples(),
            command=self.command,
        )
        write_whole(self.path, render.render(run))


@dataclasses.dataclass
class WandB(Observer):
    """Logs to Weights & Biases, steps in order.

    Attributes:
      tracker: of the run.
      dataset: for the table of misclassified digits.
      steps_per_epoch: of the run.
      pictures: logged as they are drawn.
      page: logged at the end.
      models: the checkpoints to log, 'none', 'best' or 'all'.
      line: prints a line.
    """

    tracker: Tracker
    dataset: Dataset
    steps_per_epoch: int
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
        self._log_epoch(history, history.epoch)  # first: numbers do not depend on a drawing
        self._log_pictures(history.records[-1]["step"], ["predictions"])
        if self.models == "all":
            self._log_model(history, history.epoch)

    def finish(
        self, history: History, test: Evaluation, summary: dict[str, Any], variables: Any
    ) -> None:
        step, wrong = history.records[-1]["step"], test.misclassified
        images, labels = (array[wrong] for array in self.dataset.test)
        self._log_pictures(step, ["misclassified", "confusion"])
        names = self.dataset.class_names
        self.tracker.log_misclassified(step, images, labels, test.probabilities[wrong], names)
        if self.page.path.exists():
            self.tracker.log_page(step, self.page.path)
        if self.models == "best":
            self._log_model(history, history.best["epoch"])
        scalars = {k: v for k, v in summary.items() if isinstance(v, int | float | str)}
        self._finish(scalars)

    def abort(self) -> None:
        self._finish({}, exit_code=1, timeout=_ABORT_SECONDS)

    def _finish(self, summary: dict[str, Any], **options: Any) -> None:
        self.tracker.finish(summary, **options)
        if folder := self.tracker.offline_folder:
            self.line(f"W&B run kept offline; upload it: wandb sync {folder}")

    def _log_epoch(self, history: History, epoch: int) -> None:
        record = history.records[epoch - 1]
        steps = slice((epoch - 1) * self.steps_per_epoch, epoch * self.steps_per_epoch)
        first = steps.start + 1
        self.tracker.log_steps(first, history.losses[steps], history.accuracies[steps])
        # The steps' own train/loss and train/accuracy stand beside the epoch's means.
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
    """Prints a line per epoch, and what came of the run.

    Attributes:
      progress: the lines and the bar.
      num_epochs: of the whole run.
      title: of the data.
      path: of the workdir.
      is_finished: whether the run was finished before.
    """

    progress: Progress
    num_epochs: int
    title: str
    path: Any
    is_finished: bool

    def start(self, history: History) -> None:
        if self.is_finished:
            self.progress.line("This run is finished; its pictures are drawn again")
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

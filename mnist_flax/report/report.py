"""What a run leaves behind: numbers in its folder, pictures, and a W&B run."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mnist_flax.data import Dataset, Split
from mnist_flax.evaluate import Evaluation
from mnist_flax.report.tracking import Tracker
from mnist_flax.run.history import History
from mnist_flax.run.workdir import Workdir
from mnist_flax.runtime.background import Background

_NUM_SHOWN = 20  # test digits in predictions.png
_ABORT_SECONDS = 5  # for drawings, then for W&B, when a run is broken off


class Report:
    """Writes numbers at once; draws and tracks in the background, in the order of the calls.

    Args:
      config: the whole configuration.
      workdir: the run's files.
      dataset: what it is trained and tested on.
      run_id: W&B's name for the run.
      steps_per_epoch: of the run.
      say: prints a line.
      track: False leaves W&B out.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        dataset: Dataset,
        run_id: str,
        steps_per_epoch: int,
        say: Callable[[str], None],
        track: bool = True,
    ):
        self._workdir = workdir
        self._say = say
        self._dataset = dataset
        self._steps_per_epoch = steps_per_epoch
        self._drawing = Background("drawing failed", say)
        self._tracker = Tracker(
            config,
            str(workdir.path),
            run_id,
            name=run_name(config, dataset),
            extra_config={"data": dataset.title, "data_source": dataset.source},
            extra_tags=["sample"] if dataset.source == "sample" else [],
            say=say,
            enabled=track,
        )

    def augmentation(self, create: Callable[[], tuple[np.ndarray, np.ndarray]]) -> None:
        """Draws augmentation.png.

        Args:
          create: returns a digit, uint8 `[height, width, 1]`, and augmentations of it, 0..255,
            `[n, height, width, 1]`; called in the background.
        """

        def draw() -> None:
            figures = _import_figures()
            figure = figures.augmentation_sheet(*create(), self._dataset.title)
            self._tracker.log(0, {"augmentation": self._save(figure, "augmentation")})

        self._drawing.submit(draw)

    def go_on(self, history: History) -> None:
        """Takes up a run that was broken off: metrics.jsonl and W&B get what they lack."""
        self._workdir.write_metrics(history.records)

        def log() -> None:
            for epoch in range(1, history.epoch + 1):
                self._log_epoch(history, epoch)

        self._drawing.submit(log)

    def epoch(self, history: History, test: Evaluation) -> None:
        """Takes the last epoch of `history`, and its results on the test set."""
        self._workdir.append_metrics(history.records[-1])
        self.redraw(history, test)

    def redraw(self, history: History, test: Evaluation) -> None:
        """Draws what is drawn after every epoch."""
        self._drawing.submit(self._draw_epoch, history, test)

    def results(self, step: int, test: Evaluation) -> None:
        """Draws what is drawn once, and waits for all pictures."""
        self._drawing.submit(self._draw_results, step, test)
        self._drawing.close()

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, and waits for W&B."""
        self._workdir.write_summary(summary)
        scalars = {k: v for k, v in summary.items() if isinstance(v, int | float | str)}
        self._finish_tracking(scalars)

    def abort(self) -> None:
        """Ends a run that did not come to its end; its finished epochs stay."""
        self._drawing.close(_ABORT_SECONDS)
        self._finish_tracking({}, exit_code=1, timeout=_ABORT_SECONDS)

    def _finish_tracking(self, summary: dict[str, Any], **options: Any) -> None:
        self._tracker.finish(summary, **options)
        if folder := self._tracker.offline_folder:
            self._say(f"W&B run kept offline; upload it: wandb sync {folder}")

    def _log_epoch(self, history: History, epoch: int) -> None:
        record = history.records[epoch - 1]
        steps = slice((epoch - 1) * self._steps_per_epoch, epoch * self._steps_per_epoch)
        first = steps.start + 1
        self._tracker.log_steps(first, history.losses[steps], history.accuracies[steps])
        # The step's own train/loss and train/accuracy stand beside the epoch's means.
        renamed = {k.replace("train/", "train/epoch_"): v for k, v in record.items() if k != "step"}
        self._tracker.log(record["step"], renamed)

    def _draw_epoch(self, history: History, test: Evaluation) -> None:
        record = history.records[-1]
        self._log_epoch(history, history.epoch)  # first: numbers do not depend on a drawing
        figures = _import_figures()
        title = self._dataset.title
        count = slice(0, _NUM_SHOWN)
        predictions = figures.digits_with_bars(
            self._dataset.test.images[count],
            self._dataset.test.labels[count],
            test.probabilities[count],
            self._dataset.class_names,
            f"{title}: the first {_NUM_SHOWN} test images after epoch {record['epoch']}",
        )
        curves = figures.curves(
            self._steps_per_epoch, history.losses, history.accuracies, history.records, title
        )
        self._save(curves, "curves")
        self._tracker.log(record["step"], {"predictions": self._save(predictions, "predictions")})

    def _draw_results(self, step: int, test: Evaluation) -> None:
        figures = _import_figures()
        wrong = test.misclassified
        split: Split = self._dataset.test
        images, labels = split.images[wrong], split.labels[wrong]
        counts = f"{len(wrong):,} misclassified of {len(split):,} test images"
        title = f"{self._dataset.title}: {counts}"
        names = self._dataset.class_names
        pictures = {
            "misclassified": figures.digits_with_bars(
                images, labels, test.probabilities[wrong], names, title
            ),
            "confusion": figures.confusion(test.confusion, names, title),
        }
        self._tracker.log(step, {key: self._save(pictures[key], key) for key in pictures})
        self._tracker.log_misclassified(step, images, labels, test.probabilities[wrong], names)

    def _save(self, figure: Any, key: str) -> bytes:
        return _import_figures().save(figure, self._workdir.figures / f"{key}.png")


def _import_figures() -> ModuleType:
    """`mnist_flax.figures`, in the background: the first step need not wait for matplotlib."""
    from mnist_flax.report import figures

    return figures


def run_name(config: ConfigDict, dataset: Dataset) -> str:
    """A W&B run's name: what a person would tell two runs apart by."""
    name = "mnist-sample" if dataset.source == "sample" else dataset.name
    augmentation = "augmented" if config.augment.enabled else "plain"
    model = config.model
    return f"{name}-{model.norm}-{model.downsample}-{augmentation}-seed{config.seed}"

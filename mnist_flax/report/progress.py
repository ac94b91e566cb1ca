"""Shows the progress of a run: a bar on a terminal, plain lines elsewhere."""

import datetime
import os
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from mnist_flax.report import metrics

_PLAIN_SECONDS = 60  # between the lines of an epoch if there is no terminal


class Display:
    """Shows a bar that counts images, if there is a terminal, and lines; nothing if `quiet`."""

    def __init__(self, num_images: int, quiet: bool = False):
        self._total, self._quiet = num_images, quiet
        self._bar: tqdm | None = None
        self._last_line = time.monotonic()

    def line(self, text: str) -> None:
        """Prints a line to standard output, above the bar if there is one."""
        if self._quiet:
            return
        self._last_line = time.monotonic()
        try:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # without a reader, or on a full disk, the output ends, but not the run
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def show(self, share: str, images: int, values: Mapping[str, float]) -> None:
        """Shows how many images are done, and metrics; without a terminal, a line a minute."""
        if self._bar is None:
            # Its rate must not include what came before, which is mostly compilation.
            self._bar = tqdm(
                total=self._total,
                initial=images,
                disable=self._quiet or not sys.stderr.isatty(),
                leave=False,
                unit=" images",
                unit_scale=True,
                dynamic_ncols=True,
                smoothing=0.1,
            )
        shown = ", ".join(f"{name} {metrics.text(name, value)}" for name, value in values.items())
        if not self._bar.disable:
            self._bar.set_description(share, refresh=False)
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(images - self._bar.n)
            self._bar.refresh()
        elif shown and time.monotonic() - self._last_line > _PLAIN_SECONDS:
            self.line(f"{share}  {shown}")


class Progress(Display):
    """Shows a run of `num_epochs` epochs of `num_images` images.

    On a terminal, it shows one bar over all images, with the epoch and how much of it is done, the
    metrics, images per second and the time left. Elsewhere, it prints complete lines: one per
    epoch, and at most one a minute in between. It shows nothing if `quiet`.
    """

    def __init__(self, num_epochs: int, num_images: int, quiet: bool = False):
        super().__init__(num_epochs * num_images, quiet)
        self._num_epochs, self._num_images = num_epochs, num_images
        self._epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Starts an epoch, counted from 1."""
        if self._epoch == 0:
            self._started, self._epochs_before = time.monotonic(), epoch - 1
        self._epoch = epoch
        self.update(0)

    def update(self, images: int, values: Mapping[str, float] | None = None) -> None:
        """Shows how many images of the epoch are done, and a step's metrics if they are known."""
        share = f"epoch {self._epoch}/{self._num_epochs} {images / self._num_images:4.0%}"
        self.show(share, (self._epoch - 1) * self._num_images + images, values or {})

    def finish_epoch(self, record: Mapping[str, float]) -> None:
        """Prints a line on an epoch, given its record in metrics.jsonl."""
        results: dict[str, str] = {}
        for name, splits in metrics.found([record]).items():
            for split in splits:
                text = metrics.text(name, record[f"{split}/{name}"])
                results[split] = f"{results.get(split, split)} {name} {text}"
        # Use the clock rather than the record, so that evaluation counts too.
        elapsed = time.monotonic() - self._started
        timed = record["epoch"] - self._epochs_before
        left = (self._num_epochs - record["epoch"]) * elapsed / timed
        self.line(
            f"epoch {record['epoch']:>{len(str(self._num_epochs))}}/{self._num_epochs}  "
            f"{'  '.join(results.values())}  "
            f"{record['seconds']:.1f} s  {record['images_per_second']:,.0f} images/s  "
            f"{datetime.timedelta(seconds=round(left))} left"
        )

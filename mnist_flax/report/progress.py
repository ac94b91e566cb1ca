"""Shows the progress of a run: a bar on a terminal, plain lines elsewhere."""

import datetime
import sys
import time

from tqdm import tqdm

_PLAIN_SECONDS = 60  # between the lines of an epoch if there is no terminal


class Display:
    """Shows a bar that counts images, if there is a terminal, and lines; nothing if `quiet`."""

    def __init__(self, num_images: int, quiet: bool = False):
        self._quiet = quiet
        self._started = time.monotonic()
        self._last_line = time.monotonic()
        self._bar = tqdm(
            total=num_images,
            disable=quiet or not sys.stderr.isatty(),
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.1,
        )

    def line(self, text: str) -> None:
        """Prints a line to standard output, above the bar if there is one."""
        if self._quiet:
            return
        self._last_line = time.monotonic()
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Removes the bar."""
        self._bar.leave = False
        self._bar.close()

    def show(self, share: str, images: int, loss: float | None, accuracy: float | None) -> None:
        """Shows how many images are done in all; without a terminal, at most one line a minute."""
        values = "" if loss is None else f"loss {loss:.4f}, accuracy {accuracy:.2%}"
        if not self._bar.disable:
            self._bar.set_description(share, refresh=False)
            self._bar.set_postfix_str(values, refresh=False)
            self._bar.update(images - self._bar.n)
            self._bar.refresh()
        elif values and time.monotonic() - self._last_line > _PLAIN_SECONDS:
            self.line(f"{share}  {values}")


class Progress(Display):
    """Shows a run of `num_epochs` epochs of `num_images` images.

    On a terminal, it shows one bar over all images, with the epoch and how much of it is done, the
    loss, the accuracy, images per second and the time left. Elsewhere, it prints complete lines:
    one per epoch, and at most one a minute in between. It shows nothing if `quiet`.
    """

    def __init__(self, num_epochs: int, num_images: int, quiet: bool = False):
        super().__init__(num_epochs * num_images, quiet)
        self._num_epochs = num_epochs
        self._num_images = num_images
        self._epoch = 0
        self._epochs_before = 0

    def start_epoch(self, epoch: int) -> None:
        """Starts an epoch, counted from 1."""
        if self._epoch == 0:
            # The rate must not include what came before, which is mostly compilation.
            self._started = time.monotonic()
            self._epochs_before = epoch - 1
            if not self._bar.disable:
                self._bar.reset()
                # Nor must it include the epochs that an earlier process trained.
                self._bar.n = self._bar.initial = self._bar.last_print_n = (
                    self._epochs_before * self._num_images
                )
        self._epoch = epoch
        self.update(0)

    def update(self, images: int, metrics: dict[str, float] | None = None) -> None:
        """Shows how many images of the epoch are done, and a step's loss and accuracy (0..1)."""
        share = f"epoch {self._epoch}/{self._num_epochs} {images / self._num_images:4.0%}"
        m = metrics or {}
        self.show(
            share, (self._epoch - 1) * self._num_images + images, m.get("loss"), m.get("accuracy")
        )

    def finish_epoch(self, record: dict[str, float]) -> None:
        """Prints a line on an epoch, given its record in metrics.jsonl."""
        splits = [split for split in ("train", "validation", "test") if f"{split}/loss" in record]
        results = "  ".join(
            f"{split} loss {record[f'{split}/loss']:.4f} accuracy {record[f'{split}/accuracy']:.2%}"
            for split in splits
        )
        # Use the clock rather than the record, so that evaluation counts too.
        elapsed = time.monotonic() - self._started
        timed = record["epoch"] - self._epochs_before
        left = (self._num_epochs - record["epoch"]) * elapsed / timed
        self.line(
            f"epoch {record['epoch']:>{len(str(self._num_epochs))}}/{self._num_epochs}  {results}  "
            f"{record['seconds']:.1f} s  {record['images_per_second']:,.0f} images/s  "
            f"{datetime.timedelta(seconds=round(left))} left"
        )

"""What a person watching sees: bars on a terminal, plain lines elsewhere."""

import datetime
import sys
import time

from tqdm import tqdm

_PLAIN_SECONDS = 60  # between lines within an epoch where there is no terminal


class _Display:
    """A bar over images on a terminal, and lines; nothing if it is to be quiet."""

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

    def _show(self, share: str, images: int, loss: float | None, accuracy: float | None) -> None:
        """Shows `images` of all done; where there is no terminal, a line if the last is old."""
        values = "" if loss is None else f"loss {loss:.4f}, accuracy {accuracy:.2%}"
        if not self._bar.disable:
            self._bar.set_description(share, refresh=False)
            self._bar.set_postfix_str(values, refresh=False)
            self._bar.update(images - self._bar.n)
            self._bar.refresh()
        elif values and time.monotonic() - self._last_line > _PLAIN_SECONDS:
            self.line(f"{share}  {values}")


class Progress(_Display):
    """Shows a run of `num_epochs` epochs of `num_images` images.

    On a terminal: one bar over all images, with the epoch, its share done, loss, accuracy, images
    per second and time left. Elsewhere: complete lines, one an epoch and one a minute within.
    Nothing if it is to be `quiet`.
    """

    def __init__(self, num_epochs: int, num_images: int, quiet: bool = False):
        super().__init__(num_epochs * num_images, quiet)
        self._num_epochs = num_epochs
        self._num_images = num_images
        self._epoch = 0
        self._epochs_before = 0

    def start_epoch(self, epoch: int) -> None:
        """Begins epoch number `epoch`, from 1."""
        if self._epoch == 0:
            # What came before, compiling above all, says nothing of the rate.
            self._started = time.monotonic()
            self._epochs_before = epoch - 1
            if not self._bar.disable:
                self._bar.reset()
                # What an earlier process trained on says nothing of the rate either.
                self._bar.n = self._bar.initial = self._bar.last_print_n = (
                    self._epochs_before * self._num_images
                )
        self._epoch = epoch
        self.update(0)

    def update(self, images: int, loss: float | None = None, accuracy: float | None = None) -> None:
        """Shows `images` of the epoch done, and a step's loss and accuracy (0..1)."""
        share = f"epoch {self._epoch}/{self._num_epochs} {images / self._num_images:4.0%}"
        self._show(share, (self._epoch - 1) * self._num_images + images, loss, accuracy)

    def finish_epoch(self, record: dict[str, float]) -> None:
        """Writes the line of an epoch, from its record in metrics.jsonl."""
        splits = [split for split in ("train", "validation", "test") if f"{split}/loss" in record]
        results = "  ".join(
            f"{split} loss {record[f'{split}/loss']:.4f} accuracy {record[f'{split}/accuracy']:.2%}"
            for split in splits
        )
        # From the clock, so that evaluation counts.
        elapsed = time.monotonic() - self._started
        timed = record["epoch"] - self._epochs_before
        left = (self._num_epochs - record["epoch"]) * elapsed / timed
        self.line(
            f"epoch {record['epoch']:>{len(str(self._num_epochs))}}/{self._num_epochs}  {results}  "
            f"{record['seconds']:.1f} s  {record['images_per_second']:,.0f} images/s  "
            f"{datetime.timedelta(seconds=round(left))} left"
        )


class StudyProgress(_Display):
    """Shows a study: one bar over all images of all its replicas.

    On a terminal: the variant, its epoch and what is left of the whole study. Elsewhere: complete
    lines, one a replica and one a minute within.

    Args:
      num_images: that all replicas which are left will be trained on, each epoch's counted.
      num_replicas: of the whole study.
      num_finished: of these.
    """

    def __init__(self, num_images: int, num_replicas: int, num_finished: int):
        super().__init__(num_images)
        self._num_images = num_images
        self._num_replicas = num_replicas
        self._num_finished = num_finished
        self._images_before = 0
        self._label = ""
        self._num_together = 1

    def start(self, label: str, num_together: int) -> None:
        """Begins with replicas that are trained together."""
        self._label = label
        self._num_together = num_together

    def update(self, images: int, loss: float | None = None, accuracy: float | None = None) -> None:
        """Shows `images` of the epoch done by each replica, and their mean loss and accuracy."""
        done = self._images_before + images * self._num_together
        left = f", {self._left(done)} left" if done else ""
        share = f"{self._label} ({done / self._num_images:.0%} of all{left})"
        self._show(share, done, loss, accuracy)

    def finish_epoch(self, images: int) -> None:
        """Counts an epoch of so many images as done, by each replica."""
        self._images_before += images * self._num_together

    def finish_replica(self, text: str) -> None:
        """Writes the line of a replica."""
        self._num_finished += 1
        self.line(
            f"{self._num_finished:>{len(str(self._num_replicas))}}/{self._num_replicas}  {text}  "
            f"{self._left(self._images_before)} left"
        )

    def _left(self, images: int) -> datetime.timedelta:
        """How long the rest takes, at the rate of the images done; compiling included."""
        elapsed = time.monotonic() - self._started
        return datetime.timedelta(seconds=round((self._num_images - images) * elapsed / images))

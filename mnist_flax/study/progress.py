"""Shows the progress of a study."""

import datetime
import time

from mnist_flax.report.progress import Display


class StudyProgress(Display):
    """Shows a study: one bar over all images of all its replicas.

    On a terminal, it shows the variant, its epoch and the time left for the whole study. Elsewhere,
    it prints complete lines: one per replica, and at most one a minute in between.

    Args:
      num_images: the images that the remaining replicas have to train on, summed over all epochs.
      num_replicas: the number of replicas in the whole study.
      num_finished: how many of these are finished.
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
        """Starts an epoch of replicas that are trained together."""
        self._label = label
        self._num_together = num_together

    def update(self, images: int, loss: float | None = None, accuracy: float | None = None) -> None:
        """Shows how many images of the epoch each replica has seen, and their mean metrics."""
        done = self._images_before + images * self._num_together
        left = f", {self._left(done)} left" if done else ""
        share = f"{self._label} ({done / self._num_images:.0%} of all{left})"
        self.show(share, done, loss, accuracy)

    def finish_epoch(self, images: int) -> None:
        """Counts an epoch of `images` images as finished by each of the replicas."""
        self._images_before += images * self._num_together

    def finish_replica(self, text: str) -> None:
        """Prints the line of a finished replica."""
        self._num_finished += 1
        self.line(
            f"{self._num_finished:>{len(str(self._num_replicas))}}/{self._num_replicas}  {text}  "
            f"{self._left(self._images_before)} left"
        )

    def _left(self, images: int) -> datetime.timedelta:
        """Returns the time left at the rate so far, which includes compilation."""
        elapsed = time.monotonic() - self._started
        return datetime.timedelta(seconds=round((self._num_images - images) * elapsed / images))

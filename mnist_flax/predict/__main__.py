"""Classifies pictures with a trained run: python -m mnist_flax.predict --workdir=RUN [PICTURE ...].

Without pictures, it classifies the test set of the run.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from mnist_flax import predict
from mnist_flax.cli import program
from mnist_flax.errors import UserError

if TYPE_CHECKING:  # importing them takes a second, and invalid flags should be reported at once
    import numpy as np

    from mnist_flax.predict import Classifier

_WORKDIR = flags.DEFINE_string("workdir", "", "The folder of the run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", predict.CHECKPOINT_HELP)
_RAW = flags.DEFINE_boolean(
    "raw", False, "Use the pictures unchanged; they must be 28x28 pixels, bright on black."
)
_JSON = flags.DEFINE_boolean("json", False, "Print a line of JSON per picture, not a table.")
_FIGURE = flags.DEFINE_string("figure", "", "A PNG file to write, with digits and probabilities.")
_MANUAL_DIR = flags.DEFINE_string(
    "manual_dir",
    "",
    "The folder with the files of the data set to test on. By default, the folder that the run "
    "used, if it exists here; otherwise, the files are downloaded.",
)


def main(paths: Sequence[str]) -> None:
    """Classifies the pictures that the command line names, or the test set if it names none."""
    if not _WORKDIR.value:
        raise UserError("--workdir is missing; allowed: the folder of a run")
    if _RAW.value and not paths:
        raise UserError("--raw is only for pictures; name some, or leave it out")
    if _MANUAL_DIR.value and paths:
        raise UserError(
            "--manual_dir is only for the test set; leave out either it or the pictures"
        )
    classifier = predict.load(_WORKDIR.value, _CHECKPOINT.value)
    # With --json, standard output must hold nothing but JSON.
    print(_describe(classifier), file=sys.stderr if _JSON.value else sys.stdout)
    if paths:
        _classify(classifier, paths)
    else:
        _test(classifier)


def _describe(classifier: "Classifier") -> str:
    text = f"{_WORKDIR.value}, epoch {classifier.epoch}, trained on {classifier.about.title}"
    if not (classifier.is_best and classifier.is_chosen_on_test and _CHECKPOINT.value == "best"):
        return text
    return f"{text}; it was chosen on the test set, so its test accuracy is optimistic"


def _classify(classifier: "Classifier", paths: Sequence[str]) -> None:
    """Prints a line for each picture, and an error for each one that cannot be read.

    Raises:
      UserError: some pictures could not be read.
    """
    import numpy as np

    from mnist_flax.predict import pictures

    read: dict[str, np.ndarray] = {}
    names = list(dict.fromkeys(paths))
    for path in names:
        try:
            read[path] = pictures.read(path, _RAW.value)
        except UserError as error:
            if len(names) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
    if read:
        images = np.stack(list(read.values()))
        probabilities = classifier(images)
        _print(list(read), probabilities, classifier.class_names)
        _draw(classifier, images, None, probabilities, f"predictions of {_WORKDIR.value}")
    if failed := len(names) - len(read):
        raise UserError(f"{failed:,} of {len(names):,} pictures cannot be classified")


def _print(names: Sequence[str], probabilities: "np.ndarray", classes: Sequence[str]) -> None:
    if _JSON.value:
        for name, row in zip(names, probabilities, strict=True):
            best, by_class = classes[row.argmax()], dict(zip(classes, row.tolist(), strict=True))
            print(json.dumps({"picture": name, "class": best, "probabilities": by_class}))
        return
    width = max(map(len, ("picture", *names)))
    best_width = max(map(len, ("class", *classes)))
    columns = [max(len(name), 7) for name in classes]
    headings = " ".join(f"{name:>{n}}" for name, n in zip(classes, columns, strict=True))
    print(f"{'picture':{width}}  {'class':{best_width}}  {headings}")
    for name, row in zip(names, probabilities, strict=True):
        shares = " ".join(f"{share:>{n}.2%}" for share, n in zip(row, columns, strict=True))
        print(f"{name:{width}}  {classes[row.argmax()]:{best_width}}  {shares}")


def _test(classifier: "Classifier") -> None:
    """Classifies the test set and prints the accuracy.

    Raises:
      UserError: the data are not the data of the run.
    """
    from mnist_flax import data
    from mnist_flax.run.resuming import check_data

    about, config = classifier.about, classifier.config.dataset
    if _MANUAL_DIR.value and about.source == "sample":
        raise UserError("--manual_dir is not for a run on the bundled sample; leave it out")
    config.manual_dir = _MANUAL_DIR.value or _if_folder(config.manual_dir)
    config.data_dir = _if_folder(config.data_dir)
    config.source = "sample" if about.source == "sample" else "tfds"
    dataset = data.load(config, classifier.config.seed)
    allowed = "another --manual_dir"
    check_data(f"--workdir={_WORKDIR.value}", classifier.identity, dataset.identity, allowed)
    images, labels = dataset.test
    probabilities = classifier(images)
    errors = int((probabilities.argmax(1) != labels).sum())
    accuracy = 1 - errors / len(labels)
    count = f"{errors:,} errors in {len(labels):,} test images"
    text = f"{accuracy:.2%} test accuracy, {count}, on {about.title}"
    print(
        json.dumps({"test_accuracy": accuracy, "num_test_errors": errors}) if _JSON.value else text
    )
    _draw(classifier, images, labels, probabilities, f"the test set, by {_WORKDIR.value}")


def _if_folder(path: str) -> str:
    """Returns the path of a folder if it exists on this machine, otherwise the default, ''."""
    return path if os.path.isdir(os.path.expanduser(path)) else ""


def _draw(
    classifier: "Classifier",
    images: "np.ndarray",
    labels: "np.ndarray | None",
    probabilities: "np.ndarray",
    title: str,
) -> None:
    if not _FIGURE.value:
        return
    from mnist_flax.report import figures
    from mnist_flax.runtime.files import expand, write_whole

    title = f"{title}, epoch {classifier.epoch}, trained on {classifier.about.title}"
    figure = figures.digits_with_bars(images, labels, probabilities, classifier.class_names, title)
    try:
        write_whole(expand(_FIGURE.value), figures.to_png(figure))
    except OSError as error:
        raise UserError(f"--figure={_FIGURE.value}: {error.strerror}") from None


if __name__ == "__main__":
    program.run(main)

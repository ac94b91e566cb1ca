"""Classifies pictures with a trained run: python -m mnist_flax.predict --workdir=RUN [PICTURE ...].

Without pictures, it classifies the test set of the run.
"""

import json
import os
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from mnist_flax import predict
from mnist_flax.cli import program
from mnist_flax.errors import UserError
from mnist_flax.runtime.files import expand, explain, write_whole

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder of the run, or the file of a checkpoint.", required=True
)
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
    if _RAW.value and not paths:
        raise UserError("--raw is only for pictures; name some, or leave it out")
    if _MANUAL_DIR.value and paths:
        raise UserError(
            "--manual_dir is only for the test set; leave out either it or the pictures"
        )
    classifier = predict.load(_WORKDIR.value, _CHECKPOINT.value)
    text = _describe(classifier)
    if _CHECKPOINT.value == "best" and not classifier.config.dataset.validation_size:
        text += "; it was chosen on the test set, so its test accuracy is optimistic"
    # With --json, standard output must hold nothing but JSON.
    print(text, file=sys.stderr if _JSON.value else sys.stdout)
    if paths:
        _classify(classifier, paths)
    else:
        _test(classifier)


def _describe(classifier: "predict.Classifier") -> str:
    return f"{_WORKDIR.value}, epoch {classifier.epoch}, trained on {classifier.about.title}"


def _classify(classifier: "predict.Classifier", paths: Sequence[str]) -> None:
    """Prints a line for each picture, and an error for each one that cannot be read.

    Raises:
      UserError: some pictures could not be read.
    """
    from mnist_flax.predict import pictures  # imports SciPy

    read: dict[str, np.ndarray] = {}
    names = list(dict.fromkeys(paths))
    for path in names:
        try:
            read[path] = pictures.read(path, _RAW.value)
        except UserError as error:
            if len(names) == 1:
                raise
            print(f"error: {_printable(str(error))}", file=sys.stderr)
    if read:
        images = np.stack(list(read.values()))
        probabilities = classifier(images)
        _print(list(read), probabilities, classifier.class_names)
        title = f"predictions of {_describe(classifier)}"
        _draw(classifier, images, None, probabilities, title)
    if failed := len(names) - len(read):
        raise UserError(f"{failed:,} of {len(names):,} pictures cannot be classified")


def _print(names: Sequence[str], probabilities: np.ndarray, classes: Sequence[str]) -> None:
    if _JSON.value:
        for name, row in zip(names, probabilities, strict=True):
            best, by_class = classes[row.argmax()], dict(zip(classes, row.tolist(), strict=True))
            print(json.dumps({"picture": name, "class": best, "probabilities": by_class}))
        return
    rows = [("picture", "class", *classes)]
    for name, row in zip(names, probabilities, strict=True):
        rows.append((_printable(name), classes[row.argmax()], *(f"{share:7.2%}" for share in row)))
    width, best_width, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, best, *shares in rows:
        print(f"{name:{width}}  {best:{best_width}}  {' '.join(map(str.rjust, shares, widths))}")


def _printable(text: str) -> str:
    """Returns a text without characters that would control a terminal."""
    return text if text.isprintable() else ascii(text)


def _test(classifier: "predict.Classifier") -> None:
    """Classifies the test set and prints the accuracy.

    Raises:
      UserError: the data are not the data of the run.
    """
    from mnist_flax import data  # imports JAX
    from mnist_flax.run.resuming import check_data

    about, config = classifier.about, classifier.config.dataset
    if _MANUAL_DIR.value and about.source == "sample":
        raise UserError("--manual_dir is not for a run on the bundled sample; leave it out")
    config.manual_dir = _MANUAL_DIR.value or _if_folder(config.manual_dir)
    config.data_dir, config.source = _if_folder(config.data_dir), about.source
    dataset = data.load(config, classifier.config.seed)
    where, before = f"--workdir={_WORKDIR.value}", classifier.history.data
    check_data(where, before, dataset.identity, "another --manual_dir")
    images, labels = dataset.test
    probabilities = classifier(images)
    errors = int((probabilities.argmax(1) != labels).sum())
    accuracy = 1 - errors / len(labels)
    if _JSON.value:
        print(json.dumps({"test_accuracy": accuracy, "num_test_errors": errors}))
    else:
        count = f"{errors:,} errors in {len(labels):,} test images"
        print(f"{accuracy:.2%} test accuracy, {count}, on {about.title}")
    _draw(classifier, images, labels, probabilities, f"the test set, by {_describe(classifier)}")


def _if_folder(path: str) -> str:
    """Returns the path of a folder if it exists on this machine, otherwise the default, ''."""
    return path if os.path.isdir(os.path.expanduser(path)) else ""


def _draw(
    classifier: "predict.Classifier",
    images: np.ndarray,
    labels: np.ndarray | None,
    probabilities: np.ndarray,
    title: str,
) -> None:
    if not _FIGURE.value:
        return
    from mnist_flax.report import figures  # imports Matplotlib

    figure = figures.digits_with_bars(images, labels, probabilities, classifier.class_names, title)
    try:
        write_whole(expand(_FIGURE.value), figures.to_png(figure))
    except OSError as error:
        raise UserError(f"--figure={_FIGURE.value}: {explain(error)}") from None


if __name__ == "__main__":
    program.run(main)

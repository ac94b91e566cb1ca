"""Writes a page as one file: fills a template and includes everything that it needs."""

import base64
import pathlib
from typing import Any

import jinja2
import numpy as np

from mnist_flax.report import metrics
from mnist_flax.report.page import content, digits
from mnist_flax.report.page.content import Run
from mnist_flax.report.page.network import Layers

MAX_BYTES = 4_000_000
_SCRIPTS = ("elements.js", "decode.js", "network.js", "pad.js", "digits.js", "chart.js", "page.js")
_DTYPES = (np.float32, np.float16)  # for the weights; the first that fits is used


def render(run: Run) -> str:
    """Returns the page of a run as HTML below `MAX_BYTES`, without a network that does not fit."""
    data = _data(run)
    try:
        layers = Layers(run.config, run.variables, run.dataset.mean, run.dataset.std)
    except KeyError:
        return _fill(run, data, "The scripts of this page cannot run this kind of network.")
    for dtype in _DTYPES:
        if layers.weights.size * np.dtype(dtype).itemsize > MAX_BYTES:
            continue
        arrays = {**data["arrays"], "weights": pack(layers.weights.astype(dtype))}
        page = _fill(run, {**data, "layers": layers.layers, "arrays": arrays})
        if len(page.encode()) <= MAX_BYTES:
            return page
    return _fill(run, data, "This network is too large for a page of 4 MB.")


def _data(run: Run) -> dict[str, Any]:
    """Returns the data that the scripts read, except for the network."""
    images, labels = run.dataset.test
    wrong = digits.choose_wrong(run.test, labels)
    least_sure, examples = digits.choose_right(run.test, labels)
    shown = np.unique(np.concatenate([wrong, least_sure, examples]))
    arrays = {
        "images": pack(images[shown]),
        "probabilities": pack(np.float32(run.test.probabilities[shown])),
    }
    if run.create_examples is not None:
        original, augmented = run.create_examples()
        sheet = np.concatenate([original[None], augmented])
        arrays["sheet"] = pack(np.rint(sheet).astype(np.uint8))
    return {
        "layers": None,
        "side": images.shape[1],
        "classNames": run.dataset.class_names,
        "charts": metrics.charts(run.history),
        "digits": {"indices": shown.tolist(), "labels": labels[shown].tolist()},
        "examples": np.searchsorted(shown, examples).tolist(),
        "arrays": arrays,
    }


def pack(array: np.ndarray) -> dict[str, str]:
    """Returns an array, flattened, in the form that `decode.js` reads."""
    array = array.astype(array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.name, "base64": base64.b64encode(array.tobytes()).decode()}


def templates(*folders: pathlib.Path) -> jinja2.Environment:
    """Returns the templates of this folder and of others, which come first.

    A template may `read` a script or a style sheet: Jinja must not interpret their braces.
    """
    loader = jinja2.FileSystemLoader([*folders, pathlib.Path(__file__).parent])
    environment = jinja2.Environment(
        loader=loader,
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["read"] = lambda name: loader.get_source(environment, name)[0]
    return environment


def _fill(run: Run, data: dict[str, Any], why_no_network: str = "") -> str:
    """Returns the template, filled with values and with the scripts included."""
    confusion = run.test.confusion
    return (
        templates()
        .get_template("run.html")
        .render(
            run=run,
            data=data,
            why_no_network=why_no_network,
            content=content,
            records=metrics.thin(run.history.records),
            num_left_out=max(len(run.test.misclassified) - digits.MAX_WRONG, 0),
            most=(confusion - np.diag(np.diag(confusion))).max(),  # of the errors in a cell
            scripts=_SCRIPTS,
        )
    )

"""Writes a page as one file: fills a template and includes everything that it needs."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from mnist_flax.report.page import content, digits
from mnist_flax.report.page.content import Run
from mnist_flax.report.page.network import Layers

MAX_BYTES = 4_000_000
_SCRIPTS = ("elements.js", "decode.js", "network.js", "pad.js", "digits.js", "chart.js", "page.js")
_DTYPES = (np.float32, np.float16)  # for the weights; the first that fits is used


def render(run: Run) -> str:
    """Returns the page of a run as HTML below `MAX_BYTES`, without a network that does not fit."""
    data = _data(run)
    values = {
        **content.headline(run),
        "facts": content.facts(run),
        "groups": content.configuration(run),
        "call": content.call(run),
        "rows": content.matrix(run),
        "num_left_out": max(len(run.test.misclassified) - digits.MAX_WRONG, 0),
        "records": content.records(run),
        "class_names": run.dataset.class_names,
        # The page checks its probabilities against the run's, which are means over the views.
        "is_comparable": run.config["evaluation.num_views"] == 1,
    }
    try:
        layers = Layers(run.config, run.variables, run.dataset.mean, run.dataset.std)
    except KeyError:
        return _fill(values, data, ["The scripts of this page cannot run this kind of network."])
    for dtype in _DTYPES:
        if layers.weights.size * np.dtype(dtype).itemsize > MAX_BYTES:
            continue
        arrays = {**data["arrays"], "weights": pack(layers.weights.astype(dtype))}
        full = {**data, "layers": layers.layers, "arrays": arrays}
        page = _fill(values, full, _notes(run, dtype))
        if len(page.encode()) <= MAX_BYTES:
            return page
    return _fill(values, data, ["This network is too large for a page of 4 MB."])


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
        "charts": content.charts(run),
        "digits": {"indices": shown.tolist(), "labels": labels[shown].tolist()},
        "examples": np.searchsorted(shown, examples).tolist(),
        "arrays": arrays,
    }


def _notes(run: Run, dtype: type) -> list[str]:
    """Returns sentences on how the page's network differs from the one that the run evaluated."""
    notes = []
    if run.config["model.dtype"] != "float32":
        notes.append(f"The run computed in {run.config['model.dtype']}; this page uses float32.")
    if dtype is np.float16:
        notes.append("Its weights are rounded to float16, to keep this file below 4 MB.")
    if (views := run.config["evaluation.num_views"]) > 1:
        notes.append(f"The run averaged {views} views of each image; this page uses only one.")
    return notes


def pack(array: np.ndarray) -> dict[str, str]:
    """Returns an array, flattened, in the form that `decode.js` reads."""
    array = array.astype(array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.name, "base64": base64.b64encode(array.tobytes()).decode()}


def _fill(values: dict[str, Any], data: dict[str, Any], notes: list[str]) -> str:
    return fill("run.html", {**values, "data": data, "notes": notes}, _SCRIPTS)


def fill(template: str, values: Mapping[str, Any], scripts: Sequence[str]) -> str:
    """Returns a template of this folder, filled with values and with the scripts included."""
    loader = jinja2.PackageLoader("mnist_flax.report.page", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip

    def read(name: str) -> str:
        """Returns a file of this folder unchanged: Jinja must not interpret its braces."""
        return loader.get_source(environment, name)[0]

    return environment.get_template(template).render(values, read=read, scripts=scripts)

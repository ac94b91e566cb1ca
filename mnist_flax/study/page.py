"""The page of a study: the contents of study.md and every replica's curves, in one HTML file."""

import base64
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from mnist_flax.data import Dataset
from mnist_flax.report.page import content, render
from mnist_flax.runtime import process
from mnist_flax.study.findings_text import FIGURES, FindingsText, Row, origin
from mnist_flax.study.store import Replica

_SCRIPTS = ("elements.js", "chart.js", "study.js")
_NUM_COLORS = 10  # `color-0` to `color-9` in style.css; a study has 10 seeds by default
_MAX_POINTS = 200  # per curve, because a page may hold hundreds of curves


def create(
    text: FindingsText,
    dataset: Dataset,
    rows: Sequence[Row],
    words: Sequence[str],
    now: datetime.datetime,
    figures: Mapping[str, bytes],
) -> str:
    """Returns the page as HTML.

    Args:
      text: puts the findings into text.
      dataset: the data of the study.
      rows: the recipes, in the order of the table.
      words: the findings, one per line.
      now: the date of the page.
      figures: the figures as PNGs, by file name.
    """
    columns, *cells = text.table(rows)
    curves = charts(rows)
    values = {
        "name": text.title,
        "title": dataset.title,
        "is_sample": dataset.source == "sample",
        "note": dataset.note,
        "num_recipes": len(rows),
        "num_seeds": len(_seeds(rows)),
        "origin": origin(dataset, rows, now),
        "progress": text.progress(rows),
        "call": process.repeating_command(),
        "words": words,
        "figures": [
            (FIGURES[name], base64.b64encode(png).decode()) for name, png in figures.items()
        ],
        "columns": columns,
        "cells": cells,
        "notes": text.notes(rows),
        "shown": next(
            (name for name in curves if _are_lines(curves[name])), next(iter(curves), "")
        ),
        "recipes": [row.name for row in rows],
        "charts": curves,
    }
    return render.fill("study.html", values, _SCRIPTS)


def charts(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Returns charts by metric ('test accuracy', say): one per recipe, with a line per seed."""
    records = [record for row in rows for replica in row.replicas for record in replica.records]
    colors = {seed: f"color-{at % _NUM_COLORS}" for at, seed in enumerate(_seeds(rows))}
    found: dict[str, list[dict[str, Any]]] = {}
    for split in ("test", "validation", "train"):
        for metric in ("accuracy", "loss"):
            key, name = f"{split}/{metric}", f"{split} {metric}"
            if not any(key in record for record in records):
                continue
            found[name] = []
            for row in rows:
                lines = [_line(replica, key, colors[replica.seed]) for replica in row.replicas]
                chart = {**content.METRICS[metric], "title": f"{row.name}, {name}", "x": "epoch"}
                found[name].append({**chart, "series": [line for line in lines if line["x"]]})
    return found


def _line(replica: Replica, key: str, color: str) -> dict[str, Any]:
    """Returns the curve of a replica over the epochs that have a finite value."""
    factor = 100 if key.endswith("accuracy") else 1
    records = [record for record in replica.records if record.get(key) is not None]
    kept = content.thin(records, _MAX_POINTS) if records else []
    epochs = [record["epoch"] for record in kept]
    return content.series(
        f"seed {replica.seed}", color, epochs, [factor * record[key] for record in kept]
    )


def _are_lines(charts: Sequence[dict[str, Any]]) -> bool:
    """Whether a line has more than one point: test results may exist for the last epoch only."""
    return any(len(line["x"]) > 1 for chart in charts for line in chart["series"])


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({replica.seed for row in rows for replica in row.replicas})

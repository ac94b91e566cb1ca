"""Reads an offline W&B run: a 7-byte header, then a LevelDB-style log of protocol buffers.

Source of the log's format: https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import json
import pathlib
import struct
import time
from collections.abc import Iterator
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK = 32_768
_FILE_HEADER = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: pathlib.Path) -> Iterator[wandb_internal_pb2.Record]:
    """Yields the records of a `.wandb` file in order."""
    content = path.read_bytes()
    assert content[:4] == b":W&B", "not a W&B log"
    position, parts = _FILE_HEADER, []
    while position + 7 <= len(content):
        left_in_block = _BLOCK - position % _BLOCK
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        part = content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (_FULL, _FIRST):
            parts = []
        parts.append(part)
        if kind in (_FULL, _LAST):
            yield wandb_internal_pb2.Record.FromString(b"".join(parts))


def _values(items: Any) -> dict[str, Any]:
    """Returns W&B's items as nested dictionaries; a key may be a path."""
    values: dict[str, Any] = {}
    for item in items:
        *parents, last = [item.key] if item.key else item.nested_key
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = json.loads(item.value_json)
    return values


def _finished_records(path: pathlib.Path) -> list[wandb_internal_pb2.Record]:
    """Waits for the last record: W&B's service still writes after `finish` has returned."""
    deadline = time.monotonic() + 30
    while True:
        found = list(records(path))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.1)


class OfflineRun:
    """The only offline run below a folder, or the one whose folder has a given name.

    Attributes:
      run: the RunRecord (project, display_name, tags, run_group).
      config: the configuration as W&B shows it.
      history: one dictionary per step, in order.
      summary: the last value of each key.
      artifacts: the ArtifactRecords of models, in order.
      axes: the name of each metric's step axis.
      folder: the folder of the run.
      exit_code: the status with which the run ended.
    """

    def __init__(self, below: pathlib.Path, name: str = "offline-run-*") -> None:
        (path,) = below.glob(f"**/{name}/*.wandb")
        self.folder = path.parent
        self.config, self.history, self.summary = {}, [], {}
        self.artifacts, self.axes = [], {}
        for record in _finished_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= _values(record.run.config.update)
            elif kind == "config":
                self.config |= _values(record.config.update)
            elif kind == "history":
                self.history.append(_values(record.history.item))
            elif kind == "artifact":
                self.artifacts += [record.artifact] if record.artifact.type == "model" else []
            elif kind == "metric":
                name = record.metric.name or record.metric.glob_name
                self.axes[name] = record.metric.step_metric
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
            elif kind == "summary":
                self.summary |= _values(record.summary.update)

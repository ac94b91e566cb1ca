"""Hypothesis damages everything that people supply: no traceback, no hang, nothing overwritten."""

import contextlib
import gzip
import json
import shutil
import tempfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mnist_flax.run.history import History

from configs import default
from mnist_flax.errors import UserError
from mnist_flax.run.checkpoint import Checkpoints
from mnist_flax.run.fields import FIELDS
from mnist_flax.run.workdir import Workdir
from mnist_flax.sources import idx
from tests.run.test_checkpoint import create, like
from tests.runs import files

OPTIONS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
VALUES = st.one_of(
    TEXT,
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "True", "None", "()", "((36,),(", "[]", "1e999", "nan", "{'a':1}", "-0"]),
    st.recursive(st.integers(-3, 99), lambda x: st.lists(x, max_size=3).map(tuple)).map(str),
)
OVERRIDES = st.builds(
    "{}config.{}={}".format,
    st.sampled_from(["--", "-", "--no"]),
    st.one_of(st.sampled_from(sorted(FIELDS)), TEXT),
    VALUES,
)
ARGUMENTS = st.one_of(
    OVERRIDES,
    OVERRIDES,
    OVERRIDES,
    st.builds("--config={}".format, st.sampled_from(["README.md", "configs", "", "x.py", "/"])),
    st.builds("--{}".format, TEXT),
    st.builds("--flagfile={}".format, st.sampled_from(["README.md", "configs", "", "/none"])),
    TEXT.filter(lambda text: not text.startswith("-")),
)


@settings(max_examples=300, **OPTIONS)
@given(st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_command_lines(fork_main, arguments):
    done = fork_main(*arguments, command="parser")
    status, out, err = done.returncode, done.stdout, done.stderr
    if any(argument.lstrip("-").split("=")[0] in ("help", "helpfull") for argument in arguments):
        return
    assert "Traceback" not in out + err
    if status == 0:
        assert out.strip().isdecimal() and err == ""
        return
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err


def idx_file(values: np.ndarray) -> bytes:
    header = np.array([0x800 + values.ndim, *values.shape], ">u4")
    return header.tobytes() + values.tobytes()


DAMAGE = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 10_000), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 10_000), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, 10_000), st.integers(0, 255)),
)


def damaged(content: bytes, damage) -> bytes:
    kind, position, value = damage
    content = bytearray(content)
    if not content:
        return b""
    position %= len(content)
    if kind == "flip":
        content[position] ^= value
    elif kind == "cut":
        del content[position:]
    else:
        content.insert(position, value)
    return bytes(content)


@settings(max_examples=150, **OPTIONS)
@given(
    side=st.sampled_from([None, 5]),
    in_gzip=st.lists(DAMAGE, max_size=2),
    in_file=st.lists(DAMAGE, max_size=2),
)
def test_idx_files(side, in_gzip, in_file):
    values = np.arange(7) if side is None else np.arange(7 * 25).reshape(7, 5, 5)
    content = idx_file(values.astype(np.uint8))
    for damage in in_gzip:
        content = damaged(content, damage)
    content = gzip.compress(content)
    for damage in in_file:
        content = damaged(content, damage)
    try:
        found = idx.parse(idx.unpack(content), values.shape, 10 if side is None else 256)
    except (EOFError, OSError, ValueError, zlib.error):
        assert in_gzip or in_file
    else:
        assert found.shape == values.shape
        assert side is not None or found.max() < 10


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A used workdir, its configuration, and the state in its checkpoints."""
    config = default.get_config()
    config.model.channels, config.model.kernel_sizes = ((2,),), ((3,),)
    state = create(config)
    folder = tmp_path_factory.mktemp("used") / "run"
    workdir = Workdir(str(folder), config.to_dict())
    history, checkpoints = History("id", "digits"), Checkpoints(folder / "checkpoints", 2)
    for epoch in (1, 2):
        record = {"epoch": epoch, "test/accuracy": 0.5}
        history = history.extended(record, np.ones(2, np.float32), np.ones(2, np.float32))
        checkpoints.save(state, history)
        workdir.append_metrics(record)
    workdir.close()
    return folder, config.to_dict(), state


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3),
)


@st.composite
def _bad_workdirs(draw):
    """Draws damage to a workdir: a list of (kind, index of the file, damage or JSON)."""
    kinds = st.sampled_from(["damage", "damage", "remove", "config", "folder", "num_epochs"])
    return [
        (
            kind,
            draw(st.integers(0, 1_000)),
            draw(JSON if kind in ("config", "num_epochs") else DAMAGE),
        )
        for kind in draw(st.lists(kinds, min_size=1, max_size=3))
    ]


@settings(max_examples=150, **OPTIONS)
@given(_bad_workdirs())
def test_workdirs_of_other_runs(used, changes):
    whole, config, state = used
    with tempfile.TemporaryDirectory() as parent:
        folder = shutil.copytree(whole, f"{parent}/run")
        folder = whole.__class__(folder)
        for kind, index, value in changes:
            present = sorted(path for path in folder.rglob("*") if path.is_file())
            path = present[index % len(present)]
            if kind == "damage":
                path.write_bytes(damaged(path.read_bytes() or b"x", value))
            elif kind == "remove":
                path.unlink()
            elif kind == "folder":
                path.unlink()
                path.mkdir()
            else:
                other = value if kind == "config" else {**config, "num_epochs": value}
                with contextlib.suppress(OSError):
                    (folder / "config.json").write_text(json.dumps(other))
        before = files(folder)
        said = []
        try:
            with contextlib.closing(Workdir(str(folder), config)) as workdir:
                restored = Checkpoints(folder / "checkpoints", 2).restore(
                    like(state), workdir.has_metrics, said.append
                )
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2_000
            assert {k: v for k, v in files(folder).items() if k in before} == before
        else:
            epoch = restored[1].epoch if restored else 0
            assert epoch == 2 or said or not list(folder.glob("checkpoints/2/files.sha256"))
            for path, content in files(folder).items():
                assert ".damaged" in path or path == "config.json" or before[path] == content

"""Hypothesis damages everything that people supply: no traceback, no hang, nothing overwritten."""

import contextlib
import json
import pathlib
import shutil
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_flax.errors import UserError
from mnist_flax.run.checkpoint import Checkpoints
from mnist_flax.run.fields import FIELDS
from mnist_flax.run.workdir import Workdir
from tests.run.test_checkpoint import create, histories, like
from tests.runs import files, run, tiny

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
VALUES = st.one_of(
    TEXT,
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "True", "None", "()", "((36,),(", "[]", "1e999", "nan", "{'a':1}", "-0"]),
    st.recursive(st.integers(-3, 99), lambda x: st.lists(x, max_size=3).map(tuple)).map(str),
)
NAMES = st.sampled_from(sorted(FIELDS)) | TEXT
OVERRIDES = st.builds("{}config.{}={}".format, st.sampled_from(["--", "-", "--no"]), NAMES, VALUES)
ARGUMENTS = st.one_of(
    *[OVERRIDES] * 3,
    st.builds("--config={}".format, st.sampled_from(["configs", "", "x.py", "/"])),
    st.builds("--{}".format, TEXT),
    st.builds("--flagfile={}".format, st.sampled_from(["README.md", "configs", "", "/none"])),
    TEXT.filter(lambda text: not text.startswith("-")),
)
DAMAGE = st.tuples(
    st.sampled_from(["flip", "cut", "insert"]), st.integers(0, 10_000), st.integers(1, 255)
)
NAMES_IN_JSON = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(NAMES_IN_JSON, x, max_size=3),
)
KINDS = st.sampled_from(["damage", "damage", "remove", "config", "folder", "num_epochs"])
CHANGES = st.tuples(KINDS, st.integers(0, 1_000), DAMAGE, JSON)


@pytest.fixture(params=[40, pytest.param(1_000, marks=pytest.mark.slow)])
def fuzz(request):
    """Calls a function with many examples of a strategy, always the same."""

    def fuzz(strategy, check):
        options = {"deadline": None, "derandomize": True, "database": None}
        settings(max_examples=request.param, **options)(given(strategy)(check))()

    return fuzz


def test_fuzzed_command_lines(fuzz):
    def check(arguments):
        done = run(*arguments, command="parser")
        status, out, err = done.returncode, done.stdout, done.stderr
        assert "Traceback" not in out + err
        if status:
            assert (status, out, err[:7], err.count("\n")) == (2, "", "error: ", 1), err
        else:
            assert out and err == ""

    fuzz(st.lists(ARGUMENTS, min_size=1, max_size=3), check)


def damaged(content, damage):
    kind, position, value = damage
    content = bytearray(content or b"x")
    position %= len(content)
    if kind == "flip":
        content[position] ^= value
    elif kind == "cut":
        del content[position:]
    else:
        content.insert(position, value)
    return bytes(content)


def test_fuzzed_workdirs(fuzz, tmp_path):
    config = tiny()
    config.model.channels, config.model.kernel_sizes = ((2,),), ((3,),)
    state, values = create(config), config.to_dict()
    with contextlib.closing(Workdir(tmp_path / "run", values)) as workdir:
        workdir.open()
        for history in histories(0.5, 0.5)[1:]:
            Checkpoints(tmp_path / "run" / "checkpoints", 2).save(state, history, values, {})
            workdir.write_metrics(history.records)

    def change(folder, kind, index, damage, json_value):
        present = sorted(path for path in folder.rglob("*") if path.is_file())
        path = present[index % len(present)]
        if kind == "damage":
            path.write_bytes(damaged(path.read_bytes(), damage))
        elif kind in ("remove", "folder"):
            path.unlink()
            if kind == "folder":
                path.mkdir()
        else:
            other = json_value if kind == "config" else {**values, "num_epochs": json_value}
            with contextlib.suppress(OSError):
                (folder / "config.json").write_text(json.dumps(other))

    def check(changes):
        with tempfile.TemporaryDirectory() as parent:
            folder = pathlib.Path(shutil.copytree(tmp_path / "run", f"{parent}/run"))
            for each in changes:
                change(folder, *each)
            before, said = files(folder), []
            try:
                with contextlib.closing(Workdir(folder, values)) as workdir:
                    workdir.open()
                    restored = Checkpoints(folder / "checkpoints", 2).restore(
                        like(state), workdir.has_metrics, said.append
                    )
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 2_000
            else:
                is_newest = restored and restored[1].epoch == 2
                assert is_newest or said or not (folder / "checkpoints" / "2.msgpack").exists()
            after = files(folder)
            assert {name: after[name] for name in before} == before

    fuzz(st.lists(CHANGES, min_size=1, max_size=3), check)

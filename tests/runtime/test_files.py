import errno
import os
import pathlib

import pytest

from mnist_flax.errors import UserError
from mnist_flax.runtime import files


@pytest.fixture
def system(monkeypatch):
    """Records the calls that put files on the disk; `fail[name]` is what a call raises."""
    calls, fail = [], {}

    def watch(name, real):
        def call(*args):
            calls.append(name)
            if name in fail:
                raise fail[name]
            return real(*args)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace"):
        watch(name, getattr(os, name))
    return calls, fail


@pytest.mark.parametrize("content", ["dé\n", b"\x00\xff"])
def test_write_is_on_the_disk_before_and_after_it_gets_its_name(tmp_path, system, content):
    path = tmp_path / "file"
    path.write_text("old")
    files.write_whole(path, content)
    encoded = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == encoded and os.listdir(tmp_path) == ["file"]
    assert system[0] == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_write_that_fails_leaves_the_old_file_alone(tmp_path, system, name, error):
    path = tmp_path / "file"
    path.write_text("old")
    system[1][name] = error
    with pytest.raises(type(error)):
        files.write_whole(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_write_where_nothing_can_be_synced(tmp_path, system):
    system[1]["fsync"] = OSError(errno.ENOTSUP, "")
    files.write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_write_needs_a_name():
    with pytest.raises(IsADirectoryError):
        files.write_whole(pathlib.Path("."), "")


def test_explanation_is_one_line():
    assert files.explain(OSError(errno.EACCES, "Permission denied", "x")) == "Permission denied"
    assert files.explain(ValueError("one\ntwo")) == "one"
    assert files.explain(ValueError()) == "ValueError"


def test_home_of_nobody_is_one_line():
    with pytest.raises(UserError, match="~no_such_user_/run"):
        files.expand("~no_such_user_/run")
    assert files.expand("~/run") == pathlib.Path.home() / "run"

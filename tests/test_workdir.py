import datetime
import json
import os
import pathlib

import pytest

from mnist_flax.errors import UserError
from mnist_flax.run import workdir
from mnist_flax.run.workdir import Workdir, check_workdir


def test_files(tmp_path):
    folder = Workdir(str(tmp_path / "a" / "b"), {"seed": 1})
    folder.append_metrics({"epoch": 1, "test/loss": 0.5})
    folder.append_metrics({"epoch": 2, "test/loss": 0.25})
    folder.write_summary({"step": 2})
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert json.loads((folder.path / "config.json").read_text()) == {"seed": 1}
    assert json.loads((folder.path / "summary.json").read_text()) == {"step": 2}
    assert not list(folder.path.glob("*.partial"))


def test_what_is_not_json_is_not_written(tmp_path):
    folder = Workdir(str(tmp_path / "run"), {})
    with pytest.raises(ValueError):
        folder.append_metrics({"test/loss": float("nan")})
    assert not (folder.path / "metrics.jsonl").exists()


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workdir.datetime, "datetime", Clock)
    paths = [Workdir("", {}).path for _ in range(3)]
    assert paths == [
        pathlib.Path("runs") / name
        for name in ("2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_3")
    ]


def test_a_folder_of_another_run_is_refused(tmp_path):
    Workdir(str(tmp_path), {"seed": 1})
    with pytest.raises(UserError, match=r"config.seed=1 \(now 2\); allowed: the same conf"):
        Workdir(str(tmp_path), {"seed": 2})
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}


def test_checking_makes_nothing(tmp_path):
    check_workdir(str(tmp_path / "new" / "folder"), {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        check_workdir(str(tmp_path / "file" / "run"), {})


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    # Root may write anywhere, so what the system says is stood in for.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written"):
        check_workdir(str(tmp_path / "run"), {})

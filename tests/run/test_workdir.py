import datetime
import json
import os
import pathlib
from contextlib import closing

import pytest

from configs import default
from mnist_flax.errors import UserError
from mnist_flax.run import workdir
from mnist_flax.run.resuming import is_free, may_extend
from mnist_flax.run.workdir import Workdir, check_workdir


def test_files(tmp_path):
    with closing(Workdir(str(tmp_path / "a" / "b"), {"seed": 1})) as folder:
        folder.append_metrics({"epoch": 1, "test/loss": 0.5})
        folder.append_metrics({"epoch": 2, "test/loss": 0.25})
        folder.write_json("summary.json", {"step": 2})
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert json.loads((folder.path / "config.json").read_text()) == {"seed": 1}
    assert json.loads((folder.path / "summary.json").read_text()) == {"step": 2}
    assert not list(folder.path.glob("*.partial"))


def test_what_is_not_json_is_not_written(tmp_path):
    with closing(Workdir(str(tmp_path / "run"), {})) as folder:
        with pytest.raises(ValueError):
            folder.append_metrics({"test/loss": float("nan")})
        with pytest.raises(ValueError):
            folder.write_json("summary.json", {"test/loss": float("inf")})
    assert not (folder.path / "metrics.jsonl").exists()
    assert not (folder.path / "summary.json").exists()


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workdir.datetime, "datetime", Clock)
    folders = [Workdir("", {}) for _ in range(3)]
    assert [folder.path for folder in folders] == [
        pathlib.Path("runs") / name
        for name in ("2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_3")
    ]
    for folder in folders:
        folder.close()


def test_a_folder_of_another_run_is_refused(tmp_path):
    Workdir(str(tmp_path), {"seed": 1}).close()
    with pytest.raises(UserError, match=r"config.seed=1 \(now 2\); allowed: the same conf"):
        Workdir(str(tmp_path), {"seed": 2})
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}


@pytest.mark.parametrize(
    ("schedule", "is_study", "allowed"),
    [
        (
            "exponential",
            False,
            "the same configuration, a larger config.num_epochs, or a new folder",
        ),
        ("cosine", False, "the same configuration, or a new folder"),
        ("exponential", True, "the same configuration, or a new folder"),
    ],
)
def test_more_epochs_are_offered_only_where_they_are_allowed(tmp_path, schedule, is_study, allowed):
    config = default.get_config()
    config.optimizer.schedule = schedule
    Workdir(str(tmp_path), config.to_dict()).close()
    config.seed += 1
    config.optimizer.schedule = "exponential"  # the schedule of the run in the folder counts
    may_differ = (lambda name, before, now: is_free(name)) if is_study else may_extend
    with pytest.raises(UserError) as error:
        check_workdir(str(tmp_path), config.to_dict(), may_differ)
    where, text = f"--workdir={tmp_path} has config.", str(error.value)
    assert text.startswith(where) and text.endswith(f"config.seed=42 (now 43); allowed: {allowed}")


def test_a_folder_is_in_use_until_it_is_closed(tmp_path):
    first = Workdir(str(tmp_path), {})
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on .*; choose anoth"):
        Workdir(str(tmp_path), {})
    first.close()
    Workdir(str(tmp_path), {}).close()


def test_checking_makes_nothing(tmp_path):
    check_workdir(str(tmp_path / "new" / "folder"), {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        check_workdir(str(tmp_path / "file" / "run"), {})


def test_a_name_that_the_system_refuses():
    with pytest.raises(UserError, match=r"config\.json cannot be read: .*File name too long"):
        Workdir("a" * 300, {})


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    # Root may write anywhere, so fake the system's answer.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written"):
        check_workdir(str(tmp_path / "run"), {})


@pytest.mark.parametrize("before", ["", "no JSON", "[1]", "\x00"])
def test_a_configuration_that_cannot_be_read_is_refused_untouched(tmp_path, before):
    (tmp_path / "config.json").write_text(before)
    with pytest.raises(UserError, match=r"config\.json .*; allowed: a new folder") as error:
        Workdir(str(tmp_path), {})
    assert "\n" not in str(error.value)
    assert (tmp_path / "config.json").read_text() == before

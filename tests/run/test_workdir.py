import datetime
import json
import os
import pathlib
from contextlib import closing

import pytest

from configs import default
from mnist_flax.errors import UserError
from mnist_flax.run import workdir
from mnist_flax.run.resuming import check_same, is_free, may_extend
from mnist_flax.run.workdir import Workdir
from tests.runs import files


def opened(path, config):
    folder = Workdir(path, config)
    folder.open()
    return closing(folder)


def test_files_of_a_run(tmp_path):
    records = [{"epoch": 1, "test/loss": 0.5}, {"epoch": 2, "test/loss": 0.25}]
    with opened(tmp_path / "a" / "b", {"seed": 1}) as folder:
        folder.write_metrics(records)
        folder.write_json("summary.json", {"step": 2})
        for write in (lambda x: folder.write_metrics([x]), lambda x: folder.write_json("y", x)):
            with pytest.raises(ValueError):
                write({"test/loss": float("nan")})
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert json.loads((folder.path / "config.json").read_text()) == {"seed": 1}
    assert json.loads((folder.path / "summary.json").read_text()) == {"step": 2}
    assert files(folder.path).keys() == {"metrics.jsonl", "config.json", "summary.json"}
    assert folder.figures.is_dir()


def test_dated_folders_of_the_same_second(tmp_path, monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workdir.datetime, "datetime", Clock)
    paths = []
    for _ in range(3):
        with opened("", {}) as folder:
            paths.append(folder.path)
    names = ("2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_3")
    assert paths == [pathlib.Path("runs") / name for name in names]


def test_folder_of_another_run_is_refused_and_not_locked(tmp_path):
    with opened(tmp_path, {"seed": 1}):
        pass
    with pytest.raises(UserError) as error:
        Workdir(tmp_path, {"seed": 2})
    assert str(tmp_path) in str(error.value) and "config.seed=1 (now 2)" in str(error.value)
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}
    with opened(tmp_path, {"seed": 1}):  # in a notebook, `error` still holds the first attempt
        pass


def test_folder_is_in_use_until_it_is_closed(tmp_path):
    in_use = pytest.raises(UserError, match=f"{tmp_path} .*process {os.getpid()} ")
    with opened(tmp_path, {}), in_use:
        Workdir(tmp_path, {})
    with opened(tmp_path, {}):
        pass


@pytest.mark.parametrize(
    ("name", "value", "schedule", "warmup", "may"),
    [
        ("num_epochs", 30, "exponential", 0.0, True),
        ("num_epochs", 10, "exponential", 0.0, False),
        ("num_epochs", 30, "cosine", 0.0, False),
        ("num_epochs", 30, "exponential", 0.1, False),
        ("checkpoint.keep", 9, "cosine", 0.1, True),
        ("dataset.data_dir", "elsewhere", "cosine", 0.0, True),
        ("dataset.source", "tfds", "cosine", 0.0, True),
        ("wandb.project", "other", "cosine", 0.0, True),
        ("seed", 1, "exponential", 0.0, False),
        ("model.norm", "layer", "exponential", 0.0, False),
    ],
)
def test_what_may_change_when_a_run_resumes(name, value, schedule, warmup, may):
    config = default.get_config()
    config.optimizer.schedule, config.optimizer.warmup = schedule, warmup
    before = json.loads(config.to_json())
    config.update_from_flattened_dict({name: value})
    refused = None
    try:
        check_same("it", before, config.to_dict(), may_extend)
    except UserError as error:
        refused = str(error)
    assert (refused is None) == may
    assert may or f"config.{name}=" in refused
    assert is_free(name) == (may and name != "num_epochs")


def test_field_that_an_older_run_lacks_had_its_default():
    config = default.get_config()
    older = json.loads(config.to_json())
    del older["label_smoothing"]
    check_same("it", older, config.to_dict(), may_extend)
    config.label_smoothing = 0.1
    with pytest.raises(UserError, match=r"config\.label_smoothing=0\.0 \(now 0\.1\)"):
        check_same("it", older, config.to_dict(), may_extend)


def test_nothing_is_made_before_it_is_opened(tmp_path):
    Workdir(tmp_path / "new" / "folder", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("file/run", "file"),
        ("a" * 300, "a" * 300),
        ("~no_such_user_/run", "no_such_user_"),
        ("gs://bucket/run", "gs://bucket/run"),
        ("s3:/bucket", "s3:/bucket"),
        ("file:///x", "file:///x"),
    ],
)
def test_path_that_cannot_be_a_folder_is_one_line(tmp_path, monkeypatch, path, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        Workdir(path, {}).open()
    assert named in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_unwritable_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match=str(tmp_path)):
        Workdir(tmp_path / "run", {})


@pytest.mark.parametrize("content", [b"", b"no JSON", b"[1]", b"\0", b"\xff"])
def test_damaged_configuration_is_refused_untouched(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json") as error:
        Workdir(tmp_path, {})
    assert "\n" not in str(error.value)
    assert files(tmp_path) == {"config.json": content}

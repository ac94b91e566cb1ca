import json
import os
from contextlib import closing

import pytest

from configs import default
from mnist_flax.errors import UserError
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
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with opened("", {}):
            pass
    assert len([path for path in tmp_path.glob("runs/20*_*-*-*") if path.is_dir()]) == 2


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
    in_use = pytest.raises(UserError, match=f"{tmp_path} .*another process")
    with opened(tmp_path, {}), in_use:
        Workdir(tmp_path, {})
    with opened(tmp_path, {}):
        pass


def changed(name, value, **optimizer):
    """Returns a configuration before and after a field changed, the first as JSON."""
    config = default.get_config()
    config.optimizer.update(optimizer)
    before = json.loads(config.to_json())
    config.update_from_flattened_dict({name: value})
    return before, config.to_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_epochs", 30),
        ("checkpoint.keep", 9),
        ("dataset.data_dir", "elsewhere"),
        ("dataset.source", "tfds"),
        ("wandb.project", "other"),
    ],
)
def test_what_may_change_when_a_run_resumes(name, value):
    check_same("it", *changed(name, value), may_extend)
    assert is_free(name) == (name != "num_epochs")


@pytest.mark.parametrize(
    ("name", "value", "optimizer"),
    [
        ("num_epochs", 10, {}),
        ("num_epochs", 30, {"schedule": "cosine"}),
        ("num_epochs", 30, {"warmup": 0.1}),
        ("seed", 1, {}),
        ("model.norm", "layer", {}),
    ],
)
def test_what_may_not_change(name, value, optimizer):
    with pytest.raises(UserError, match=rf"config\.{name}="):
        check_same("it", *changed(name, value, **optimizer), may_extend)
    assert not is_free(name)


def test_field_that_an_older_run_lacks_had_its_default():
    older, same = changed("seed", 42)
    del older["label_smoothing"]
    check_same("it", older, same, may_extend)
    with pytest.raises(UserError, match=r"config\.label_smoothing=0\.0 \(now 0\.1\)"):
        check_same("it", older, changed("label_smoothing", 0.1)[1], may_extend)


def test_nothing_is_made_before_it_is_opened(tmp_path):
    Workdir(tmp_path / "new" / "folder", {})
    assert list(tmp_path.iterdir()) == []


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

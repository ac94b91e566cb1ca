import io
import json
import pathlib
import shutil
from concurrent.futures import Future

import numpy as np
import pytest
from PIL import Image

from mnist_flax import predict
from mnist_flax.report import media
from mnist_flax.report.tracking import Tracker
from tests.runs import TINY, python, records, summary
from tests.wandb_log import OfflineRun


def png() -> Future[bytes]:
    """Returns a small picture, already drawn."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
    drawn: Future[bytes] = Future()
    drawn.set_result(buffer.getvalue())
    return drawn


@pytest.fixture
def start(tiny_config, tmp_path, monkeypatch):
    """Returns a function that starts a tracker without a login; `start.said` has its output."""
    monkeypatch.setenv("NETRC", "/dev/null")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    said = []

    def start(**wandb_fields) -> Tracker:
        tiny_config.wandb.update({"mode": "offline", **wandb_fields})
        extra = {"data_source": "sample"}
        return Tracker(tiny_config, str(tmp_path), "anid", "a-name", extra, ["sample"], said.append)

    start.said = said
    return start


def log_a_run(tracker):
    tracker.log(0, {"augmentation": png()})
    tracker.log_steps(1, np.array([0.5, 0.25]), np.array([0.75, 1.0]))
    tracker.log(2, {"test/accuracy": 0.875, "predictions": png()})
    images = np.zeros((3, 28, 28, 1), np.uint8)
    digits = (images, np.array([0, 1, 2]), np.eye(3)[[1, 2, 0]], "abc")
    tracker.log(2, {"misclassified_table": lambda: media.misclassified(*digits)})
    assert tracker.finish({"final_test_accuracy": 0.875})


def test_an_offline_run_holds_everything(start, tmp_path):
    tracker = start(project="p", group="g", tags=("x,y", "z"))
    log_a_run(tracker)
    written = OfflineRun(tmp_path)
    assert written.run.project == "p"
    assert written.run.display_name == "a-name"
    assert written.run.run_id == "anid"
    assert written.run.run_group == "g"
    assert sorted(written.run.tags) == ["sample", "x", "y", "z"]
    assert written.config["data_source"] == "sample"
    assert written.config["model"]["norm"] == "batch"
    steps = {row["_step"]: row for row in written.history}
    assert list(steps) == [0, 1, 2]
    assert (steps[1]["train/loss"], steps[1]["train/accuracy"]) == (0.5, 0.75)
    assert (steps[2]["train/loss"], steps[2]["test/accuracy"]) == (0.25, 0.875)
    for step, key in ((0, "augmentation"), (2, "predictions")):
        picture = Image.open(written.folder / "files" / steps[step][key]["path"])
        np.testing.assert_array_equal(np.asarray(picture.convert("L")), np.arange(64).reshape(8, 8))
    table = steps[2]["misclassified_table"]
    assert (table["nrows"], table["ncols"]) == (3, 6)
    assert written.summary["final_test_accuracy"] == 0.875
    assert pathlib.Path(tracker.offline_folder).resolve() == written.folder


def test_what_the_real_command_leaves(run_main, tmp_path):
    """W&B has the page, checkpoints as artifacts that can be loaded, and epochs as an axis."""
    fields = {"mode": "offline", "log_model": "all", "job_type": "trial", "notes": "some notes"}
    arguments = [f"--config.wandb.{name}={value}" for name, value in fields.items()]
    run = tmp_path / "run"
    done = run_main(*TINY, *arguments, "--config.num_epochs=2", f"--workdir={run}")
    assert done.returncode == 0, done.stderr
    written = OfflineRun(run)
    assert (written.run.job_type, written.run.notes) == ("trial", "some notes")
    best = max(records(run), key=lambda record: record["test/accuracy"])["epoch"]
    assert [sorted(artifact.aliases) for artifact in written.artifacts] == [
        ["best", "latest"] if epoch == 1 or epoch == best else ["latest"] for epoch in (1, 2)
    ]
    for epoch, artifact in enumerate(written.artifacts, 1):
        for entry in artifact.manifest.contents:  # as W&B's server would assemble it
            path = tmp_path / f"{epoch}" / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(entry.local_path, path)
        assert predict.load(str(tmp_path / f"{epoch}")).epoch == epoch
    assert written.axes["test/*"] == written.axes["test/accuracy"] == "epoch"
    assert "train/loss" not in written.axes  # its axis is the step, W&B's default
    (page,) = (row["report"] for row in written.history if "report" in row)
    assert (written.folder / "files" / page["path"]).read_text() == (
        run / "report.html"
    ).read_text()


def test_auto_without_a_login_is_offline(start, tmp_path):
    log_a_run(start(mode="auto"))
    assert OfflineRun(tmp_path).summary["final_test_accuracy"] == 0.875


def test_online_without_a_login_is_kept_offline_and_said(start, tmp_path):
    log_a_run(start(mode="online"))
    assert OfflineRun(tmp_path).summary["final_test_accuracy"] == 0.875
    assert start.said[0].startswith("W&B: not logged in")


def test_a_server_that_refuses_costs_no_wait_and_no_data(tmp_path):
    """This runs in its own process, because W&B reads its settings only once."""
    script = f"""
import time
from mnist_flax.report import service, tracking
from tests.report.test_tracking import log_a_run
from configs import default
service._INIT_SECONDS = 3
config = default.get_config()
config.wandb.mode = "online"
started = time.monotonic()
tracker = tracking.Tracker(config, {str(tmp_path)!r}, "anid", "n", {{}}, [], print)
tracker.log_steps(1, [0.5], [0.5])
assert time.monotonic() - started < 1
log_a_run(tracker)
print("kept in", tracker.offline_folder)
"""
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    done = python("-c", script, timeout=120, **env)
    assert done.returncode == 0, done.stderr
    assert "W&B: no connection" in done.stdout and "/offline-run-" in done.stdout, done.stdout
    assert OfflineRun(tmp_path).summary["final_test_accuracy"] == 0.875


def test_a_service_that_hangs_is_given_up(tmp_path):
    """W&B's process is suspended; ours must still end."""
    script = f"""
import time
import psutil
from mnist_flax.report import tracking
from configs import default
tracking._FINISH_SECONDS = 2
config = default.get_config()
config.wandb.mode = "offline"
tracker = tracking.Tracker(config, {str(tmp_path)!r}, "anid", "n", {{}}, [], print)
while tracker._run is None:
    time.sleep(0.1)
services = [p for p in psutil.Process().children(recursive=True) if "wandb" in p.name()]
assert services
for service in services:
    service.suspend()
tracker.log_steps(1, [0.5], [0.5])
tracker.finish({{}})
print("finished", flush=True)
"""
    # Leave out the variables that W&B set in an earlier test, so that the script starts a service.
    done = python("-c", script, timeout=60)
    assert "W&B does not answer; upload what is left: wandb sync" in done.stdout
    assert done.stdout.endswith("finished\n")
    assert done.returncode == 0


def test_a_run_of_the_same_process_is_left_alone(tmp_path):
    """A notebook may have its own W&B run, which must survive even if ours cannot start."""
    script = f"""
import os
import wandb
from mnist_flax.report import service, tracking
from configs import default
own = wandb.init(mode="offline", dir={str(tmp_path / "own")!r}, id="own")
os.environ["WANDB_IDENTITY_TOKEN_FILE"] = "/nowhere"
config = default.get_config()
tracker = tracking.Tracker(config, {str(tmp_path / "ours")!r}, "ours", "n", {{}}, [], print)
tracker.log_steps(1, [0.5], [0.5])
assert tracker.finish({{"final_test_accuracy": 0.875}})
service.give_up()
assert wandb.run is own and os.environ["WANDB_IDENTITY_TOKEN_FILE"] == "/nowhere"
own.log({{"mine": 1}})
own.finish()
"""
    for name in ("own", "ours"):
        (tmp_path / name).mkdir()
    done = python("-c", script, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("W&B: it cannot start with these settings") == 1
    ours, own = OfflineRun(tmp_path / "ours"), OfflineRun(tmp_path / "own")
    assert (ours.run.run_id, ours.summary["final_test_accuracy"]) == ("ours", 0.875)
    assert (own.run.run_id, [row["mine"] for row in own.history]) == ("own", [1])


def test_the_next_run_of_the_same_process_finds_no_trace(tmp_path):
    """A notebook may start its own W&B run afterwards."""
    script = f"""
import wandb
from mnist_flax.report import service, tracking
from configs import default
config = default.get_config()
config.wandb.mode = "offline"
tracker = tracking.Tracker(config, {str(tmp_path)!r}, "ours", "n", {{}}, [], print)
assert tracker.finish({{"final_test_accuracy": 0.875}})
assert not service.services()
settings = wandb.setup().settings
print(settings.mode, settings.silent, settings.project)
"""
    done = python("-c", script, timeout=60, WANDB_PROJECT="theirs")
    assert (done.returncode, done.stdout) == (0, "online False theirs\n"), done.stderr
    assert OfflineRun(tmp_path).summary["final_test_accuracy"] == 0.875


def test_disabled_imports_nothing(tiny_config, tmp_path):
    script = f"""
import sys
from mnist_flax import predict
from mnist_flax.report.tracking import Tracker
from configs import default
config = default.get_config()
config.wandb.mode = "disabled"
tracker = Tracker(config, {str(tmp_path)!r}, "anid", "n", {{}}, [], print)
tracker.log_steps(1, [0.5], [0.5])
tracker.finish({{}})
assert "wandb" not in sys.modules
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_said_once_and_stops_the_tracking(start, monkeypatch):
    tracker = start()
    tracker.log(1, {"value": object()})  # W&B cannot log it
    tracker.log(2, {"value": object()})
    tracker.finish({})
    assert sum("W&B stopped" in line for line in start.said) == 1


def test_a_model_that_cannot_be_copied_is_said_and_left_out(tmp_path):
    """Training continues, and so does the tracking; no part of the copy stays."""
    temporary, run = tmp_path / "temporary", tmp_path / "run"
    for folder in (temporary, run):
        folder.mkdir()
    (run / "config.json").write_text("{}")  # the rest of the run is missing
    script = f"""
import pathlib
import tempfile
from mnist_flax.report.tracking import Tracker
from configs import default
config = default.get_config()
config.wandb.mode = "offline"
tracker = Tracker(config, {str(run)!r}, "anid", "n", {{}}, [], print)
tempfile.tempdir, before = {str(temporary)!r}, tempfile.gettempdir()
tracker.log_model(pathlib.Path({str(run)!r}), 1, is_best=True)
tempfile.tempdir = before
assert tracker.finish({{"final_test_accuracy": 0.875}})
"""
    done = python("-c", script, timeout=60)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "model" in line)
    assert line.startswith("copying the model of epoch 1 for W&B failed: FileNotFoundError: ")
    assert list(temporary.iterdir()) == []
    assert OfflineRun(run).summary["final_test_accuracy"] == 0.875


# Environment variables, or files in the home folder, that W&B rejects: value and reason by name.
BAD = {
    "WANDB_API_KEY": ("changeme", "API key must have 40"),
    "WANDB_BASE_URL": ("garbage", "base_url: Input should be a valid URL"),
    "WANDB_FORK_FROM": ("x?_step=3", "mutually exclusive"),
    "WANDB_IDENTITY_TOKEN_FILE": ("/nowhere", "No such file or directory: '/nowhere'"),
    "WANDB_INIT_TIMEOUT": ("soon", "init_timeout: Input should be a valid number"),
    "WANDB_MODE": ("nonsense", "mode: Input should be 'online'"),
    "WANDB_PROJECT": ("a/b", "Invalid project name 'a/b'"),
    "WANDB_RUN_ID": ("a/b", "Run ID cannot contain"),
    "WANDB_SERVICE": ("garbage", "WANDB_SERVICE='garbage'"),
    "WANDB_SILENT": ("perhaps", "silent: Input should be a valid boolean"),
    "WANDB_TAGS": ("a" * 65, "is 65 characters"),
    ".netrc": ("garbage {", "Failed to read netrc file"),
    ".config/wandb/settings": ("[default]\nproject = a/b\n", "Invalid project name 'a/b'"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Starts a tracker with each of `BAD`; returns the folders, with the output in `out`."""
    folder = tmp_path_factory.mktemp("refused")
    script = """
import json, os, pathlib, sys
import wandb
from configs import default
from mnist_flax import predict
from mnist_flax.report.tracking import Tracker

folder = pathlib.Path(sys.argv[1])

def track(name, value):
    home = folder / name / "home"
    home.mkdir(parents=True)
    os.environ |= {"HOME": str(home), "NETRC": str(home / ".netrc")}
    if name.startswith("."):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(value)
    else:
        os.environ[name] = value
    with open(folder / name / "out", "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    say = lambda text: print(text, flush=True)
    tracker = Tracker(default.get_config(), str(folder / name), "anid", "n", {}, [], say)
    tracker.log_steps(1, [0.5], [0.5])
    assert tracker.finish({"final_test_accuracy": 0.875})
    # The rest of a notebook finds it as it was, but for the one that W&B itself sets.
    assert name.startswith(".") or name == "WANDB_SERVICE" or os.environ[name] == value

def start(name, value):
    child = os.fork()
    if not child:
        track(name, value)
        sys.exit()
    return child

waiting = list(json.loads(sys.argv[2]).items())
while waiting:  # six at a time
    children = {name: start(name, value) for name, value in waiting[:6]}
    del waiting[:6]
    for name, child in children.items():
        assert os.waitpid(child, 0)[1] == 0, name
"""
    values = json.dumps({name: value for name, (value, _) in BAD.items()})
    done = python("-c", script, str(folder), values)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, (_, reason) in BAD.items()])
def test_what_w_and_b_refuses_keeps_the_run_offline_and_is_said(refused, name, reason):
    (line,) = (refused / name / "out").read_text().splitlines()
    assert line.startswith("W&B: ") and reason in line
    assert OfflineRun(refused / name).summary["final_test_accuracy"] == 0.875


def test_a_key_that_is_none_keeps_the_run_offline(run_main, tmp_path):
    """The real command gives the reason once, in its first line about W&B."""
    done = run_main(
        *TINY,
        "--config.wandb.mode=auto",
        "--config.num_epochs=1",
        f"--workdir={tmp_path}/run",
        WANDB_API_KEY="changeme",
    )
    assert done.returncode == 0 and done.stderr == ""
    first, last = (line for line in done.stdout.splitlines() if line.startswith("W&B"))
    assert first == (
        "W&B: it cannot start with these settings (WANDB_API_KEY invalid: API key must have 40+ "
        "characters, has 8), so the run is kept offline"
    )
    assert last.startswith("W&B: the run is kept offline; to upload it: wandb sync ")
    assert OfflineRun(tmp_path).summary["step"] == 63


def test_a_package_that_cannot_be_imported(run_main, tmp_path):
    (tmp_path / "wandb.py").write_text("raise SystemError('of the stub')")
    done = run_main(
        *TINY,
        "--config.wandb.mode=offline",
        "--config.num_epochs=1",
        f"--workdir={tmp_path}/run",
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 0 and done.stderr == ""
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("W&B"))
    assert line == "W&B stopped: SystemError: of the stub"
    assert summary(tmp_path / "run")["step"] == 63

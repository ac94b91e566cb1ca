import dataclasses
import io
import json
import pathlib
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mnist_flax.report.tracking import Tracker, WandB
from mnist_flax.run import checkpoint
from tests.report.pages import history
from tests.report.test_observers import DATASET, TEST
from tests.runs import TINY, python, run, summary
from tests.wandb_log import OfflineRun


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
    tracker.log(0, {"augmentation": 1})
    tracker.log(1, {"train/loss": 0.5})
    tracker.log(2, {"train/loss": 0.25})
    tracker.log(2, {"test/accuracy": 0.875})
    assert tracker.finish({"final_test_accuracy": 0.875})


def script(code, tmp_path, **env):
    """Runs code that may use `tracking` and `create(mode)`, a tracker, as a command."""
    start = f"""
import os, subprocess, sys, time
from configs import default
from mnist_flax.report import tracking
def create(mode, workdir={str(tmp_path)!r}):
    config = default.get_config()
    config.wandb.mode = mode
    return tracking.Tracker(config, workdir, "anid", "n", {{}}, [], lambda t: print(t, flush=True))
"""
    done = python("-c", f"{start}{code}\nsys.stdout.flush()\nos._exit(0)", timeout=100, **env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class TestTracker:
    def test_an_offline_run_holds_everything(self, start, tmp_path):
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
        assert steps[1]["train/loss"] == 0.5
        assert (steps[2]["train/loss"], steps[2]["test/accuracy"]) == (0.25, 0.875)
        assert written.summary["final_test_accuracy"] == 0.875
        assert written.axes["test/*"] == written.axes["test/accuracy"] == "epoch"
        assert "train/loss" not in written.axes  # its axis is the step, W&B's default
        assert pathlib.Path(tracker.offline_folder).resolve() == written.folder
        assert start.said == []

    @pytest.mark.parametrize(
        ("mode", "env", "said"),
        [
            ("auto", {}, []),
            ("auto", {"WANDB_MODE": "offline", "WANDB_API_KEY": "a" * 40}, []),
            ("online", {}, ["W&B: not logged in (wandb login), so the run is kept offline"]),
            (
                "auto",
                {"WANDB_API_KEY": "changeme"},
                [
                    "W&B cannot start online (AuthenticationError: WANDB_API_KEY invalid: API key "
                    "must have 40+ characters, has 8.), so the run is kept offline"
                ],
            ),
        ],
    )
    def test_a_run_that_is_kept_offline(self, start, tmp_path, monkeypatch, mode, env, said):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        log_a_run(start(mode=mode))
        assert OfflineRun(tmp_path).summary["final_test_accuracy"] == 0.875
        assert start.said == said

    def test_settings_that_w_and_b_refuses_end_the_tracking_only(self, start, monkeypatch):
        monkeypatch.setenv("WANDB_BASE_URL", "garbage")
        tracker = start(mode="auto")
        tracker.log(1, {"value": 1})
        assert not tracker.finish({})
        first, last = start.said
        assert first.startswith("W&B cannot start online (ValidationError: 1 validation error")
        assert last.startswith("W&B stopped: ValidationError: 1 validation error")

    def test_disabled_by_its_own_variable(self, start, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "disabled")
        log_a_run(start(mode="auto"))
        assert list(tmp_path.iterdir()) == [] and start.said == []

    def test_disabled_imports_nothing(self, tmp_path):
        script(
            """
tracker = create("disabled")
tracker.log(1, {"train/loss": 0.5})
assert not tracker.finish({}) and "wandb" not in sys.modules
""",
            tmp_path,
        )
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_is_said_once_and_stops_the_tracking(self, start):
        tracker = start()
        tracker.log(1, {"value": object()})  # W&B cannot log it
        tracker.log(2, {"value": object()})
        assert not tracker.finish({})
        (line,) = start.said
        assert line.startswith("W&B stopped: ")

    def test_a_server_that_refuses_costs_no_wait_and_no_data(self, tmp_path):
        out = script(
            """
tracking._INIT_SECONDS = 3
started = time.monotonic()
tracker = create("online")
tracker.log(1, {"train/loss": 0.5})
assert time.monotonic() - started < 1
assert tracker.finish({"final_test_accuracy": 0.875})
print("kept in", tracker.offline_folder)
""",
            tmp_path,
            WANDB_BASE_URL="http://127.0.0.1:9",
            WANDB_API_KEY="a" * 40,
        )
        assert "W&B cannot start online (CommError: " in out and "/offline-run-" in out
        written = OfflineRun(tmp_path)
        assert [row["train/loss"] for row in written.history] == [0.5]
        assert written.summary["final_test_accuracy"] == 0.875

    def test_a_service_that_hangs_is_given_up(self, tmp_path):
        """W&B's process is suspended; ours must still end."""
        out = script(
            """
tracker = create("offline")
tracker.do(lambda wandb, run: None).result()
find = ["pgrep", "-P", str(os.getpid()), "wandb"]
(service,) = map(int, subprocess.run(find, capture_output=True).stdout.split())
os.kill(service, 19)
tracker.log(1, {"train/loss": 0.5})
assert not tracker.finish({}, timeout=2)
os.kill(service, 9)
""",
            tmp_path,
        )
        assert out.startswith("W&B does not answer; to upload what is left: wandb sync ")

    def test_a_notebook_finds_w_and_b_as_it_was(self, tmp_path):
        """Its own active run continues, and a later one has its own settings."""
        for name in ("first", "own", "ours"):
            (tmp_path / name).mkdir()
        script(
            f"""
import wandb
assert create("offline", {str(tmp_path / "first")!r}).finish({{}})
settings = wandb.setup().settings
assert (settings.mode, settings.silent, settings.project) == ("online", False, "theirs")
wandb.teardown()
settings = wandb.Settings(silent=True, mode="offline", root_dir={str(tmp_path / "own")!r})
own = wandb.init(id="own", settings=settings)
assert create("offline", {str(tmp_path / "ours")!r}).finish({{"final_test_accuracy": 0.875}})
assert wandb.run is own
own.log({{"mine": 1}})
own.finish()
""",
            tmp_path,
            WANDB_PROJECT="theirs",
        )
        ours, own = OfflineRun(tmp_path / "ours"), OfflineRun(tmp_path / "own")
        assert (ours.run.run_id, ours.summary["final_test_accuracy"]) == ("anid", 0.875)
        assert (own.run.run_id, [row["mine"] for row in own.history]) == ("own", [1])


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


class TestWandB:
    @pytest.fixture
    def observe(self, start, tmp_path):
        """Returns a function that creates an observer of a run with a page and checkpoints."""
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "report.html").write_text("<p>")
        drawn = {name: Future() for name in ("augmentation", "predictions", "misclassified")}
        drawn["augmentation"].cancel()  # as when the run is aborted
        drawn["predictions"].set_result(png())
        drawn["misclassified"].set_result(None)  # drawing it failed

        def observe(models="none"):
            pictures = SimpleNamespace(drawn=drawn)
            return WandB(start(), DATASET, pictures, tmp_path, models, start.said.append)

        return observe

    def test_a_run(self, observe, start, tmp_path):
        observer = observe()
        observer.start(history(0))
        for epoch in (1, 2):
            observer.epoch(history(epoch), TEST)
        summary = {"final_test_accuracy": 0.75, "title": "MNIST", "confusion_matrix": [[1]]}
        observer.finish(history(2), TEST, summary, {})
        written = OfflineRun(tmp_path)
        steps = {row["_step"]: row for row in written.history}
        assert list(steps) == [1, 2, 3, 4, 5, 6]
        assert (steps[5]["train/loss"], steps[5]["train/accuracy"]) == (2.25, np.float32(0.225))
        of_epoch = {"epoch": 2, "learning_rate": 0.1, "train/epoch_loss": 0.5, "test/loss": 1.0}
        of_epoch |= {"train/epoch_accuracy": 0.9375, "test/accuracy": 0.875}
        assert of_epoch.items() <= steps[6].items()
        files = written.folder / "files"
        for step in (3, 6):
            picture = Image.open(files / steps[step]["predictions"]["path"])
            assert np.array_equal(picture.convert("L"), np.arange(64).reshape(8, 8))
        assert "misclassified" not in steps[6] and "augmentation" not in steps[1]
        assert (files / steps[6]["report"]["path"]).read_text() == "<p>"
        table = json.loads((files / steps[6]["misclassified_table"]["path"]).read_text())
        assert table["columns"][:4] == ["image", "label", "prediction", "p(0)"]
        assert [row[1:3] for row in table["data"]] == [
            [str(label), str((label + 1) % 10)] for label in DATASET.test.labels[23:]
        ]
        assert (
            written.summary["final_test_accuracy"] == 0.75 and written.summary["title"] == "MNIST"
        )
        assert "confusion_matrix" not in written.summary
        waits, kept = start.said
        assert waits == "Waiting for W&B, at most 2 minutes"
        assert kept.startswith("W&B: the run is kept offline; to upload it: wandb sync ")

    def test_a_run_that_resumes_is_told_from_its_start(self, observe, tmp_path):
        """A metric that is new in its second epoch has only the steps of that one."""
        past = history(2)
        past = dataclasses.replace(past, steps={**past.steps, "new": np.float32([7, 8, 9])})
        observer = observe()
        observer.start(past)
        observer.finish(past, TEST, {}, {})
        steps = {row["_step"]: row for row in OfflineRun(tmp_path).history}
        assert [step for step, row in steps.items() if "epoch" in row] == [3, 6]
        assert {step: row["train/new"] for step, row in steps.items() if "train/new" in row} == {
            4: 7,
            5: 8,
            6: 9,
        }

    @pytest.mark.parametrize(("models", "expected"), [("best", [2]), ("all", [1, 2])])
    def test_checkpoints_may_be_deleted_once_they_are_logged(
        self, observe, tmp_path, models, expected
    ):
        observer = observe(models)
        for epoch in (1, 2):
            path = tmp_path / "checkpoints" / f"{epoch}.msgpack"
            path.write_bytes(b"%d" % epoch)
            observer.epoch(history(epoch), TEST)
            if models == "all":
                path.unlink()
        observer.finish(history(2), TEST, {}, {})
        artifacts = OfflineRun(tmp_path).artifacts
        assert [sorted(artifact.aliases) for artifact in artifacts] == [
            ["best", "latest"] for _ in expected
        ]
        for epoch, artifact in zip(expected, artifacts, strict=True):
            (entry,) = artifact.manifest.contents
            assert entry.path == f"{epoch}.msgpack"
            assert pathlib.Path(entry.local_path).read_bytes() == b"%d" % epoch

    def test_a_checkpoint_that_cannot_be_read_is_left_out(self, observe, start, tmp_path):
        observer = observe("all")
        observer.epoch(history(1), TEST)
        observer.finish(history(1), TEST, {}, {})
        assert start.said[0].startswith("W&B gets no model of epoch 1: FileNotFoundError: ")
        assert OfflineRun(tmp_path).artifacts == []

    def test_a_run_that_fails_is_marked_as_failed(self, observe, tmp_path):
        observe().abort()
        assert OfflineRun(tmp_path).exit_code == 1


def test_what_the_real_command_leaves(tmp_path):
    """W&B has the page, and checkpoints as artifacts; it is waited for after the last line."""
    fields = {"mode": "offline", "log_model": "all", "job_type": "trial", "notes": "some notes"}
    arguments = [f"--config.wandb.{name}={value}" for name, value in fields.items()]
    workdir = tmp_path / "run"
    done = run(*TINY, *arguments, "--config.num_epochs=2", f"--workdir={workdir}")
    assert (done.returncode, done.stderr) == (0, "")
    written = OfflineRun(workdir)
    assert (written.run.job_type, written.run.notes) == ("trial", "some notes")
    for epoch, artifact in enumerate(written.artifacts, 1):
        (entry,) = artifact.manifest.contents
        assert checkpoint.read(pathlib.Path(entry.local_path)).history.epoch == epoch
    (page,) = (row["report"] for row in written.history if "report" in row)
    assert (written.folder / "files" / page["path"]).read_text() == (
        workdir / "report.html"
    ).read_text()
    said = [line.split(" ")[0] for line in done.stdout.splitlines()]
    assert said[-3:] == ["Done:", "Waiting", "W&B:"]


def test_a_package_that_cannot_be_imported(tmp_path):
    (tmp_path / "wandb.py").write_text("raise SystemError('of the stub')")
    arguments = (
        "--config.wandb.mode=offline",
        "--config.num_epochs=1",
        f"--workdir={tmp_path}/run",
    )
    # Not in a fork of a process that has imported it.
    done = python("main.py", *TINY, *arguments, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("W&B"))
    assert line == "W&B stopped: SystemError: of the stub"
    assert summary(tmp_path / "run")["step"] == 63

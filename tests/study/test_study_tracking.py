import threading

from configs import default
from mnist_flax.study.store import ReplicaStore
from mnist_flax.study.tracking import StudyTracking
from tests.runs import python
from tests.study.made_up import create
from tests.wandb_log import OfflineRun


def test_what_w_and_b_refuses_is_said_once(tmp_path):
    """This runs in its own process, because W&B's service is killed."""
    script = f"""
import dataclasses, pathlib
from configs import default
from mnist_flax.study.store import ReplicaStore
from mnist_flax.study.tracking import StudyTracking
from tests.study.made_up import PROBABILITIES, create
config = default.get_config()
config.wandb.mode = "online"
store = ReplicaStore(pathlib.Path({str(tmp_path)!r}) / "replicas")
tracking = StudyTracking({str(tmp_path)!r}, store, lambda *_: config, False, print)
for seed in (1, 2):
    record = {{"epoch": 1, "step": 1, "train/loss": 0.5}}
    replica = dataclasses.replace(create(seed=seed), run_id=f"run{{seed}}", records=[record])
    store.save(replica, PROBABILITIES)
    tracking.send(replica)
tracking.finish(lambda: None)
"""
    done = python("-c", script, timeout=60, WANDB_IDENTITY_TOKEN_FILE="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("it cannot start with these settings") == 1
    for run_id in ("run1", "run2"):
        assert OfflineRun(tmp_path, f"offline-run-*-{run_id}").summary["test_loss"] == 0.1


def test_signals_are_checked_while_it_waits(tmp_path):
    """A second passes between two checks, and nothing is given up meanwhile."""
    may_end, said, checks = threading.Event(), [], []

    def config_of(variant, seed):
        assert may_end.wait(60)
        config = default.get_config()
        config.wandb.mode = "disabled"
        return config

    store = ReplicaStore(tmp_path)
    tracking = StudyTracking(str(tmp_path), store, config_of, False, said.append)

    def check():
        checks.append(1)
        if len(checks) == 2:
            may_end.set()

    tracking.send(create())
    tracking.finish(check)
    assert said == ["Waiting for W&B"] and len(checks) == 2

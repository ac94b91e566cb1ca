import dataclasses
import json

import numpy as np
import pytest

from mnist_flax.errors import UserError
from mnist_flax.study.store import Replica, ReplicaStore

PROBABILITIES = {"test": np.array([[0.25, 0.75], [0.5, 0.5]])}


def create(variant="layer norm", seed=3, num_errors=70, loss=0.1, seconds=2.0, num_together=1):
    """Returns a made-up replica with 1,000 test images."""
    results = {"loss": loss, "accuracy": 1 - num_errors / 1_000, "num_errors": num_errors}
    return Replica(
        variant=variant,
        seed=seed,
        run_id="0123",
        data="MNIST",
        config={"num_epochs": 2},
        records=[{"epoch": 1, "train/loss": loss}],
        results={"test": results, "validation": results},
        train_seconds=seconds,
        compile_seconds=1.0,
        num_together=num_together,
        device="Device: cpu",
        versions={name: "1" for name in ("python", "jax", "flax", "optax", "numpy")},
    )


@pytest.fixture
def store(tmp_path):
    return ReplicaStore(tmp_path / "replicas")


def test_what_is_saved_is_loaded(store):
    replica = create()
    assert store.load("layer norm", 3) is None
    store.save(replica, PROBABILITIES)
    assert store.load("layer norm", 3) == replica
    assert store.load("layer norm", 4) is None and store.load("base", 3) is None
    probabilities = store.probabilities(replica, "test")
    np.testing.assert_array_equal(probabilities, PROBABILITIES["test"])
    assert probabilities.dtype == np.float32


def test_a_replica_that_diverged_is_kept_as_json_can(store, tmp_path):
    store.save(create(loss=float("nan")), PROBABILITIES)
    replica = store.load("layer norm", 3)
    assert not replica.is_finite and replica.results["test"]["loss"] is None
    text = (tmp_path / "replicas" / "layer norm" / "3.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["records"][0]["train/loss"] is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"variant": "base"}', "\xff"])
def test_a_damaged_file_is_reported(store, tmp_path, damage):
    store.save(create(), PROBABILITIES)
    path = tmp_path / "replicas" / "layer norm" / "3.json"
    path.write_bytes(damage.encode("latin-1"))
    with pytest.raises(
        UserError, match=r"3\.json cannot be read: .*; delete it to train that replica again"
    ):
        store.load("layer norm", 3)


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_damaged_probabilities_are_reported(store, tmp_path, damage):
    store.save(create(), PROBABILITIES)
    path = tmp_path / "replicas" / "layer norm" / "3.npz"
    path.write_bytes(damage) if damage is not None else path.unlink()
    with pytest.raises(
        UserError, match=r"3\.npz cannot be read: .*delete .*3\.json to train that replica again"
    ):
        store.probabilities(create(), "test")


def test_no_pickle_is_loaded(store, tmp_path):
    store.save(create(), PROBABILITIES)
    np.savez(tmp_path / "replicas" / "layer norm" / "3.npz", test=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="cannot be read"):
        store.probabilities(create(), "test")


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "replicas").write_text("a file")
    with pytest.raises(UserError, match=r"3\.json: (Not a directory|File exists)"):
        ReplicaStore(tmp_path / "replicas").save(create(), PROBABILITIES)


def test_what_wandb_has_is_noted(store):
    replica = create()
    store.save(replica, PROBABILITIES)
    assert not store.is_tracked(replica)
    store.set_tracked(replica)
    assert store.is_tracked(replica)
    assert not store.is_tracked(dataclasses.replace(replica, seed=4))

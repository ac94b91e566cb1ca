import dataclasses
import json

import numpy as np
import pytest

from mnist_flax.errors import UserError
from mnist_flax.study.store import ReplicaStore
from tests.study.made_up import PROBABILITIES, create


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

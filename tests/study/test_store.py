import dataclasses
import math

import numpy as np
import pytest

from mnist_flax.errors import UserError
from mnist_flax.study.store import ReplicaStore
from tests.study.made_up import PROBABILITIES, create


@pytest.fixture
def store(tiny_config, tmp_path):
    return ReplicaStore(tmp_path, {"layer norm": tiny_config, "base": tiny_config}, "MNIST, 1234")


@pytest.fixture
def replica(store):
    return dataclasses.replace(
        create(loss=math.nan), config=store.config("layer norm", 3).to_dict()
    )


def test_what_is_saved_is_loaded(store, replica):
    assert store.load("layer norm", 3) is None
    assert store.save(replica, PROBABILITIES) == store.load("layer norm", 3)
    assert store.load("layer norm", 3).results["test"]["loss"] is None  # as JSON can hold it
    assert store.load("layer norm", 4) is None and store.load("base", 3) is None
    probabilities = store.probabilities(replica, "test")
    np.testing.assert_array_equal(probabilities, PROBABILITIES["test"])
    assert probabilities.dtype == np.float32


@pytest.mark.parametrize("change", [{"data": "KMNIST"}, {"config": {"batch_size": 7}}])
def test_a_replica_of_another_recipe_or_other_data_is_refused(store, replica, change):
    store.save(dataclasses.replace(replica, **change), PROBABILITIES)
    with pytest.raises(UserError, match=r"replica layer norm, seed 3, .*(KMNIST|batch_size=7 )"):
        store.load("layer norm", 3)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"variant": "base"}', "\xff"])
def test_a_damaged_file_is_reported(store, replica, tmp_path, damage):
    store.save(replica, PROBABILITIES)
    path = tmp_path / "replicas" / "layer norm" / "3.json"
    path.write_bytes(damage.encode("latin-1"))
    with pytest.raises(UserError, match=r"3\.json is damaged: .*; delete it to train it again"):
        store.load("layer norm", 3)


def test_an_error_of_the_system_is_no_damage(store, tmp_path):
    (tmp_path / "replicas" / "layer norm" / "3.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"3\.json: Is a directory$"):
        store.load("layer norm", 3)


@pytest.mark.parametrize("damage", [b"PK", None, "pickle"])
def test_damaged_probabilities_are_reported(store, replica, tmp_path, damage):
    store.save(replica, PROBABILITIES)
    path = tmp_path / "replicas" / "layer norm" / "3.npz"
    path.unlink()
    if damage == "pickle":
        np.savez(path, test=np.array([{}], dtype=object))
    elif damage:
        path.write_bytes(damage)
    with pytest.raises(UserError, match=r"3\.npz cannot be read: .*delete .*3\.json to train"):
        store.probabilities(replica, "test")


def test_what_cannot_be_written_is_one_line(store, replica, tmp_path):
    (tmp_path / "replicas").write_text("a file")
    with pytest.raises(UserError, match=r"3\.json: (Not a directory|File exists)"):
        store.save(replica, PROBABILITIES)


def test_a_replica_that_is_trained_again_is_sent_again(store, replica):
    store.save(replica, PROBABILITIES)
    store.marker(replica).touch()
    store.save(replica, PROBABILITIES)
    assert not store.marker(replica).exists()

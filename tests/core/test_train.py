import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax import data, train
from mnist_flax.errors import UserError
from mnist_flax.trainer import Trainer
from tests.runs import epochs, files, records


def test_diverging_loss_stops_the_run(small_data, tiny_config, tmp_path):
    tiny_config.optimizer.learning_rate = 1e30
    with pytest.raises(UserError, match=r"epoch 1\b.*learning_rate.*1e\+30"):
        train.run(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert epochs(tmp_path / "run") == [0]


def test_infinite_statistic_is_not_saved(small_data, tiny_config, tmp_path, monkeypatch):
    """An infinite variance leaves the loss finite, because the channel becomes 0."""
    train_epoch = Trainer.train_epoch

    def poisoned(self, state, epoch, on_step):
        state, *others = train_epoch(self, state, epoch, on_step)
        if epoch == 2:
            stats = state.batch_stats
            stats["norm1_1"]["var"] = jnp.full_like(stats["norm1_1"]["var"], jnp.inf)
        return state, *others

    monkeypatch.setattr(Trainer, "train_epoch", poisoned)
    tiny_config.num_epochs = 3
    with pytest.raises(UserError, match=r"epoch 2\b"):
        train.run(tiny_config, tmp_path / "run")
    assert epochs(tmp_path / "run")[-1] == 1
    assert [record["epoch"] for record in records(tmp_path / "run")] == [1]


def test_run_on_other_data_is_refused_untouched(small_data, tiny_config, tmp_path, monkeypatch):
    """This happens if a download fails that succeeded before, and the sample takes its place."""
    train.run(tiny_config, tmp_path / "run")
    before = files(tmp_path)
    monkeypatch.setattr(data, "load", lambda *args: small_data(*args)._replace(source="tfds"))
    tiny_config.num_epochs = 2
    with pytest.raises(UserError, match=r"SAMPLE .* MNIST, CRC-32"):
        train.run(tiny_config, tmp_path / "run")
    assert files(tmp_path) == before


def test_configuration_of_paths_and_numpy_numbers(small_data, tiny_config, tmp_path):
    """Python code may set them; the files of the run hold plain JSON."""
    with tiny_config.ignore_type():
        tiny_config.dataset.data_dir = pathlib.Path(tmp_path)
        tiny_config.optimizer.learning_rate = np.float32(0.5)
        tiny_config.seed = np.int64(3)
    for _ in range(2):
        train.run(tiny_config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for config in (summary["config"], json.loads((tmp_path / "run" / "config.json").read_text())):
        assert config["dataset"]["data_dir"] == str(tmp_path) and config["seed"] == 3
        assert config["optimizer"]["learning_rate"] == 0.5

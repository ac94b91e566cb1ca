import jax.numpy as jnp
import pytest

from mnist_flax import data, train
from mnist_flax.errors import UserError
from mnist_flax.trainer import Trainer
from tests.runs import epochs, files, records


def test_a_loss_that_diverges_stops_the_run(small_data, tiny_config, tmp_path):
    tiny_config.optimizer.learning_rate = 1e30
    with pytest.raises(UserError, match=r"no longer finite in epoch 1: .*learning_rate=1e\+30"):
        train.run(tiny_config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "summary.json").exists()
    assert epochs(tmp_path / "run") == [0]


def test_a_statistic_that_is_not_finite_is_not_saved(
    small_data, tiny_config, tmp_path, monkeypatch
):
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
    with pytest.raises(UserError, match="no longer finite in epoch 2"):
        train.run(tiny_config, str(tmp_path / "run"))
    assert epochs(tmp_path / "run")[-1] == 1
    assert [record["epoch"] for record in records(tmp_path / "run")] == [1]


def test_a_run_on_other_data_is_refused_untouched(small_data, tiny_config, tmp_path, monkeypatch):
    """This happens if a download fails that succeeded before, and the sample takes its place."""
    workdir = tmp_path / "run"
    train.run(tiny_config, str(workdir))
    before = files(workdir)
    monkeypatch.setattr(data, "load", lambda *args: small_data(*args)._replace(source="tfds"))
    tiny_config.num_epochs = 2
    with pytest.raises(UserError, match=r"holds a run on SAMPLE .* but the data are now MNIST"):
        train.run(tiny_config, str(workdir))
    assert files(workdir) == before

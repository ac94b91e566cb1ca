import pytest

from mnist_flax import train
from mnist_flax.errors import UserError


def test_a_loss_that_diverges_stops_the_run(tiny_config, tmp_path, capsys):
    tiny_config.optimizer.learning_rate = 1e30
    with pytest.raises(UserError, match=r"no longer finite in epoch 1: .*learning_rate=1e\+30"):
        train.run(tiny_config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "summary.json").exists()

"""Runs in IPython; its session must survive them."""

import pytest

from tests.runs import MAIN, ROOT, TINY, assert_same_run, epochs, python, records

SESSION = """
import os, signal, threading, time
import jax
jax.numpy.ones(3).sum()  # JAX has been used before
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
%run {main} {tiny} --workdir={folder}/first
%run {main} {tiny} --workdir={folder}/second
%run {main} {tiny} --config.num_epochs=0
%run {main} {tiny} --config.seed=1 --workdir={folder}/first

def interrupt():
    while not os.path.exists("{folder}/third/checkpoints/1.msgpack"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
%run {main} {tiny} --config.num_epochs=6 --workdir={folder}/third

from configs import quick
from mnist_flax import errors, train
config = quick.get_config()
config.num_epochs = 0
try:
    train.run(config)
except errors.UserError as error:
    print("refused", error)
# As in `TINY`, so that nothing needs to be compiled.
config.update(num_epochs=1, batch_size=64)
config.model.update(channels=((4,), (8,)), kernel_sizes=((5,), (3,)))
config.augment.enabled = False
config.optimizer.learning_rate = 0.02
config.dataset.source = "sample"
config.wandb.mode = "disabled"
train.run(config, "{folder}/fourth")
%run {main} {tiny} --config.num_epochs=6 --workdir={folder}/third
print("handlers", before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])
"""


def test_session(finished, tmp_path):
    pytest.importorskip("IPython")
    tiny = " ".join(argument.replace(" ", "") for argument in TINY)
    script = tmp_path / "session.ipy"
    script.write_text(SESSION.format(main=MAIN, tiny=tiny, folder=tmp_path))
    env = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}
    done = python("-m", "IPython", "--colors=NoColor", str(script), cwd=tmp_path, **env)
    assert "Error" not in done.stdout + done.stderr, done.stdout + done.stderr
    for run in ("first", "second"):
        assert_same_run(tmp_path / run, finished)
    for said in ("error: config.num_epochs must be ", "config.seed=42 (now 1)", "by SIGINT after"):
        assert said in done.stderr
    assert "Resuming after epoch " in done.stdout and len(records(tmp_path / "third")) == 6
    assert "refused config.num_epochs must be " in done.stdout
    assert "handlers True" in done.stdout
    assert epochs(tmp_path / "fourth")[-1] == 1

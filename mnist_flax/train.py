"""A run, from its configuration to the results in its folder."""

from ml_collections import ConfigDict

from mnist_flax import data
from mnist_flax.run.session import Session
from mnist_flax.trainer import Trainer


def run(config: ConfigDict, workdir: str = "") -> None:
    """Trains, evaluates after every epoch, and writes numbers, pictures and checkpoints.

    If `workdir` holds an interrupted run, it resumes from the last complete checkpoint and gives
    the same numbers as if it had never stopped.

    Args:
      config: a configuration with the fields of `configs/default.py`.
      workdir: a new folder, or the run to resume; if empty, a new dated folder under `runs/`.

    Raises:
      UserError: the configuration, the data or the folder cannot be used, or the loss diverges.
      Interrupted: a signal stopped the run.
    """
    with Session(config, workdir) as session:
        with session.together():
            dataset = data.load(config.dataset, config.seed)
            trainer = Trainer(config, dataset)
        session.open(dataset)
        session.line(trainer.compile())
        state = session.restore(trainer.create_state(config.seed))
        results = None
        for epoch in session.epochs():
            state, metrics, seconds = trainer.train_epoch(state, epoch, session.on_step)
            results = trainer.evaluate(state)
            record = trainer.record(epoch, metrics, results, seconds)
            session.end_epoch(state, record, metrics, results["test"])
        results = results or trainer.evaluate(state)  # if no epoch was left to train
        session.finish(state, results["test"], trainer.compile_seconds)

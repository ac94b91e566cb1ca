"""A run, from a configuration to what is left in its folder."""

import functools

from ml_collections import ConfigDict

from mnist_flax import augment, data
from mnist_flax.run.session import Session
from mnist_flax.trainer import Trainer


def run(config: ConfigDict, workdir: str = "") -> None:
    """Trains, evaluates after every epoch, and leaves numbers, pictures and checkpoints.

    A run that was interrupted in `workdir` resumes from its last complete checkpoint, and comes to
    the same numbers as if it had never stopped.

    Args:
      config: as `configs/default.py` returns.
      workdir: a new folder, or that of the run to resume; empty for a dated one under `runs/`.

    Raises:
      UserError: the configuration, the data or the folder cannot be used, or the loss diverges.
      Interrupted: a signal stopped it.
      LostProcess: another of its processes failed or is gone.
    """
    with Session(config, workdir) as session:
        with session.together():
            dataset = data.load(config.dataset, config.seed)
            trainer = Trainer(config, dataset)
        session.open(dataset, functools.partial(augment.examples, config, dataset.train.images[0]))
        session.line(trainer.compile())
        state = session.restore(trainer.create_state(config.seed), len(trainer.batches))
        results = None
        for epoch in session.epochs():
            state, metrics, seconds = trainer.train_epoch(state, epoch, session.on_step)
            results = trainer.evaluate(state)
            record = trainer.record(epoch, metrics, results, seconds)
            session.end_epoch(state, record, metrics, results["test"])
        results = results or trainer.evaluate(state)  # if no epoch was left to train
        session.finish(state, results["test"], trainer.compiler.seconds)

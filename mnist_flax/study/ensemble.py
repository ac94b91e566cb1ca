"""Ensembles: averages the probabilities of networks drawn from the replicas of a recipe."""

import itertools
import math
from typing import NamedTuple

import jax
import numpy as np

_NUM_DRAWS = 1_000  # the most ensembles drawn of each size
_STEPS = (1, 2, 3, 5)  # the sizes to show are these times powers of ten


class Draws(NamedTuple):
    """Ensembles of one size.

    Attributes:
      size: the number of networks in each.
      num_errors: the number of errors of each ensemble, int `[draws]`.
      is_all: whether these are all the ensembles that the replicas can form.
    """

    size: int
    num_errors: np.ndarray
    is_all: bool


def sizes(asked: int) -> list[int]:
    """Returns the sizes to show, up to and including `asked`."""
    powers = (10**power for power in range(6))
    known = {step * power for power in powers for step in _STEPS}
    return sorted({size for size in known if size < asked} | {asked})


def draw(key: jax.Array, probabilities: np.ndarray, labels: np.ndarray, size: int) -> Draws:
    """Counts the errors of ensembles of `size` different replicas, drawn at random.

    If there are at most 1,000 possible ensembles, counts the errors of each once. Ensembles may
    share replicas, so their spread only reflects the choice among these replicas; it means little
    for a size near their number.

    Args:
      key: a PRNG key.
      probabilities: `[replicas, n, classes]`.
      labels: int `[n]`.
      size: from 1 to the number of replicas.
    """
    num_replicas = len(probabilities)
    is_all = math.comb(num_replicas, size) <= _NUM_DRAWS
    if is_all:
        members = np.array(list(itertools.combinations(range(num_replicas), size)))
    else:
        ranks = np.asarray(jax.random.uniform(key, (_NUM_DRAWS, num_replicas)))
        members = ranks.argsort(axis=1)[:, :size]
    sums = (probabilities[chosen].sum(axis=0, dtype=np.float64) for chosen in members)
    errors = [int((total.argmax(axis=1) != labels).sum()) for total in sums]
    return Draws(size, np.array(errors), is_all)

"""Ensembles: networks drawn from the replicas, whose probabilities are averaged."""

import itertools
import math
from typing import NamedTuple

import jax
import numpy as np

_NUM_DRAWS = 1_000  # of each size, at most
_STEPS = (1, 2, 3, 5)  # sizes, in each power of ten


class Draws(NamedTuple):
    """Ensembles of one size.

    Attributes:
      size: number of networks in each.
      num_errors: of each ensemble, int `[draws]`.
      is_all: whether these are all ensembles that the replicas can form.
    """

    size: int
    num_errors: np.ndarray
    is_all: bool


def sizes(asked: int) -> list[int]:
    """Returns the sizes to show, up to the one that is asked for."""
    powers = (10**power for power in range(6))
    known = {step * power for power in powers for step in _STEPS}
    return sorted({size for size in known if size < asked} | {asked})


def draw(key: jax.Array, probabilities: np.ndarray, labels: np.ndarray, size: int) -> Draws:
    """Counts the errors of ensembles of `size` different replicas, drawn at random.

    If there are only a few, all are counted. Ensembles may share replicas, so their spread is that
    of choosing among these replicas; for a size near their number it means little.

    Args:
      key: PRNG key.
      probabilities: `[replicas, n, classes]`.
      labels: int `[n]`.
      size: 1..replicas.
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

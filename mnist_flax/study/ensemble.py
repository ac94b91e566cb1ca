"""Ensembles: networks whose probabilities are averaged, drawn again and again from the replicas."""

import itertools
import math
from typing import NamedTuple

import jax
import numpy as np

_NUM_DRAWS = 1_000  # at most, of each size
_STEPS = (1, 2, 3, 5)  # sizes, in each power of ten


class Draws(NamedTuple):
    """Ensembles of one size.

    Attributes:
      size: networks in each.
      num_errors: int `[draws]`, of each ensemble.
      is_all: whether these are all that the replicas can form.
    """

    size: int
    num_errors: np.ndarray
    is_all: bool


def sizes(asked: int) -> list[int]:
    """Sizes to show the way to the one that is asked for."""
    powers = (10**power for power in range(6))
    known = {step * power for power in powers for step in _STEPS}
    return sorted({size for size in known if size < asked} | {asked})


def draw(key: jax.Array, probabilities: np.ndarray, labels: np.ndarray, size: int) -> Draws:
    """Counts the errors of ensembles of `size` different replicas, drawn at random.

    All of them, where there are few; else so many that any two may share replicas. So their spread
    is that of choosing among these replicas, and for a size near their number it says little.

    Args:
      key: PRNG key.
      probabilities: `[replicas, n, classes]`, of each.
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

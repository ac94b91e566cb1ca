"""What every random draw of a run is for."""

import enum

import jax


class Stream(enum.IntEnum):
    """The streams of random numbers; each is a key of its own, folded out of the run's.

    Parameters are initialised from another part of the seed's key, see `step.create_state`.
    """

    SHUFFLE = 0  # the order of the images, by epoch
    AUGMENT = 1  # the affine maps of a batch, by step
    AUGMENTATION_SHEET = 2  # those of augmentation.png
    VIEWS = 3  # those of test-time augmentation
    ENSEMBLES = 4  # which networks of a study are averaged, by ensemble size
    VALIDATION_SPLIT = 0x5A11D  # which images are set aside

    def key(self, key: jax.Array, *numbers: jax.typing.ArrayLike) -> jax.Array:
        """Returns this stream's key for the run's `key`, then folds in e.g. an epoch or a step."""
        for number in (self.value, *numbers):
            key = jax.random.fold_in(key, number)
        return key

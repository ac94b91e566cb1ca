"""The random numbers of a run: what each draw is for."""

import enum

import jax


class Stream(enum.IntEnum):
    """The streams of random numbers, except the one for initial parameters (`create_state`)."""

    SHUFFLE = 0  # the order of the images, by epoch
    AUGMENT = 1  # the affine maps of a batch, by step
    AUGMENTATION_SHEET = 2  # the maps shown in augmentation.png
    VIEWS = 3  # the maps of test-time augmentation
    VALIDATION_SPLIT = 0x5A11D  # which images are set aside

    def key(self, key: jax.Array, *numbers: jax.typing.ArrayLike) -> jax.Array:
        """Folds this stream's number into a key, then `numbers`, such as an epoch or a step."""
        for number in (self.value, *numbers):
            key = jax.random.fold_in(key, number)
        return key

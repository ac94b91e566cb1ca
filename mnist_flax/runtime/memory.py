"""The error when a device has too little memory."""

import jax

from mnist_flax.errors import UserError


def exhausted(
    error: BaseException | None,
    advice: str = "lower config.batch_size, or narrow config.model.channels",
) -> UserError | None:
    """Returns the error to raise if `error` is due to a lack of memory; otherwise None.

    It ends with `advice`.
    """
    is_xla = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if not is_xla and not isinstance(error, MemoryError):
        return None
    reason = (str(error).splitlines() or ["out of memory"])[0].removeprefix("RESOURCE_EXHAUSTED: ")
    return UserError(
        f"the program does not fit in the memory of the device ({reason.rstrip('.')}); {advice}"
    )

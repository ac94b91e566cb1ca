"""Variables of the environment that libraries read when they are imported, and may refuse."""

import contextlib
import io
import os

from mnist_flax.errors import UserError


def check() -> None:
    """Imports JAX, and draws a bar of tqdm if variables change its bars.

    Raises:
      UserError: one of them refuses a variable.
    """
    _check_tqdm()
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_tqdm() -> None:
    variables = [f"{name}={text}" for name, text in os.environ.items() if name.startswith("TQDM_")]
    if not variables:
        return
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            from tqdm import tqdm

            with tqdm(total=1) as bar:
                bar.refresh()
    except Exception as error:  # whatever comes of a text in place of a number, or of a stream
        given, reason = " and ".join(variables), " ".join(str(error).split())
        raise UserError(
            f"tqdm cannot use {given} ({reason}); unset it, or see tqdm's manual"
        ) from None

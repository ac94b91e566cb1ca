"""Checks the environment variables that libraries read on import, and may reject."""

import contextlib
import io
import os

from mnist_flax.errors import UserError


def check() -> None:
    """Imports JAX, and draws a tqdm bar if any variables configure tqdm.

    Raises:
      UserError: one of them rejects a variable.
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
    except Exception as error:  # tqdm may raise anything for text in place of a number or a stream
        given, reason = " and ".join(variables), " ".join(str(error).split())
        raise UserError(
            f"tqdm cannot use {given} ({reason}); unset it, or see tqdm's manual"
        ) from None

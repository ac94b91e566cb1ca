"""Errors that the user has to fix, not the programmer."""

from collections.abc import Collection
from typing import Any


class UserError(Exception):
    """Bad input, in one line: what is wrong, and what to do about it.

    The command line prints it without a traceback and exits with status 2.
    """


def refused(name: str, value: Any, allowed: str) -> UserError:
    """Returns the error for a `value` of `name`, which must be what `allowed` says."""
    return UserError(f"{name} must be {allowed}, got {value!r}")


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raises a `UserError` unless `value`, given as `name`, is one of the allowed names."""
    if value not in allowed:
        raise refused(name, value, f"one of {', '.join(allowed)}")

"""The errors that a person, not a programmer, has to correct."""

from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that names what was wrong and what is allowed.

    The command line prints it without a traceback and exits with status 2.
    """


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises a `UserError` unless `value`, given as `name`, is one of the allowed names."""
    if value not in (names := tuple(allowed)):
        raise UserError(f"{name}={value!r} is not allowed; allowed: {', '.join(names)}")

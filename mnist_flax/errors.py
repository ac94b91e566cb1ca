"""The error that a person, not a programmer, has to correct."""


class UserError(Exception):
    """Bad input: one line that says what was wrong and what is allowed.

    `command.start` prints it without a traceback and exits with status 2.
    """

"""The errors that a person, not a programmer, has to correct."""


class UserError(Exception):
    """Bad input: one line that says what was wrong and what is allowed.

    `command.start` prints it without a traceback and exits with status 2.
    """


class LostProcess(Exception):
    """A run on several hosts cannot go on, for one of its processes failed or is gone.

    `command.start` prints it without a traceback and exits with status 1.
    """

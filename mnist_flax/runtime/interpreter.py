"""Tells whether Python ends with the command or keeps running, as in a notebook."""

import sys


def goes_on() -> bool:
    """Whether this is IPython, or a notebook's kernel, where the user's variables live."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None

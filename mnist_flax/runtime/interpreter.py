"""Whether Python was started for one command, or goes on after it, as in a notebook."""

import sys


def goes_on() -> bool:
    """Whether this is IPython, or the kernel of a notebook, where a user's variables live."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None

"""What work on another thread needs: a lower priority, and care not to end the run."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

# Held while a thread imports a package that parses Python: before Python 3.11.8 and 3.12.2, two
# threads that parse at once may raise `SystemError` (CPython's issue 106905).
IMPORTING = threading.Lock()


def lower_priority() -> None:
    """Lets other threads have the CPU whenever they need it, on Linux.

    This affects the calling thread, and the threads that it starts afterwards.
    """
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        with contextlib.suppress(OSError):  # some sandboxes forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def attempt(what: str, warn: Callable[[str], None], job: Callable[..., Any], *args: Any) -> Any:
    """Returns `job(*args)`; if it raises, returns None after a warning that begins with `what`."""
    try:
        return job(*args)
    except Exception as error:
        warn(f"{what}: {type(error).__name__}: {error}".splitlines()[0])
        return None

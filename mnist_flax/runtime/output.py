"""Handles standard streams that fail: a pipe without a reader, a closed terminal, a full disk."""

import io
import os
import select
import sys
from typing import Any


def protect() -> None:
    """Keeps failures of the standard streams from raising errors in the code that prints.

    Text for a pipe without a reader is dropped, and so is text that standard error cannot take. If
    standard output fails in another way, as on a full disk, it continues on standard error.
    Characters that a stream's encoding lacks are written as escapes. Closed streams are opened:
    otherwise the next file to be opened would get a stream's number, and the text printed to it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout, sys.stderr = _tolerant(sys.stdout, 1), _tolerant(sys.stderr, 2)


class _Stream(io.FileIO):
    """A standard stream whose writes do not fail."""

    def write(self, data: Any) -> int:
        """Writes some of `data`, wherever possible, and returns how many bytes."""
        while True:
            try:
                if (written := super().write(data)) is not None:
                    return written
                select.select([], [self], [])  # full, and another process made it non-blocking
            except OSError as error:
                _replace(self.fileno(), error)


def _replace(number: int, error: OSError) -> None:
    """Replaces a stream that failed with a file that can be written."""
    if number == 1 and not isinstance(error, BrokenPipeError):
        # Not `os.write`: if standard error fails too, `print` replaces it.
        print(f"standard output: {error.strerror}; it continues here", file=sys.stderr)
        os.dup2(2, number)
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def _tolerant(stream: Any, number: int) -> Any:
    """Returns a text stream like `stream`, which is None if the file `number` was closed."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(_Stream(number, "w", closefd=False)))
    raw = getattr(stream, "buffer", None)
    raw = getattr(raw, "raw", raw)  # there is no buffer with `python -u`
    if type(raw) is not io.FileIO or raw.fileno() != number:
        return stream  # from a notebook, a test, or a Windows console
    mine = _Stream(number, "w", closefd=False)
    return io.TextIOWrapper(
        mine if stream.write_through else io.BufferedWriter(mine),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,  # a line that moves to standard error stays whole
        write_through=stream.write_through,
    )

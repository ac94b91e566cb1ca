"""Atomic file writes, on file systems of all kinds, and errors of files in one line."""

import errno
import os
import pathlib
import re
from typing import IO

from mnist_flax.errors import UserError

# How network file systems answer requests that they do not support.
_NOT_OFFERED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}


def is_url(path: str) -> bool:
    """Whether a path is a bucket's or any other URL, such as 'gs://bucket/run'."""
    return re.match(r"[A-Za-z][\w+.-]+:/", path) is not None


def expand(path: str) -> pathlib.Path:
    """Returns a path with '~' replaced by the home folder.

    Raises:
      UserError: there is no such user.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no such user") from None


def is_not_offered(error: OSError) -> bool:
    """Whether a file system does not support a request, so that retrying is pointless."""
    return error.errno in _NOT_OFFERED


def sync(file: IO) -> None:
    """Waits until a file is on the disk, if its file system can tell."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if not is_not_offered(error):
            raise


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file to the disk; at any time, either the old or the new file is there, whole.

    Raises:
      OSError: it cannot be written; no part of it stays, nor after a signal.
    """
    if not path.name:  # as in '.'
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            sync(file)
        os.replace(partial, path)
    except BaseException:  # a signal too
        partial.unlink(missing_ok=True)
        raise


def explain(error: Exception) -> str:
    """Returns one line for an error of a file: the system's message, or a library's first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__

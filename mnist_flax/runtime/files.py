"""Atomic file writes, on file systems of all kinds, and errors of files in one line."""

import contextlib
import errno
import os
import pathlib
import re

from mnist_flax.errors import UserError

# How network file systems answer requests that they do not support.
_NOT_OFFERED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is a bucket's or any other URL, such as 'gs://bucket/run'."""
    return re.match(r"[A-Za-z][\w+.-]+:/", os.fspath(path)) is not None


def expand(path: str | os.PathLike) -> pathlib.Path:
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
            _sync(file.fileno())
        os.replace(partial, path)
    except BaseException:  # a signal too
        partial.unlink(missing_ok=True)
        raise
    # The new name is on the disk once the folder is. Windows cannot open folders.
    with contextlib.suppress(PermissionError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            _sync(folder)
        finally:
            os.close(folder)


def _sync(number: int) -> None:
    """Waits until an open file is on the disk, if its file system can tell."""
    try:
        os.fsync(number)
    except OSError as error:
        if not is_not_offered(error):
            raise


def explain(error: Exception) -> str:
    """Returns one line for an error of a file: the system's message, or a library's first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__

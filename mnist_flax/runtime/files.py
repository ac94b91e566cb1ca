"""Files that are whole whenever they can be seen."""

import os
import pathlib


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file, the old one or the new one at any time, and sees it to the disk.

    Raises:
      OSError: it cannot be written; nothing of it stays.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise

"""Huge pages for large blocks of memory, on Linux."""

import os
import pathlib
import sys

from mnist_flax.runtime import process

_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_THP = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def by_request() -> bool:
    """Whether Linux gives huge pages only to the processes that ask for them."""
    try:
        return "[madvise]" in _THP.read_text()
    except OSError:
        return False


def use() -> None:
    """Restarts this process, once, with large blocks of memory in huge pages.

    A training step on a CPU takes a GB of fresh memory, and with pages of 4 KiB a fifth of its
    time went into mapping it (2 cores of an AMD EPYC, virtual). glibc reads the setting only when
    a process starts. Does nothing where Linux does not leave the choice to the process, or in a
    notebook, whose variables would be lost.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or not by_request() or process.goes_on():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, _HUGE_PAGES]))
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

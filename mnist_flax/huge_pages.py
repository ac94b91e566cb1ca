"""Huge pages for large blocks of memory, on Linux."""

import os
import pathlib
import sys

_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_THP = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use() -> None:
    """Starts this process anew, once, with large blocks of memory in huge pages.

    A training step on a CPU takes a GB of fresh memory, and with pages of 4 KiB a fifth of its
    time goes into mapping it. glibc reads the setting at a process's start only. Where Linux does
    not leave the choice to the process (`madvise`), nothing is done.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or not _THP.exists():
        return
    if "[madvise]" not in _THP.read_text():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, _HUGE_PAGES]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

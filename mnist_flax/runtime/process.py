"""This process: what it runs on, and how it was started."""

import os
import pathlib
import platform
import re
import shlex
import sys

from absl import flags

_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def command_line() -> list[str]:
    """Returns the command that started this process, word by word."""
    module = getattr(sys.modules["__main__"], "__spec__", None)  # IPython's has none
    start = ["-m", module.name.removesuffix(".__main__")] if module else sys.argv[:1]
    return ["python", *start, *sys.argv[1:]]


def repeating_command() -> str:
    """Returns the command that does the same in a new workdir.

    It is empty if Python code started the run, as in a notebook: then no flags were parsed.
    """
    if not flags.FLAGS.is_parsed():
        return ""
    words = command_line()
    for at in reversed(range(len(words))):
        if match := re.fullmatch(r"--?workdir(=.*)?", words[at]):
            del words[at : at + (1 if match[1] else 2)]
    return shlex.join(words)


def num_cpus() -> int:
    """Returns how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def processor() -> str:
    """Returns the name of the processor and its widest vector instructions."""
    fields = dict(cpu_fields())
    if not fields:
        return platform.processor() or platform.machine()
    flags_ = fields.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2") if name in flags_), platform.machine())
    return f"{fields.get('model name', platform.machine())}, {widest}"


def cpu_fields() -> list[tuple[str, str]]:
    """Returns what Linux reports for each CPU, as names and values; empty on other systems."""
    if not _CPU_INFO.exists():
        return []
    lines = (line.partition(":") for line in _CPU_INFO.read_text().splitlines())
    return [(name.strip(), value.strip()) for name, _, value in lines]

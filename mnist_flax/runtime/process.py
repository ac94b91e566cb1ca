"""This process: what it runs on, and how it was started."""

import contextlib
import os
import pathlib
import platform
import re
import shlex
import sys


def goes_on() -> bool:
    """Whether Python keeps running after a command, as in IPython or a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def resuming_command(workdir: str) -> str:
    """Returns the command that resumes this process's run, which is in `workdir`."""
    words = _command_line()
    if not any(re.match(r"--?workdir(=.|$)", word) for word in words):
        words.append(f"--workdir={workdir}")
    return shlex.join(words)


def repeating_command() -> str:
    """Returns the command that does the same in a new workdir.

    It is empty if Python code started the run, as in a notebook: then no flags were parsed.
    """
    from absl import flags  # not above, because `huge_pages` restarts Python before slow imports

    if not flags.FLAGS.is_parsed():
        return ""
    words = _command_line()
    for at in reversed(range(len(words))):
        if match := re.fullmatch(r"--?workdir(=.*)?", words[at]):
            del words[at : at + (1 if match[1] else 2)]
    return shlex.join(words)


def _command_line() -> list[str]:
    module = getattr(sys.modules["__main__"], "__spec__", None)  # IPython's has none
    start = ["-m", module.name.removesuffix(".__main__")] if module else sys.argv[:1]
    return ["python", *start, *sys.argv[1:]]


def num_cpus() -> int:
    """Returns how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def processor() -> str:
    """Returns the name of the processor and its widest vector instructions."""
    fields = dict(cpu_fields())
    if not fields:
        return platform.processor() or platform.machine()
    instructions = fields.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2") if name in instructions), "")
    return f"{fields.get('model name', platform.machine())}, {widest or platform.machine()}"


def cpu_fields() -> list[tuple[str, str]]:
    """Returns what Linux reports for each CPU, as names and values; empty where it does not."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return [
            (name.strip(), value.strip()) for name, _, value in (x.partition(":") for x in lines)
        ]
    return []

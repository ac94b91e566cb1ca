import os
import subprocess
import sys

import pytest

from mnist_flax.runtime import huge_pages
from tests.runs import ROOT, environment

PROGRAM = """
import os, sys
import numpy as np
from mnist_flax.runtime import huge_pages
print("started", flush=True)
huge_pages.use()
block = np.ones(2**25)  # 256 MiB
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], os.getpid())
with open("/proc/self/smaps_rollup") as rollup:
    print(*[line.split()[1] for line in rollup if line.startswith("AnonHugePages")])
"""


def start(**env):
    """Returns the process's identifier, and the lines that it printed."""
    command = [sys.executable, "-c", PROGRAM, "a b", "--c=1"]
    variables = environment(**{"GLIBC_TUNABLES": None, **env})
    process = subprocess.Popen(command, env=variables, cwd=ROOT, stdout=-1, text=True)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return process.pid, output.splitlines()


@pytest.mark.skipif(not huge_pages.by_request(), reason="huge pages are not by request")
class TestWhereHugePagesAreByRequest:
    def test_process_starts_again_once_and_gets_them(self):
        pid, lines = start()
        assert lines[:2] == ["started", "started"]
        # Process id and arguments are the same, so signals and a job's limits still reach it.
        assert lines[2] == f"glibc.malloc.hugetlb=1 ['a b', '--c=1'] {pid}"
        assert int(lines[3]) >= 200 * 1024  # KiB in huge pages; the block has 256 MiB

    def test_settings_of_the_user_stand(self):
        _, lines = start(GLIBC_TUNABLES="glibc.malloc.check=0")
        assert lines[2].startswith("glibc.malloc.check=0:glibc.malloc.hugetlb=1 ")
        _, lines = start(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
        assert lines[0] == "started" and lines[1].startswith("glibc.malloc.hugetlb=0 ")


@pytest.mark.parametrize("by_request", [True, False])
def test_nothing_is_done_in_a_notebook_or_elsewhere(monkeypatch, by_request):
    monkeypatch.setattr(huge_pages, "by_request", lambda: by_request)
    monkeypatch.setattr(huge_pages.process, "goes_on", lambda: by_request)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    huge_pages.use()
    assert "GLIBC_TUNABLES" not in os.environ

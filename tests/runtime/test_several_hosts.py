"""Two hosts: network namespaces with their own names and host files, joined by a virtual cable."""

import contextlib
import itertools
import os
import pathlib
import shutil
import subprocess
import time

import pytest

from tests.runs import QUICK, SHORT, assert_close_run, epochs, pair

NAMES, ADDRESSES = ("digits-a", "digits-b"), ("10.77.0.1", "10.77.0.2")
NAMESPACES = tuple(f"{name}-{os.getpid()}" for name in NAMES)
# What Debian's installer writes: a host's name resolves to a loopback address.
DEBIAN = [f"127.0.0.1 localhost\n127.0.1.1 {name}\n" for name in NAMES]
OTHERS = [f"{address} {name}\n" for address, name in zip(ADDRESSES, NAMES, strict=True)]
PORTS = itertools.count(12_355)
PLAIN = ["127.0.0.1 localhost\n" + "".join(OTHERS)] * 2

pytestmark = pytest.mark.slow


def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def in_host(host):
    """Returns the beginning of a command that runs on a host."""
    named = f'hostname {NAMES[host]} && exec "$@"'
    return ("ip", "netns", "exec", NAMESPACES[host], "unshare", "--uts", "sh", "-c", named, "sh")


@pytest.fixture(scope="module")
def hosts():
    """Creates the hosts; returns a function that writes their host files."""
    folders = [pathlib.Path("/etc/netns") / namespace for namespace in NAMESPACES]
    cables = [f"v{os.getpid()}{end}" for end in "ab"]

    def write(contents):
        for folder, content in zip(folders, contents, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text(content)

    with contextlib.ExitStack() as stack:
        try:
            for namespace, folder in zip(NAMESPACES, folders, strict=True):
                ip("netns", "add", namespace)
                stack.callback(ip, "netns", "del", namespace)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            first, second = zip(NAMESPACES, cables, strict=True)
            one = ("link", "add", first[1], "netns", first[0])
            ip(*one, "type", "veth", "peer", "name", second[1], "netns", second[0])
            for (namespace, cable), address in zip((first, second), ADDRESSES, strict=True):
                ip("-n", namespace, "addr", "add", f"{address}/24", "dev", cable)
                for interface in ("lo", cable):
                    ip("-n", namespace, "link", "set", interface, "up")
            write(PLAIN)
            subprocess.run([*in_host(0), "true"], check=True, capture_output=True)
        except (AssertionError, OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces need root and iproute2: {error}")
        yield write


def pair_of_hosts(folder, *arguments, coordinator=ADDRESSES[0]):
    """Starts the two processes of a run, one per host."""
    prefixes = (in_host(0), in_host(1))
    return pair(folder, *arguments, coordinator=f"{coordinator}:{next(PORTS)}", prefixes=prefixes)


@pytest.mark.parametrize(
    ("files", "coordinator"),
    [
        (PLAIN, ADDRESSES[0]),
        (DEBIAN, ADDRESSES[0]),
        ([DEBIAN[0] + OTHERS[1], DEBIAN[1] + OTHERS[0]], NAMES[0]),
        (["127.0.0.1 localhost\n"] * 2, ADDRESSES[0]),
    ],
    ids=["names", "debian", "debian-coordinator-by-name", "no-names"],
)
def test_two_hosts_are_one_process(hosts, run_main, tmp_path, files, coordinator):
    hosts(files)
    alone, both = tmp_path / "alone", tmp_path / "both"
    done = run_main(*SHORT, f"--workdir={alone}", **QUICK)
    assert done.returncode == 0, done.stderr
    with pair_of_hosts(tmp_path, *SHORT, f"--workdir={both}", coordinator=coordinator) as runs:
        for run in runs:
            assert run.wait(120) == 0, run.output
    for run in runs:
        assert run.output.startswith("Joining 2 processes, waiting up to 300 s")
    assert "Devices: 2 cpu in 2 processes" in runs[0].output
    assert_close_run(both, alone, 5e-3)


@pytest.mark.parametrize("cut", [0, 1])
def test_a_cut_cable_ends_both_hosts_and_they_resume(hosts, tmp_path, cut):
    hosts(PLAIN)
    arguments = (*SHORT, f"--workdir={tmp_path}/run", "--config.num_epochs=9")
    cable = (NAMESPACES[cut], "link", "set", f"v{os.getpid()}{'ab'[cut]}")
    with pair_of_hosts(tmp_path, *arguments) as runs:
        runs[0].wait_for("epoch 1/9")
        ip("-n", *cable, "down")
        started = time.monotonic()
        try:
            assert [run.wait(120) for run in runs] == [1, 1]
        finally:
            ip("-n", *cable, "up")
        assert time.monotonic() - started < 60
    for run in runs:
        error = run.output[run.output.index("error: ") :]
        assert error.startswith("error: another process of the run failed or disappeared (")
        assert "; to resume, start all processes again: python" in error
        assert len(error.splitlines()) == 1, error
    reached = epochs(tmp_path / "run")[-1]
    assert reached >= 1
    with pair_of_hosts(tmp_path, *arguments) as runs:
        runs[0].wait_for(f"Resuming after epoch {reached} of 9")
        runs[0].wait_for(f"epoch {reached + 1}/9")

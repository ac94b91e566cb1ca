"""This host's address is that of its name, unless that is a loopback or another host's address."""

import socket

import psutil
import pytest

from mnist_flax.runtime import addresses


def outer():
    """Returns the addresses of this machine's interfaces, except loopback addresses."""
    found = [a.address for of_one in psutil.net_if_addrs().values() for a in of_one]
    return [a for a in found if a.count(".") == 3 and not a.startswith("127.")]


def named(monkeypatch, address):
    def resolve(name):
        if address is None:
            raise socket.gaierror("Name or service not known")
        return address

    monkeypatch.setattr(socket, "gethostbyname", resolve)


@pytest.mark.parametrize("coordinator", ["127.0.0.1", "localhost", "127.0.1.1"])
def test_processes_on_one_host_meet_on_loopback(monkeypatch, coordinator):
    named(monkeypatch, "127.0.1.1")
    assert addresses.own(coordinator) == "127.0.0.1"


# Debian's loopback address, none, and another host's (reserved for documentation, RFC 5737).
@pytest.mark.parametrize("wrong", ["127.0.1.1", None, "192.0.2.1"])
@pytest.mark.parametrize("coordinator", ["", "192.0.2.1", "no.such.name"])
def test_a_name_that_misleads_is_passed_over(monkeypatch, wrong, coordinator):
    if not outer():
        pytest.skip("this machine has no interface but loopback")
    monkeypatch.setattr(socket, "gethostname", lambda: "own.name")
    named(monkeypatch, wrong)
    assert addresses.own(coordinator) in outer()


def test_a_good_name_is_taken(monkeypatch):
    for address in outer():
        named(monkeypatch, address)
        assert addresses.own("192.0.2.1") == address


def test_hosts_of_addresses():
    assert addresses.host_of("digits-a:80") == "digits-a"
    assert addresses.host_of("[::1]:80") == "::1"
    assert addresses.host_of("") == ""

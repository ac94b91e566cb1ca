"""The address at which the other hosts of a run reach this one."""

import contextlib
import functools
import ipaddress
import socket

import psutil


def host_of(address: str) -> str:
    """Returns the host of 'host:port'."""
    return address.rpartition(":")[0].strip("[]")


def own(coordinator: str) -> str:
    """Returns the IPv4 address at which others reach this host.

    This is the address that the host's name resolves to, if it belongs to an interface. An
    installer may have given the name a loopback address, as Debian's does with 127.0.1.1: then it
    is the address from which this host reaches the coordinator, or that of any interface.

    Args:
      coordinator: the host of process 0; empty if it is not known.
    """
    if coordinator == "localhost" or coordinator.startswith("127."):
        return "127.0.0.1"
    if address := _of_name():
        return address
    candidates = [_towards(coordinator)] if coordinator else []
    for name, interface in psutil.net_if_addrs().items():
        if name in (stats := psutil.net_if_stats()) and stats[name].isup:
            candidates += [a.address for a in interface if a.family == socket.AF_INET]
    return next((address for address in candidates if _is_outer(address)), "127.0.0.1")


def tell_gloo(coordinator: str) -> None:
    """Makes Gloo, which sums across CPUs, use `own` where the host's name would mislead it."""
    address = own(coordinator)
    if _is_outer(address) and not _of_name():
        from jax._src.lib import _jax  # JAX itself has no setting for this

        create = functools.partial(_jax.make_gloo_tcp_collectives, hostname=address)
        _jax.make_gloo_tcp_collectives = create


def _of_name() -> str:
    """Returns the address that this host's name resolves to, if it belongs to an interface."""
    with contextlib.suppress(OSError):
        address = socket.gethostbyname(socket.gethostname())
        with socket.socket() as bound:
            bound.bind((address, 0))
        return address if _is_outer(address) else ""
    return ""


def _towards(host: str) -> str:
    """Returns the address from which this host connects to another, or a loopback address."""
    with (
        contextlib.suppress(OSError, UnicodeError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.connect((host, 9))  # this sends nothing
        return datagrams.getsockname()[0]
    return "127.0.0.1"


def _is_outer(address: str) -> bool:
    return not ipaddress.ip_address(address).is_loopback

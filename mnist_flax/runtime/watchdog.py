"""Notices when another process of a run is lost: the process, its host or its network.

Every other process holds a connection to the first one, and each end sends a byte every second. JAX
has a watchdog too, but it is slower and ends the process with a stack trace.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

SECONDS = 15  # of silence before a loss is reported; gRPC, which JAX uses, gives up after 20
_BEAT, _GOODBYE = b".", b"!"
_CONNECT_SECONDS = 10


def listen(address: str) -> socket.socket:
    """Returns the first process's socket for the others to connect to.

    Args:
      address: the address at which the others reach this host.

    Raises:
      OSError: it is not an address of this host.
    """
    return socket.create_server((address, 0), backlog=1_000)


def watch_others(listener: socket.socket, token: bytes, lost: Callable[[str], None]) -> None:
    """Watches all processes that connect.

    Args:
      listener: the socket of this, the first process.
      token: what a process of this run sends first; other connections are closed.
      lost: called in a thread, with a reason, once one is lost.
    """

    def admit(connection: socket.socket) -> None:
        connection.settimeout(SECONDS)
        with contextlib.suppress(OSError):
            if connection.recv(len(token)) == token:
                _watch(connection, lost)
                return
        connection.close()

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            _start(admit, connection)

    _start(accept)


def watch_first(address: tuple[str, int], token: bytes, lost: Callable[[str], None]) -> None:
    """Watches the first process, which listens at `address`, in the same way.

    Does nothing if it cannot be reached there, for example because of a firewall.
    """
    with contextlib.suppress(OSError):
        connection = socket.create_connection(address, _CONNECT_SECONDS)
        connection.sendall(token)
        _watch(connection, lost)


def is_watching() -> bool:
    """Whether other processes watch this one, and report it as lost unless it calls `leave`."""
    return bool(_connections)


def leave() -> None:
    """Tells the others that this process ends normally, so that they do not report it as lost."""
    for connection in _connections:
        with contextlib.suppress(OSError):
            connection.sendall(_GOODBYE)


_connections: list[socket.socket] = []


def _watch(connection: socket.socket, lost: Callable[[str], None]) -> None:
    connection.settimeout(SECONDS)
    _connections.append(connection)

    def send() -> None:
        with contextlib.suppress(OSError):  # the receiver will notice
            while True:
                connection.sendall(_BEAT)
                time.sleep(1)

    def receive() -> None:
        reason = "its connection was closed"
        try:
            while received := connection.recv(100):
                if _GOODBYE in received:
                    return
        except TimeoutError:
            reason = f"nothing was heard from it for {SECONDS} s"
        except ConnectionError:
            pass  # closed before everything was read
        except OSError as error:
            reason = str(error)
        lost(reason)

    _start(send)
    _start(receive)


def _start(function: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # no thread can be started once Python exits
        threading.Thread(target=function, args=args, name="watchdog", daemon=True).start()

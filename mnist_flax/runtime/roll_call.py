"""Checks that every rank reports to process 0 exactly once, before JAX joins the processes.

If two processes have the same rank, JAX ends all with a stack trace, even in the middle of a run.
"""

import contextlib
import re
import socket
import time

from mnist_flax.errors import UserError

_GREETING = "mnist_flax"  # begins every message, so that strangers are recognised
_LINE = 500  # longest message, in characters
_STRANGER_SECONDS = 2  # for a new connection to identify itself
_LATE_SECONDS = 5  # for processes that start later to learn what is wrong
_RETRY_SECONDS = 0.5


def listen(port: int) -> socket.socket:
    """Returns process 0's socket for the others to report to, on all addresses of this host.

    Raises:
      OSError: the port is taken, or cannot be used.
    """
    family = socket.AF_INET6 if (both := socket.has_dualstack_ipv6()) else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=1_000, dualstack_ipv6=both)


def take(port: int, size: int, seconds: float) -> None:
    """Waits in process 0 until all other processes have reported, then lets them all continue.

    Args:
      port: the port to listen on; it is free again afterwards.
      size: how many processes there are.
      seconds: how long to wait.

    Raises:
      UserError: two have the same rank, or different numbers of processes; all are told.
      TimeoutError: not all have reported.
    """
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, listen(port) as listener:
        listener.settimeout(seconds)
        while len(present) < size - 1:
            connection = stack.enter_context(listener.accept()[0])
            rank, its_size = _greeted(connection)
            if rank < 0:
                connection.close()
                continue
            # A process that was stopped meanwhile may report again.
            present = {r: other for r, other in present.items() if not _is_gone(other)}
            if error := _mistake(rank, its_size, size, present):
                _refuse(listener, [connection, *present.values()], error)
            present[rank] = connection
        listener.close()  # JAX will listen there
        for connection in present.values():
            _send(connection)


def report(address: tuple[str, int], rank: int, size: int, seconds: float) -> None:
    """Reports to process 0 as soon as it listens, and returns once all have reported.

    Args:
      address: the host and port of process 0.
      rank: the rank of this process.
      size: how many processes there are.
      seconds: how long to wait.

    Raises:
      UserError: what process 0 found wrong.
      TimeoutError: not all have reported.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError), socket.create_connection(address, left) as connection:
            _send(connection, f"{rank} {size}")
            answer = _receive(connection, left)
            if answer.startswith(_GREETING):
                if error := answer.removeprefix(_GREETING).strip():
                    raise UserError(error)
                return
        time.sleep(_RETRY_SECONDS)
    raise TimeoutError


def _greeted(connection: socket.socket) -> tuple[int, int]:
    """Returns a process's rank and its number of processes; (-1, 0) for a stranger."""
    match = re.fullmatch(_GREETING + r" (\d+) (\d+)\n", _receive(connection, _STRANGER_SECONDS))
    return (int(match[1]), int(match[2])) if match else (-1, 0)


def _refuse(listener: socket.socket, present: list[socket.socket], error: str) -> None:
    """Tells all processes what is wrong, even those that come seconds later, and raises it."""
    listener.settimeout(_LATE_SECONDS)
    with contextlib.ExitStack() as stack, contextlib.suppress(TimeoutError):
        for connection in present:
            _send(connection, error)
        while True:
            late = stack.enter_context(listener.accept()[0])
            _receive(late, _STRANGER_SECONDS)  # otherwise closing it could discard the answer
            _send(late, error)
    raise UserError(error)


def _mistake(rank: int, its_size: int, size: int, present: dict[int, socket.socket]) -> str:
    if its_size != size:
        return (
            f"process {rank} has --num_processes={its_size}, but process 0 has {size}; "
            "allowed: the same number in all"
        )
    if rank in present:
        return (
            f"--process_id={rank} was given to two processes; allowed: 0 to {size - 1}, once each"
        )
    return ""


def _send(connection: socket.socket, text: str = "") -> None:
    with contextlib.suppress(OSError):  # a lost process will be noticed later
        connection.sendall(f"{_GREETING} {text}\n".encode())


def _receive(connection: socket.socket, seconds: float) -> str:
    """Returns a line; empty if none came."""
    connection.settimeout(seconds)
    with contextlib.suppress(OSError), connection.makefile(errors="replace") as lines:
        return lines.readline(_LINE)
    return ""


def _is_gone(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True

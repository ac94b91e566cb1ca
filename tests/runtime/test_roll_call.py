"""Processes that report to the first one; here they are threads with real sockets."""

import concurrent.futures
import contextlib
import socket
import time

import pytest

from mnist_flax.errors import UserError
from mnist_flax.runtime import roll_call
from tests.runs import free_port


@pytest.fixture
def call():
    """Returns a function that starts a process, given its rank, their number and a time limit."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        port = free_port()

        def call(rank, size, seconds=30):
            if rank == 0:
                return pool.submit(roll_call.take, port, size, seconds)
            return pool.submit(roll_call.report, ("127.0.0.1", port), rank, size, seconds)

        call.port = port
        yield call


def test_nobody_goes_on_before_all_have_come(call):
    others = [call(rank, 4) for rank in (3, 1)]
    first = call(0, 4)
    time.sleep(1.5)
    assert not any(process.done() for process in (first, *others))
    for process in (call(2, 4), first, *others):
        process.result(30)
    roll_call.listen(call.port).close()  # the port is free for JAX


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ((1, 3), (1, 3), "--process_id=1 was given to two processes; allowed: 0 to 2, once each"),
        ((1, 3), (2, 4), "process 2 has --num_processes=4, but process 0 has 3; allowed: the same"),
    ],
)
def test_a_mistake_is_told_to_all_and_to_who_comes_late(monkeypatch, call, one, two, said):
    monkeypatch.setattr(roll_call, "_LATE_SECONDS", 2)
    first, early = call(0, 3), call(*one)
    time.sleep(1)
    wrong = call(*two)
    time.sleep(0.5)
    for process in (call(2, 3), first, early, wrong):
        with pytest.raises(UserError, match=said):
            process.result(30)


def test_a_process_that_was_stopped_may_come_again(call):
    first = call(0, 3)
    with contextlib.closing(connected(call.port)) as stopped:
        stopped.sendall(b"mnist_flax 1 3\n")
        time.sleep(0.5)
    for process in (call(1, 3), call(2, 3), first):
        process.result(30)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"mnist_flax x 2\n", b"\xff\n"])
def test_a_stranger_is_turned_away(monkeypatch, call, sent):
    monkeypatch.setattr(roll_call, "_STRANGER_SECONDS", 0.5)
    first = call(0, 2)
    with contextlib.closing(connected(call.port)) as stranger:
        stranger.sendall(sent)
        with contextlib.suppress(ConnectionError):
            assert stranger.recv(1) == b""
        call(1, 2).result(30)
    first.result(30)


@pytest.mark.parametrize("rank", [0, 1])
def test_nobody_waits_for_ever(call, rank):
    with pytest.raises(TimeoutError):
        call(rank, 2, seconds=1).result(30)


def test_who_answers_otherwise_is_not_process_0(call):
    """The port may still belong to the JAX of another run, for example."""
    with socket.create_server(("127.0.0.1", call.port)) as listener:
        other = call(1, 2)
        with contextlib.closing(listener.accept()[0]) as connection:
            connection.sendall(b"\0\0\6\4\0\n")
    first = call(0, 2)
    for process in (first, other):
        process.result(30)


def connected(port):
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)

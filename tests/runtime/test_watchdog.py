"""The watchdog, with real sockets: a process is silent, gone, or has said goodbye."""

import contextlib
import queue
import socket
import time

import pytest

from mnist_flax.runtime import watchdog

TOKEN = b"0123456789abcdef"


@pytest.fixture
def lost(monkeypatch):
    """A queue of the reasons that are reported; half a second of silence is enough."""
    monkeypatch.setattr(watchdog, "SECONDS", 0.5)
    monkeypatch.setattr(watchdog, "_connections", [])
    yield queue.SimpleQueue()
    for connection in watchdog._connections:
        connection.close()


@pytest.fixture
def other(lost):
    """The connection of another process, which this one, as process 0, watches."""
    with watchdog.listen("127.0.0.1") as listener:
        watchdog.watch_others(listener, TOKEN, lost.put)
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(TOKEN)
            yield connection


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1", TOKEN[:-1]])
def test_a_stranger_is_turned_away(lost, sent):
    with watchdog.listen("127.0.0.1") as listener:
        watchdog.watch_others(listener, TOKEN, lost.put)
        with socket.create_connection(listener.getsockname(), timeout=5) as stranger:
            stranger.sendall(sent)
            with contextlib.suppress(ConnectionError):
                assert stranger.recv(1) == b""  # closed at once, or after its silence
        time.sleep(1)
        assert lost.empty()


def test_a_silent_process_is_lost(other, lost):
    for _ in range(4):
        other.sendall(b".")
        time.sleep(0.2)
        assert lost.empty()
    assert lost.get(timeout=5) == "nothing was heard from it for 0.5 s"


def test_a_process_whose_connection_ends_is_lost(other, lost):
    other.close()
    assert lost.get(timeout=5) == "its connection was closed"


def test_a_process_that_said_goodbye_is_not(other, lost):
    other.sendall(b"..!")
    other.close()
    time.sleep(1)
    assert lost.empty()


def test_both_ends_beat_until_one_leaves(monkeypatch, lost):
    monkeypatch.setattr(watchdog, "SECONDS", 1.5)
    with watchdog.listen("127.0.0.1") as listener:
        watchdog.watch_others(listener, TOKEN, lost.put)
        watchdog.watch_first(listener.getsockname(), TOKEN, lost.put)
        time.sleep(3)
        assert lost.empty()
        watchdog.leave()
        for connection in watchdog._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        time.sleep(2)
        assert lost.empty()


def test_where_the_first_cannot_be_reached_nobody_is_watched(lost):
    with watchdog.listen("127.0.0.1") as listener:
        address = listener.getsockname()
    watchdog.watch_first(address, TOKEN, lost.put)
    assert lost.empty() and not watchdog._connections

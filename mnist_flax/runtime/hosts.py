"""The processes of a run, one per host: how they agree, and what happens when one is lost.

This is JAX's own multi-controller runtime: every process runs the same program, and all must start
their common computations in the same order.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_flax.errors import UserError
from mnist_flax.runtime import addresses, watchdog
from mnist_flax.runtime.signals import LostProcess

_GRACE_SECONDS = 10  # for process 0 to complete a checkpoint when another process is lost
_MESSAGE_BYTES = 2_000

_joined = threading.Event()


def watch(coordinator: str, end: Callable[[LostProcess], None]) -> None:
    """Starts the watchdogs of all processes, once they have joined.

    Args:
      coordinator: the host of process 0; empty if it is not known.
      end: ends this process; called in a thread once another process is lost.

    Raises:
      LostProcess: the processes cannot exchange data.
    """
    _joined.set()

    def lost(reason: str) -> None:
        if is_main():
            time.sleep(_GRACE_SECONDS)
        end(LostProcess(f"another process of the run failed or disappeared ({reason})"))

    with exchanging():
        if is_main():
            listener = watchdog.listen(addresses.own(coordinator))
            host, port = listener.getsockname()[:2]
            token = secrets.token_hex(8)
            watchdog.watch_others(listener, token.encode(), lost)
            gather(f"{host} {port} {token}")
        else:
            host, port, token = gather("")[0].split()
            watchdog.watch_first((host, int(port)), token.encode(), lost)


@contextlib.contextmanager
def exchanging() -> Iterator[None]:
    """Raises `LostProcess` if processes that have joined cannot exchange data."""
    try:
        yield
    except Exception as error:
        if not _is_of_exchange(error):
            raise
        first = str(error).splitlines()[0]
        raise LostProcess(f"the processes cannot exchange data, or one died ({first})") from None


def leave() -> None:
    """Tells JAX in the other processes that this one ends, as JAX does at Python's exit."""
    if _joined.is_set():
        jax.distributed.shutdown()


def is_main() -> bool:
    """Whether this is process 0, the only one that writes, tracks and draws."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """Returns the texts of all processes, by rank, each cut off after 2,000 bytes."""
    if jax.process_count() == 1:
        return [text]
    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = text.encode()[:_MESSAGE_BYTES]
    message[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = multihost_utils.process_allgather(message)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def lost_process(error: BaseException | None) -> LostProcess | None:
    """Returns the error to raise in place of one that another process caused; otherwise None."""
    if not _is_of_exchange(error) or jax.process_count() == 1:
        return None
    first = str(error).splitlines()[0]
    return LostProcess(f"another process of the run failed or disappeared ({first})")


def _is_of_exchange(error: BaseException | None) -> bool:
    """Whether an error may be JAX's or Gloo's, which JAX sometimes reports as `ValueError`."""
    is_gloos = isinstance(error, ValueError) and "Gloo" in str(error)
    return is_gloos or isinstance(error, jax.errors.JaxRuntimeError)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raises `LostProcess` in place of an error that another process caused."""
    try:
        yield
    except Exception as error:
        if lost := lost_process(error):
            raise lost from error
        raise


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Re-raises a `UserError` of any process in every process."""
    error = ""
    try:
        yield
    except UserError as raised:
        error = str(raised)
    for message in gather(error):
        if message:
            raise UserError(message)


def check_same(text: str, what: str) -> None:
    """Checks that all processes have the same text.

    Raises:
      UserError: names the first process that differs from process 0, and `what` it differs in.
    """
    texts = gather(text)
    for process, other in enumerate(texts):
        if other != texts[0]:
            raise UserError(f"process {process} has a different {what} from process 0")

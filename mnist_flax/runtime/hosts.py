"""The processes of a run, one per host: how they find each other, and how they agree.

This is JAX's own multi-controller runtime: every process runs the same program, and all must start
what they compute together in the same order.
"""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_flax.errors import LostProcess, UserError

# A process that is silent for this long counts as lost, and the others stop.
_HEARTBEAT_SECONDS = 30
_MESSAGE_BYTES = 2_000


def initialize(
    coordinator_address: str = "", num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes, if there are any; must come before any use of a device.

    Args:
      coordinator_address: 'host:port' of process 0; empty where JAX finds the others by itself
        (a TPU pod slice, Slurm, Kubernetes), or where there are none.
      num_processes: how many there are.
      process_id: the rank of this one, from 0.

    Raises:
      UserError: one of the three is missing or wrong, or process 0 does not answer.
    """
    given = (coordinator_address, num_processes, process_id)
    if coordinator_address or given[1:] != (None, None):
        _check(*given)
    # `runtime.signals` handles signals.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address or None,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise
        # No cluster: this process is the only one.
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"the other processes cannot be joined: {first}") from None


def _check(address: str, num_processes: int | None, process_id: int | None) -> None:
    if not address or num_processes is None or process_id is None:
        raise UserError(
            "--coordinator_address, --num_processes and --process_id go together; "
            "allowed: all three or none"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UserError(f"--coordinator_address={address} is not allowed; allowed: HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} is not allowed; allowed: from 0 to below "
            f"--num_processes={num_processes}"
        )


def leave() -> None:
    """Tells the other processes that this one ends as it should, which Python's exit does too."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_main() -> bool:
    """Whether this is process 0, which alone writes, tracks and draws."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """Returns the texts of all processes, in order, each cut off after 2,000 bytes."""
    if jax.process_count() == 1:
        return [text]
    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = text.encode()[:_MESSAGE_BYTES]
    message[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = multihost_utils.process_allgather(message)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def largest(number: int) -> int:
    """Returns the largest number of any process."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def lost_process(error: BaseException | None) -> LostProcess | None:
    """Returns what to raise in place of an error that another process caused; None if none did."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or jax.process_count() == 1:
        return None
    first = str(error).splitlines()[0]
    return LostProcess(f"another process of the run failed or is gone ({first})")


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raises `LostProcess` in place of an error that another process caused."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
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
            raise UserError(f"process {process} has another {what} than process 0")

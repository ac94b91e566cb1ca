"""The processes of a run, one per host: how they join, and how they agree.

This is JAX's own multi-controller runtime: every process runs the same program, and all must start
their common computations in the same order. If a process is lost, JAX ends the others.
"""

import concurrent.futures
import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_flax.errors import UserError, refused
from mnist_flax.runtime.files import explain

_JOIN_SECONDS = 300  # for all processes to start
_HEARTBEAT_SECONDS = 20  # of silence before JAX counts a process as lost
_SHUTDOWN_SECONDS = 30  # for the others to end too
_MESSAGE_BYTES = 2_000


def join(coordinator_address: str, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of the run; call this before any use of a device.

    Args:
      coordinator_address: 'HOST:PORT' of process 0; empty where JAX finds the others by itself
        (a TPU pod slice, Slurm, Open MPI), and then the other two are None.
      num_processes: how many there are.
      process_id: the rank of this one, from 0.

    Raises:
      UserError: JAX cannot join them; the message gives JAX's reason.
    """
    if process_id is not None and not 0 <= process_id < (num_processes or 0):
        raise refused(
            "--process_id", process_id, f"from 0 to below --num_processes={num_processes}"
        )
    print(f"Joining the other processes, for up to {_JOIN_SECONDS} s", flush=True)
    jax.config.update("jax_enable_preemption_service", False)  # `signals` handles SIGTERM
    # On a thread, because JAX waits in C++, where Python cannot handle signals.
    joined = concurrent.futures.ThreadPoolExecutor(1).submit(
        jax.distributed.initialize,
        coordinator_address or None,
        num_processes,
        process_id,
        initialization_timeout=_JOIN_SECONDS,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    try:
        joined.result()
    except Exception as error:  # JAX raises many types of errors
        raise UserError(
            f"--distributed: JAX cannot join the other processes ({explain(error)}); give each "
            "--coordinator_address=HOST:PORT, --num_processes and --process_id"
        ) from None


def leave() -> None:
    """Waits for the other processes to end too; otherwise JAX counts this one as lost."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def is_main() -> bool:
    """Whether this is process 0, the only one that writes, tracks and draws."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """Returns the texts of all processes, by rank, each cut off after 2,000 bytes."""
    if jax.process_count() == 1:
        return [text]
    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = text.encode(errors="replace")[:_MESSAGE_BYTES]
    message[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = multihost_utils.process_allgather(message)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def broadcast(content: bytes) -> bytes:
    """Returns the content that process 0 has."""
    if jax.process_count() == 1:
        return content
    size = multihost_utils.broadcast_one_to_all(np.int32(len(content)))
    mine = content if is_main() else bytes(int(size))
    return bytes(multihost_utils.broadcast_one_to_all(np.frombuffer(mine, np.uint8)))


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

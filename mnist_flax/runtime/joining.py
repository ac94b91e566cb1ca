"""How the processes of a run find each other when they start."""

import os
import socket
from collections.abc import Callable

import jax
from jax._src import distributed

from mnist_flax.errors import UserError
from mnist_flax.runtime import addresses, compilation, hosts, interpreter, launchers, roll_call
from mnist_flax.runtime.background import Background, is_done
from mnist_flax.runtime.launchers import Launcher

_JOIN_SECONDS = 300  # for all processes to start
_LOOK_SECONDS = 2  # if it is unknown whether there are others: to look for them in silence
# JAX's own limits. It counts a silent process as lost, but `watchdog` notices earlier.
_HEARTBEAT_SECONDS = 60
_SHUTDOWN_SECONDS = 30


def initialize(
    coordinator_address: str,
    num_processes: int | None,
    process_id: int | None,
    end: Callable[[hosts.LostProcess], None],
) -> None:
    """Joins the other processes, if there are any; call this before any use of a device.

    Args:
      coordinator_address: 'host:port' of process 0; empty where JAX finds the others by itself
        (a TPU pod slice, Slurm, Open MPI), or where there are none.
      num_processes: how many there are.
      process_id: the rank of this one, from 0.
      end: ends this process; called in a thread once another process is lost.

    Raises:
      UserError: one of the three is missing or wrong, the others cannot be joined, or JAX cannot
        use the devices that the environment asks for.
      Interrupted: a signal came during the wait.
    """
    given = (coordinator_address, num_processes, process_id)
    if coordinator_address or given[1:] != (None, None):
        _check(*given)
    launcher = launchers.find()
    size = num_processes or (launcher.size if launcher else 0)
    if not size and interpreter.goes_on():
        return  # a notebook runs alone, and may have used JAX already
    if size == 1:
        return  # JAX might find more: the tasks of a Slurm job are not those of its step
    if size:
        _announce(f"Joining {size} processes")
    joining = Background("joining")
    joined = joining.submit(_join, *given, launcher)
    try:
        if not size and not is_done(joined, _LOOK_SECONDS):
            _announce("Looking for the other processes")
        if not is_done(joined, _JOIN_SECONDS):
            raise _late(coordinator_address, process_id)
        joined.result()
    finally:
        joining.close(timeout=0)  # JAX waits in C++: leave it behind
    if jax.distributed.is_initialized():
        _find_devices()
        if jax.process_count() > 1:
            hosts.watch(addresses.host_of(coordinator_address), end)


def _announce(what: str) -> None:
    print(f"{what}, waiting up to {_JOIN_SECONDS} s; Ctrl-C ends the wait", flush=True)


def _late(address: str, process_id: int | None) -> UserError:
    """Returns the error for processes that have not all joined."""
    reason = f"not all processes have started, or they cannot reach {address or 'process 0'}"
    if process_id:
        try:
            socket.create_connection(_split(address), _LOOK_SECONDS).close()
        except OSError as error:
            reason = f"--coordinator_address={address} cannot be reached ({error})"
    return UserError(
        f"{reason}, after {_JOIN_SECONDS} s; allowed: the same command on every host, an address "
        "of process 0 that all reach, and --process_id=0, 1, ... once each"
    )


def _join(
    address: str, num_processes: int | None, process_id: int | None, launcher: Launcher | None
) -> None:
    # `runtime.signals` handles signals.
    jax.config.update("jax_enable_preemption_service", False)
    # gRPC would look for the processes behind a proxy, and JAX would warn of it.
    jax.config.update("jax_check_proxy_envs", False)
    os.environ.setdefault("grpc_proxy", "")
    if address and num_processes and process_id is not None:
        _call_roll(address, num_processes, process_id)
    gpus = launchers.own_gpus(launcher) if launcher and not address else []
    addresses.tell_gloo(addresses.host_of(address))
    # In a pod, JAX would ask Kubernetes for others, which needs a package and rights that few have.
    kubernetes = os.environ.pop("KUBERNETES_SERVICE_HOST", None)
    try:
        jax.distributed.initialize(
            address or None,
            num_processes or (launcher.size if launcher else None),
            process_id,
            # An empty list means all; by default, JAX takes the one with this process's rank.
            local_device_ids=None if "JAX_LOCAL_DEVICE_IDS" in os.environ else gpus,
            initialization_timeout=2 * _JOIN_SECONDS,  # longer than ours: JAX would end the process
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except Exception as error:
        if launcher is None and "coordinator_address should be" in str(error):
            return  # No cluster: this process is the only one.
        raise _cannot_join(error, launcher) from None
    finally:
        if kubernetes is not None:
            os.environ["KUBERNETES_SERVICE_HOST"] = kubernetes


def _find_devices() -> None:
    """Raises a `UserError` in all processes if JAX finds no devices in one.

    Without devices, processes share only JAX's key-value store, which has no public name.
    """
    client, error = distributed.global_state.client, ""
    try:
        compilation.find_devices()
    except UserError as raised:
        error = str(raised)
    mine = f"mnist_flax/devices/{distributed.global_state.process_id}"
    with hosts.exchanging():
        client.key_value_set(mine, error or "-")
        client.wait_at_barrier("mnist_flax_devices", _JOIN_SECONDS * 1_000)
        found = dict(client.key_value_dir_get("mnist_flax/devices"))
    errors = {key.rpartition("/")[2]: text for key, text in found.items() if text != "-"}
    if errors:
        # The others have waited two minutes for the devices of the one that has none.
        rank = min(errors, key=lambda rank: ("timed out" in errors[rank], int(rank)))
        raise UserError(f"process {rank}: {errors[rank]}")


def _call_roll(address: str, num_processes: int, process_id: int) -> None:
    # Longer than `initialize` waits, because its error says more.
    if process_id == 0:
        _, port = _split(*_to_bind(address))
        roll_call.take(port, num_processes, 2 * _JOIN_SECONDS)
    else:
        roll_call.report(_split(address), process_id, num_processes, 2 * _JOIN_SECONDS)


def _to_bind(address: str) -> tuple[str, str]:
    """Returns the address on which process 0 listens, and what gives it.

    Where the others reach it through a proxy, JAX's variable gives another address.
    """
    name = "JAX_COORDINATOR_BIND_ADDRESS"  # counts for JAX even if it is empty
    return (os.environ[name], name) if name in os.environ else (address, "--coordinator_address")


def _split(address: str, given_as: str = "--coordinator_address") -> tuple[str, int]:
    """Returns the host and the port of 'host:port'; raises a `UserError` for any other form."""
    host, port = addresses.host_of(address), address.rpartition(":")[2]
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UserError(f"{given_as}={address} is not allowed; allowed: HOST:PORT")
    return host, int(port)


def _cannot_join(error: Exception, launcher: Launcher | None) -> UserError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if launcher is None:
        return UserError(f"the other processes cannot be joined: {first}")
    return UserError(
        f"{launcher.name} started {launcher.size} processes, which JAX cannot join ({first}); "
        f"allowed: --coordinator_address=HOST:PORT --num_processes=${launcher.size_variable} "
        f"--process_id=${launcher.rank_variable}"
    )


def _check(address: str, num_processes: int | None, process_id: int | None) -> None:
    if not address or num_processes is None or process_id is None:
        raise UserError(
            "--coordinator_address, --num_processes and --process_id go together; "
            "allowed: all three or none"
        )
    _split(address)
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} is not allowed; allowed: from 0 to below "
            f"--num_processes={num_processes}"
        )
    if process_id == 0:
        bound, given_as = _to_bind(address)
        _, port = _split(bound, given_as)
        try:  # JAX would wait for the others silently
            roll_call.listen(port).close()
        except OSError as error:
            reason = f"{given_as}={bound}: {error.strerror}"
            raise UserError(f"{reason}; allowed: a free port") from None

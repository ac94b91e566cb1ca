"""How real processes on loopback find each other, or learn that they are alone."""

import contextlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.runs import ROOT, TINY, environment, free_port, going_on, python

# Joins, and prints what JAX was told: the number of processes and the GPUs it may use.
JOIN = """
import sys, time
from mnist_flax.errors import UserError
from mnist_flax.runtime import joining
joining._JOIN_SECONDS = int(sys.argv[2])
try:
    joining.initialize(*eval(sys.argv[1]), sys.exit)
except UserError as error:
    print("error:", error, flush=True)
import jax
print(jax.process_count(), jax.config._read("jax_cuda_visible_devices"), flush=True)
"""
ALONE = ("", None, None)


@contextlib.contextmanager
def joining(*given, before="", then="", seconds=60, **env):
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error::UserWarning",
            "-c",
            before + JOIN + then,
            repr(given),
            str(seconds),
        ],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def joined(*given, timeout=100, **options):
    with joining(*given, **options) as process:
        return process.communicate(timeout=timeout)[0].splitlines()


def slurm(tasks, task, **more):
    """Returns Slurm's variables in a step on this host, of a job with four tasks."""
    step = {
        "SLURM_JOB_ID": "4242",
        "SLURM_NTASKS": "4",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": str(tasks),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
        "SLURM_NODEID": "0",
    }
    return {**step, **more}


def test_a_task_of_its_own_joins_nobody_and_has_all_gpus():
    assert joined(*ALONE, **slurm(1, 0, CUDA_VISIBLE_DEVICES="0,1,2,3")) == ["1 all"]


def test_tasks_on_one_host_share_its_gpus():
    port = str(free_port())  # JAX would derive one from the job's number
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "JAX_COORDINATOR_PORT": port}
    with joining(*ALONE, **slurm(2, 1, **gpus)) as other:
        first = joined(*ALONE, **slurm(2, 0, **gpus))
        second = other.communicate(timeout=100)[0].splitlines()
    for lines in (first, second):
        assert lines[0] == "Joining 2 processes, waiting up to 60 s; Ctrl-C ends the wait"
    assert (first[-1], second[-1]) == ("2 0,1", "2 2,3")


def test_given_ranks_leave_all_gpus_to_a_task_of_slurm():
    """JAX itself would give the task only one of them."""
    cluster = (f"127.0.0.1:{free_port()}", 2)
    env = slurm(2, 0, CUDA_VISIBLE_DEVICES="0,1")
    with joining(*cluster, 1, **env) as other:
        first = joined(*cluster, 0, **env)
        second = other.communicate(timeout=100)[0].splitlines()
    assert (first[-1], second[-1]) == ("2 all", "2 all")


@pytest.mark.parametrize("installed", [False, True])
def test_a_pod_of_kubernetes_joins_nobody(tmp_path, installed):
    """The package that JAX would use may be missing, or lack permissions."""
    pod = {"KUBERNETES_SERVICE_HOST": "192.0.2.1"}
    if installed:
        (tmp_path / "kubernetes.py").write_text(
            "class config:\n    def load_incluster_config():\n        raise OSError('no token')\n"
        )
        pod["PYTHONPATH"] = str(tmp_path)
    assert joined(*ALONE, **pod) == ["1 all"]


def test_processes_that_jax_cannot_join_are_told_how():
    """MPICH does not tell a process the address of process 0."""
    error, alone = joined(*ALONE, PMI_SIZE="2", PMI_RANK="1")[1:]
    assert error == (
        "error: MPI started 2 processes, which JAX cannot join (coordinator_address should be "
        "defined.); allowed: --coordinator_address=HOST:PORT --num_processes=$PMI_SIZE "
        "--process_id=$PMI_RANK"
    )
    assert alone == "1 all"


def test_a_rank_given_twice_ends_all():
    """JAX itself would end them with a page of text and SIGABRT."""
    cluster = (f"127.0.0.1:{free_port()}", 3)
    with joining(*cluster, 1) as one, joining(*cluster, 1) as two:
        lines = [joined(*cluster, 0)]
        lines += [other.communicate(timeout=100)[0].splitlines() for other in (one, two)]
    error = "error: --process_id=1 was given to two processes; allowed: 0 to 2, once each"
    assert [line[1] for line in lines] == [error] * 3


def test_a_process_too_many_disturbs_nobody():
    cluster = (f"127.0.0.1:{free_port()}", 2)
    with (
        joining(*cluster, 1, then="time.sleep(7)") as other,
        joining(*cluster, 0, then="time.sleep(7)") as first,
    ):
        assert "2 all\n" in iter(first.stdout.readline, "")
        _, error, alone = joined(*cluster, 1, seconds=2)
        assert error.startswith("error: not all processes have started, or they cannot reach")
        assert alone == "1 all"
        assert first.wait(60) == other.wait(60) == 0


@pytest.mark.parametrize("without", [(0, 1), pytest.param((1,), marks=pytest.mark.slow)])
def test_devices_that_a_process_lacks_end_all(without):
    """If only some processes lack devices, JAX waits for two minutes first."""
    cluster = (f"127.0.0.1:{free_port()}", 2)
    env = [{"JAX_PLATFORMS": "nonsense" if rank in without else "cpu"} for rank in (0, 1)]
    with joining(*cluster, 1, seconds=200, **env[1]) as other:
        first, *_ = joined(*cluster, 0, seconds=200, timeout=200, **env[0])[1:]
        second, *_ = other.communicate(timeout=100)[0].splitlines()[1:]
    assert first == second
    assert first.startswith(
        f"error: process {without[0]}: JAX cannot use the devices that JAX_PLATFORMS=nonsense "
    )


@pytest.mark.parametrize(
    ("address", "process", "said"),
    [
        ("127.0.0.1:{}", 0, "not all processes have started, or they cannot reach 127.0.0.1:{}"),
        ("127.0.0.1:{}", 1, "--coordinator_address=127.0.0.1:{} cannot be reached ([Errno 111] "),
        ("no.such.name:{}", 1, "--coordinator_address=no.such.name:{} cannot be reached ([Errno -"),
    ],
)
def test_others_that_do_not_come_are_an_error(tmp_path, address, process, said):
    port = free_port()
    cluster = (f"--coordinator_address={address.format(port)}", "--num_processes=2")
    arguments = (*TINY, f"--workdir={tmp_path}/run", *cluster, f"--process_id={process}")
    done = python("-c", "import main\n" + SOON, *arguments, timeout=100)
    assert done.returncode == 2
    assert done.stdout == "Joining 2 processes, waiting up to 3 s; Ctrl-C ends the wait\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {said.format(port)}")
    assert ", after 3 s; allowed: the same command on every host" in line
    assert not (tmp_path / "run").exists()


SOON = """
from mnist_flax.cli import command
from mnist_flax.runtime import joining
joining._JOIN_SECONDS = 3
command.start(main.main)
"""


@pytest.mark.parametrize("given_as", ["--coordinator_address", "JAX_COORDINATOR_BIND_ADDRESS"])
def test_a_port_that_is_taken_is_an_error(fork_main, tmp_path, given_as):
    cluster = (f"--workdir={tmp_path}/run", "--num_processes=2", "--process_id=0")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        if given_as.startswith("--"):
            done = fork_main(*TINY, *cluster, f"{given_as}={address}")
        else:
            reached = f"--coordinator_address=127.0.0.1:{free_port()}"
            done = fork_main(*TINY, *cluster, reached, **{given_as: address})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {given_as}={address}: Address already in use")
    assert line.endswith("; allowed: a free port")


@pytest.mark.parametrize("address", ["0.0.0.0", "[]:1234", ""])
def test_an_address_to_listen_on_must_be_complete(fork_main, address):
    cluster = ("--coordinator_address=127.0.0.1:1234", "--num_processes=2", "--process_id=0")
    done = fork_main(*TINY, *cluster, JAX_COORDINATOR_BIND_ADDRESS=address)
    expected = f"JAX_COORDINATOR_BIND_ADDRESS={address} is not allowed; allowed: HOST:PORT"
    assert (done.returncode, done.stderr) == (2, f"error: {expected}\n")


@pytest.mark.parametrize(("number", "process"), [(signal.SIGINT, 0), (signal.SIGTERM, 1)])
def test_a_signal_ends_the_wait(tmp_path, number, process):
    cluster = (f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2")
    arguments = (*TINY, f"--workdir={tmp_path}/run", *cluster, f"--process_id={process}")
    with going_on(tmp_path / "log", *arguments) as run:
        run.wait_for("Joining 2 processes, waiting up to 300 s")
        time.sleep(0.5)  # so that JAX is waiting
        started = time.monotonic()
        run.send_signal(number)
        assert run.wait(30) == 128 + number
        assert time.monotonic() - started < 5
    assert run.output.splitlines()[1:] == [f"stopped by {number.name}"]
    assert not (tmp_path / "run").exists()


FAILS = """
import os, signal, sys
from mnist_flax.cli import program

def main(arguments):
    import jax
    from mnist_flax.runtime import hosts, joining
    joining.initialize(*eval(arguments[0]), program.end_lost)
    if not hosts.is_main():
        {end}
    with hosts.watched(), hosts.together():
        print("waiting", flush=True)

program.run(main)
"""


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM, "stopped by SIGTERM"),
    ],
)
def test_what_one_process_alone_ends_with_ends_the_others(end, status, said):
    """Otherwise they would wait for it, and it for them when JAX shuts down."""
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FAILS.format(end=end), repr((address, 2, rank))],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    started = time.monotonic()
    first, other = (process.communicate(timeout=100)[0].splitlines() for process in processes)
    assert time.monotonic() - started < 25
    assert [process.returncode for process in processes] == [1, status]
    assert other[-1] == said
    assert first[-1].startswith("error: another process of the run failed or disappeared (")
    assert not any("Traceback" in line for line in first)

"""How processes find each other, or learn that they are alone: real processes on loopback."""

import contextlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.runs import ROOT, TINY, environment, going_on
from tests.runtime.test_hosts import free_port

# Joins, and prints what JAX was told: how many processes there are, and which GPUs it may see.
JOIN = """
import sys
from mnist_flax.errors import UserError
from mnist_flax.runtime import joining
joining._JOIN_SECONDS = 60
try:
    joining.initialize(*eval(sys.argv[1]), sys.exit)
except UserError as error:
    print("error:", error)
import jax
print(jax.process_count(), jax.config._read("jax_cuda_visible_devices"))
"""
ALONE = ("", None, None)


@contextlib.contextmanager
def joining(*given, before="", **env):
    process = subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", "-c", before + JOIN, repr(given)],
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


def joined(*given, **options):
    with joining(*given, **options) as process:
        return process.communicate(timeout=100)[0].splitlines()


def slurm(tasks, task, **more):
    """The variables of a step on this host; the job has four tasks."""
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
    port = str(free_port())  # JAX would derive one from the number of the job
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "JAX_COORDINATOR_PORT": port}
    with joining(*ALONE, **slurm(2, 1, **gpus)) as other:
        first = joined(*ALONE, **slurm(2, 0, **gpus))
        second = other.communicate(timeout=100)[0].splitlines()
    for lines in (first, second):
        assert lines[0] == "Joining 2 processes, waiting up to 60 s; Ctrl-C ends the wait"
    assert (first[-1], second[-1]) == ("2 0,1", "2 2,3")


def test_given_ranks_leave_all_gpus_to_a_task_of_slurm():
    """Which JAX would not."""
    cluster = (f"127.0.0.1:{free_port()}", 2)
    env = slurm(2, 0, CUDA_VISIBLE_DEVICES="0,1")
    with joining(*cluster, 1, **env) as other:
        first = joined(*cluster, 0, **env)
        second = other.communicate(timeout=100)[0].splitlines()
    assert (first[-1], second[-1]) == ("2 all", "2 all")


@pytest.mark.parametrize("installed", [False, True])
def test_a_pod_of_kubernetes_joins_nobody(tmp_path, installed):
    """With or without the package that JAX would use, and with no rights."""
    pod = {"KUBERNETES_SERVICE_HOST": "192.0.2.1"}
    if installed:
        (tmp_path / "kubernetes.py").write_text(
            "class config:\n    def load_incluster_config():\n        raise OSError('no token')\n"
        )
        pod["PYTHONPATH"] = str(tmp_path)
    assert joined(*ALONE, **pod) == ["1 all"]


def test_processes_that_jax_cannot_join_are_told_how():
    """MPICH says nothing about where process 0 is."""
    error, alone = joined(*ALONE, PMI_SIZE="2", PMI_RANK="1")[1:]
    assert error == (
        "error: MPI started 2 processes, which JAX cannot join (coordinator_address should be "
        "defined.); allowed: --coordinator_address=HOST:PORT --num_processes=$PMI_SIZE "
        "--process_id=$PMI_RANK"
    )
    assert alone == "1 all"


@pytest.mark.parametrize(
    ("address", "process", "said"),
    [
        ("127.0.0.1:{}", 0, "not all processes have started, or they do not reach 127.0.0.1:{}"),
        ("127.0.0.1:{}", 1, "--coordinator_address=127.0.0.1:{} cannot be reached ([Errno 111] "),
        ("no.such.name:{}", 1, "--coordinator_address=no.such.name:{} cannot be reached ([Errno -"),
    ],
)
def test_others_that_do_not_come_are_an_error(tmp_path, address, process, said):
    port = free_port()
    cluster = (f"--coordinator_address={address.format(port)}", "--num_processes=2")
    soon = [sys.executable, "-c", "import main\n" + SOON]
    done = subprocess.run(
        [*soon, *TINY, f"--workdir={tmp_path}/run", *cluster, f"--process_id={process}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
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


def test_a_port_that_is_taken_is_an_error(fork_main, tmp_path):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = fork_main(
            *TINY,
            f"--workdir={tmp_path}/run",
            "--num_processes=2",
            f"--coordinator_address={address}",
            "--process_id=0",
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --coordinator_address={address}: Address already in use")
    assert line.endswith("; allowed: a free port")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("process", [0, 1])
def test_a_signal_ends_the_wait(tmp_path, number, process):
    cluster = (f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2")
    arguments = (*TINY, f"--workdir={tmp_path}/run", *cluster, f"--process_id={process}")
    with going_on(tmp_path / "log", *arguments) as run:
        run.wait_for("Joining 2 processes, waiting up to 300 s")
        time.sleep(0.5)  # so that JAX is at it
        started = time.monotonic()
        run.send_signal(number)
        assert run.wait(30) == 128 + number
        assert time.monotonic() - started < 5
    assert run.output.splitlines()[1:] == [f"stopped by {number.name}"]
    assert not (tmp_path / "run").exists()

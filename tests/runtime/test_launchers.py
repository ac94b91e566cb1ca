"""What launchers tell a process, and which GPUs it uses."""

import pytest

from mnist_flax.errors import UserError
from mnist_flax.runtime import launchers

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
MPICH = {"PMI_SIZE": "2", "PMI_RANK": "0", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"}


@pytest.fixture
def env(monkeypatch):
    """Sets variables after removing all variables of launchers and GPUs."""
    for prefix in ("SLURM", "OMPI", "PMI", "MPI", "CUDA", "ROCR"):
        for name in [name for name in launchers.os.environ if name.startswith(f"{prefix}_")]:
            monkeypatch.delenv(name)

    def set_all(*groups, **more):
        for name, value in {k: v for group in (*groups, more) for k, v in group.items()}.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("groups", "name", "size"),
    [
        ([], None, None),
        ([SLURM], "Slurm", 4),
        ([OPEN_MPI], "Open MPI", 2),
        ([MPICH], "MPI", 2),
        ([SLURM, OPEN_MPI], "Open MPI", 2),  # mpirun within a step
        ([SLURM, {"SLURM_STEP_NUM_TASKS": "1"}], "Slurm", 1),
        ([SLURM, {"SLURM_STEP_NUM_TASKS": "1"}, MPICH], "MPI", 2),
        # In a batch script, which is not a step: the tasks are those that `srun` would start.
        ([{"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}], None, None),
        ([{"PMI_RANK": "0"}], None, None),
        ([{"PMI_SIZE": "many", "PMI_RANK": "0"}], None, None),
    ],
)
def test_who_started_it(env, groups, name, size):
    env(*groups)
    launcher = launchers.find()
    assert (launcher and launcher.name) == name and (launcher and launcher.size) == size


@pytest.mark.parametrize(
    ("variables", "gpus"),
    [
        # One task per node uses all the GPUs that it sees.
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0", "SLURM_NODEID": "3"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NODEID": "1"}, [2, 3]),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}, [0, 1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "4"}, [1]),
        # Three tasks on one node, one on another.
        ({"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_NODEID": "1"}, []),
        # Slurm has already given each task its own GPUs.
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_GPUS_PER_TASK": "4"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "2"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "4,5"}, [1]),
    ],
)
def test_tasks_of_slurm_share_the_gpus_of_a_node(env, variables, gpus):
    env(SLURM, {"SLURM_NODEID": "0", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, variables)
    assert launchers.own_gpus(launchers.find()) == gpus


def test_processes_of_mpi_share_the_gpus_of_a_host(env):
    env(OPEN_MPI, CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert launchers.own_gpus(launchers.find()) == [2, 3]
    env(OMPI_COMM_WORLD_LOCAL_SIZE="1", OMPI_COMM_WORLD_LOCAL_RANK="0")
    assert launchers.own_gpus(launchers.find()) == []


def test_gpus_are_counted_where_no_variable_names_them(env, monkeypatch):
    env(MPICH)
    monkeypatch.setattr(launchers.glob, "glob", lambda pattern: [])
    assert launchers.own_gpus(launchers.find()) == []
    monkeypatch.setattr(launchers.glob, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    assert launchers.own_gpus(launchers.find()) == [0]


def test_gpus_that_cannot_be_shared_are_refused(env):
    env(OPEN_MPI, CUDA_VISIBLE_DEVICES="0,1,2")
    with pytest.raises(UserError, match="2 processes cannot share the 3 GPUs of this host equally"):
        launchers.own_gpus(launchers.find())

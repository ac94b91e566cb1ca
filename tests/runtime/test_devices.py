"""The same numbers on any number of devices: virtual ones of a CPU, in the real command."""

import functools
import json
import subprocess
import sys

import pytest

from mnist_flax.errors import UserError
from mnist_flax.run import fields as config_lib
from tests.runs import ROOT, TINY, arrays, assert_close_run, environment

# 3,990 images in batches of 400: the last has 390, which 8 devices do not divide.
UNEVEN = (
    *TINY,
    "--config.dataset.validation_size=10",
    "--config.batch_size=400",
    "--config.augment.enabled=True",
    "--config.num_epochs=1",
    # Adam divides a gradient by its own size: without this, rounding would grow to a step.
    "--config.optimizer.eps=0.1",
)


def on_devices(count):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


@pytest.fixture(scope="module")
def run_on(run_main, tmp_path_factory):
    """Runs on so many devices, once."""

    @functools.cache
    def run(count):
        workdir = tmp_path_factory.mktemp("devices") / str(count)
        done = run_main(*UNEVEN, f"--workdir={workdir}", **on_devices(count))
        assert done.returncode == 0, done.stderr
        return workdir, done.stdout

    return run


@pytest.mark.parametrize("count", [2, 8])
def test_results_are_those_of_one_device(run_on, count):
    """Augmentation, batch-norm statistics and the uneven last batch included."""
    alone, _ = run_on(1)
    together, said = run_on(count)
    assert f"Devices: {count} cpu" in said
    assert_close_run(together, alone, 2e-3)
    assert len([name for name in arrays(together) if "batch_stats" in name]) == 4


def test_a_batch_that_devices_do_not_divide_is_refused(run_main, tmp_path):
    done = run_main(*TINY, "--config.batch_size=100", f"--workdir={tmp_path}/run", **on_devices(8))
    assert done.returncode == 2
    assert done.stderr == (
        "error: config.batch_size=100 is not allowed; allowed: a multiple of the 8 devices, "
        "nearest 96 and 104\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("batch_size", "nearest"), [(3, "8"), (3_999, "3992 and 4000"), (4_000, None)]
)
def test_the_nearest_sizes_work(tiny_config, batch_size, nearest):
    tiny_config.batch_size = batch_size
    if nearest is None:
        config_lib.check_sizes(tiny_config, 4_000, 8)
    else:
        with pytest.raises(UserError, match=f"nearest {nearest}$"):
            config_lib.check_sizes(tiny_config, 4_000, 8)


def test_rows_are_spread_and_taken():
    """On 8 devices, in a process of their own: of bytes, words and odd shapes."""
    script = """
import json
import jax
import numpy as np
from jax.sharding import PartitionSpec
from mnist_flax import mesh

rng = np.random.default_rng(0)
found = []
for shape, dtype in (((50, 4, 4, 1), np.uint8), ((50, 3), np.uint8), ((50,), np.int32)):
    array = rng.integers(0, 200, shape).astype(dtype)
    spread = mesh.spread(array)
    indices = rng.permutation(50)[:11]
    take = mesh.on_devices(mesh.take, (mesh.SPREAD, mesh.REPLICATED), mesh.REPLICATED, 11)
    held = [shard.data.shape[0] for shard in spread.addressable_shards]
    same = np.array_equal(jax.jit(take)(spread, indices), array[indices])
    found.append([len(spread), held, same])
sizes = {size: list(mesh.create_mesh(size).devices.shape) for size in (8, 54, 11, 64)}
print(json.dumps([found, sizes]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT), **on_devices(8)),
        check=True,
    )
    found, sizes = json.loads(done.stdout)
    assert found == [[56, [7] * 8, True]] * 3
    assert sizes == {"8": [1, 8, 1], "54": [1, 2, 4], "11": [1, 1, 8], "64": [1, 8, 1]}

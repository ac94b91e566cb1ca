"""Results are the same on any number of devices; here these are virtual devices of a CPU."""

import jax
import numpy as np
import pytest

from mnist_flax.errors import UserError
from mnist_flax.runtime import devices
from tests.runs import TINY, arrays, assert_close_run, on_devices, python, run

# 3,990 images in batches of 400: eight devices share a batch, but only two can share the last, 390.
UNEVEN = (
    *TINY,
    "--config.dataset.validation_size=10",
    "--config.batch_size=400",
    "--config.augment.enabled=True",
    "--config.num_epochs=1",
    # Adam divides a gradient by its size; a large eps keeps it from magnifying rounding errors.
    "--config.optimizer.eps=0.1",
)


def test_eight_devices_give_the_results_of_one(tmp_path):
    """This includes augmentation, batch-norm statistics and the uneven last batch."""
    alone, together = tmp_path / "1", tmp_path / "8"
    for workdir in (alone, together):
        done = run(*UNEVEN, f"--workdir={workdir}", **on_devices(int(workdir.name)))
        assert (done.returncode, done.stderr) == (0, "")
    assert "Devices: 8 cpu" in done.stdout
    assert_close_run(together, alone, 2e-3)
    assert len([name for name in arrays(together) if "batch_stats" in name]) == 4


def test_on_eight_devices():
    """Runs tests/on_eight_devices.py in a process with eight devices."""
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/on_eight_devices.py")
    done = python(*pytest_, timeout=900, **on_devices(8))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("size", "num_images", "allowed"),
    [(4_000, 4_000, ""), (3_999, 4_000, "multiple of the 8"), (4_008, 4_000, "at most the 4,000")],
)
def test_batch_sizes_that_fit(monkeypatch, size, num_images, allowed):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    if not allowed:
        devices.check_batch_size(size, num_images)
        return
    with pytest.raises(UserError, match=f"config.batch_size .*{allowed}.* got {size}"):
        devices.check_batch_size(size, num_images)


def test_one_device_needs_no_mesh():
    """Outside `devices.lower`, functions for several devices work as plain functions."""
    batch = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(jax.jit(devices.spread)(batch), batch)
    assert devices.describe().startswith("Device: ")

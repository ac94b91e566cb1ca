"""Results are the same on any number of devices; here these are virtual devices of a CPU."""

import jax
import numpy as np
import pytest

from mnist_flax.errors import UserError
from mnist_flax.runtime import devices
from tests.runs import TINY, arrays, assert_close_run, on_devices, python

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


def test_results_are_those_of_one_device(run_main, tmp_path):
    """This includes augmentation, batch-norm statistics and the uneven last batch."""
    alone, together = tmp_path / "1", tmp_path / "8"
    for workdir in (alone, together):
        done = run_main(*UNEVEN, f"--workdir={workdir}", **on_devices(int(workdir.name)))
        assert done.returncode == 0, done.stderr
    assert "Devices: 8 cpu" in done.stdout
    assert_close_run(together, alone, 2e-3)
    assert len([name for name in arrays(together) if "batch_stats" in name]) == 4


def test_on_eight_devices():
    """Runs tests/on_eight_devices.py in a process with eight devices."""
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/on_eight_devices.py")
    done = python(*pytest_, timeout=900, **on_devices(8))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_a_batch_that_devices_do_not_divide_is_refused(run_main, tmp_path):
    done = run_main(*TINY, "--config.batch_size=100", f"--workdir={tmp_path}/run", **on_devices(8))
    assert done.returncode == 2
    assert done.stderr == (
        "error: config.batch_size=100 is not allowed; allowed: a multiple of the 8 devices "
        "(nearest: 96 and 104)\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("batch_size", "num_images", "allowed"),
    [
        (4_000, 4_000, None),
        (3_999, 4_000, "a multiple of the 8 devices (nearest: 3992 and 4000)"),
        (3_999, 3_999, "a multiple of the 8 devices (nearest: 3992)"),
        (3, 4_000, "a multiple of the 8 devices (nearest: 8)"),
        (3, 7, "a multiple of the 8 devices (nearest: none)"),
        (4_008, 4_000, "at most the 4,000 training images"),
    ],
)
def test_the_nearest_sizes_work(monkeypatch, batch_size, num_images, allowed):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    if allowed is None:
        devices.check_batch_size(batch_size, num_images)
    else:
        with pytest.raises(UserError) as error:
            devices.check_batch_size(batch_size, num_images)
        assert str(error.value) == (
            f"config.batch_size={batch_size} is not allowed; allowed: {allowed}"
        )


def test_one_device_needs_no_mesh():
    """Outside `devices.lower`, functions for several devices work as plain functions."""
    batch = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(jax.jit(devices.spread)(batch), batch)
    assert devices.describe().startswith("Device: ")

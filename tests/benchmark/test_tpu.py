import importlib.metadata
import re
import subprocess
import sys

import jax
import pytest

from configs import default
from mnist_flax.benchmark import tpu
from mnist_flax.errors import UserError
from mnist_flax.runtime import compilation
from tests.runs import python, tiny


def test_the_programs_of_a_run_are_compiled():
    """On CPUs, for want of a TPU's compiler."""
    compilation.compiler_options()  # they are cached, and must remain those for a CPU
    count = str(jax.device_count())
    step, evaluation = tpu.compile_for(tiny(), jax.devices())
    assert step[:4] == ["step", count, "1", "64"]
    assert evaluation[:4] == ["evaluation", count, "1", f"{2_000 * jax.device_count():,}"]
    assert len(step) == len(evaluation) == 8 and int(step[6]) >= 47  # the images, in MB


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^compiling .* libtpu; pip install -e '\.\[tpu\]'$"):
        tpu.main(default.get_config())


@pytest.fixture(scope="module")
def compile_for(tmp_path_factory):
    """Runs the command with a libtpu that fits JAX, in a folder of its own."""
    folder = str(tmp_path_factory.mktemp("libtpu"))
    needed = [x.partition(";")[0] for x in importlib.metadata.requires("jax") if "libtpu" in x]
    pip = [sys.executable, "-m", "pip", "install", "--target", folder, *needed]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"libtpu cannot be installed: {done.stderr.strip().splitlines()[-1]}")

    def run(*arguments):
        command = ("-m", "mnist_flax.benchmark.tpu", *arguments)
        return python(*command, timeout=1_800, PYTHONPATH=folder, JAX_PLATFORMS=None)

    return run


@pytest.mark.slow
def test_the_default_recipe_compiles_for_a_chip_and_a_slice_of_hosts(compile_for):
    done = compile_for("--topology=v5e:1x1,v5e:4x4")
    assert done.returncode == 0, done.stderr
    cells = [line.strip("| ").split(" | ") for line in re.findall(r"\| v5e.*", done.stdout)]
    rows = {(row[0], row[1]): [int(cell.replace(",", "")) for cell in row[2:]] for row in cells}
    assert rows["v5e:1x1", "step"][:3] == [1, 1, 2_048]
    assert rows["v5e:4x4", "step"][:3] == [16, 4, 2_048]
    assert rows["v5e:4x4", "evaluation"][:3] == [16, 4, 32_000]
    gflop, _, arguments, temporaries = rows["v5e:1x1", "step"][3:]
    assert rows["v5e:4x4", "step"][3] == pytest.approx(gflop / 16, rel=0.1)
    assert 47 <= arguments < 200 and temporaries < 16_000  # the images take 47; a v5e has 16 GB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology=v5e:2x2,v9:1"], "--topology must be one that libtpu knows, such as v5e:2x2"),
        (["--topology=v5e:3x3"], "--topology must be one that libtpu knows, such as v5e:2x2"),
        (["--config.batch_size=2047"], "config.batch_size must be"),
        (
            [
                "--topology=v5e:1x1",
                "--config.batch_size=60000",
                "--config.model.channels=((512,),)",  # in float32, 96 GB
                "--config.model.kernel_sizes=((1,),)",
            ],
            "the program does not fit in the memory of the device",
        ),
    ],
)
def test_a_mistake_is_one_line(compile_for, arguments, said):
    done = compile_for(*arguments)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith(f"error: {said}")

"""The compiler for TPUs: its text is read from an excerpt, and in full by a slow test.

compiled_for_tpu.txt holds lines of a training step for four chips of a v5e (jax 0.10.2, libtpu
0.0.42.1), and a line for a v6e that has no estimate (jax 0.12.0.1, libtpu 0.0.50.1).
"""

import pathlib
import re
import shutil
import subprocess
import sys

import jax
import pytest

from configs import default
from mnist_flax.benchmark import jax_worker, tpu, tpu_worker
from mnist_flax.benchmark.worker import Worker
from mnist_flax.errors import UserError
from tests.runs import ROOT, environment, tiny

EXCERPT = pathlib.Path(__file__).with_name("compiled_for_tpu.txt")
CONVOLUTION = (
    "jit(_train_step)/transpose(jvp(SimpleCNN))/SimpleCNN._conv/conv1_2/"
    "cond/branch_0_fun/transpose(jvp())/conv_general_dilated"
)
SUM = "jit(_train_step)/transpose(jvp(SimpleCNN))/SimpleCNN._conv/conv1_2/reduce_sum"


def test_the_compilers_text_is_read():
    """Both gradients of a convolution count as one operation; one without an estimate as 0."""
    assert tpu_worker.read(EXCERPT.read_text()) == {
        "cycles": {CONVOLUTION: 405_045 + 579_072, SUM: 230_314},
        "collectives": {"all-reduce": 1},
        "gathers": 1,
    }


def test_a_collective_in_two_parts_is_one():
    text = "%a = f32[8] all-gather-start(%x)\n%b = f32[8] all-gather-done(%a)\n"
    assert tpu_worker.read(text)["collectives"] == {"all-gather": 1}


def result(**changes):
    about = {"topology": "v5e:2x2", "program": "step", "kind": "TPU v5 lite", "num_devices": 4}
    about |= {"num_hosts": 1, "batch_size": {"step": 2_048}, "versions": {"jax": "0.10.2"}}
    memory = {"argument_bytes": 58_700_000, "temporary_bytes": 64_200_000}
    return about | memory | tpu_worker.read(EXCERPT.read_text()) | changes


def test_the_report_by_hand():
    """A program processes 2,048 images in 1,214,431 cycles, at 1.5 GHz."""
    text = tpu.report([result(), result(kind="TPU v99", collectives={})])
    row = "| v5e:2x2 | step | 4 | 1 | 2,048 | 1,214,431 | {} | 59 | 64 | 1 | {} |"
    assert row.format("2,529,580", "1 all-reduce") in text
    assert row.format("unknown", "none") in text
    short = (
        "transpose(jvp(SimpleCNN))/SimpleCNN._conv/conv1_2/transpose(jvp())/conv_general_dilated"
    )
    assert f"| {short} | v5e:2x2 | step | 984,117 | 81% |" in text
    assert "not run" in text and "jax 0.10.2" in text


def test_what_a_run_compiles_is_lowered():
    """`Lowering` lowers the step of a full batch and the prediction, and compiles nothing."""
    config = tiny()
    trainer = tpu_worker.Lowering(config, jax_worker.noise(config, 100, 50))
    trainer.compile()
    trainer._predictor.wait()  # the last to be lowered; on a CPU, `compile` does not wait for it
    step, size = trainer.lowered["_train_step"]
    assert size == config.batch_size and "tensor<64x" in step.as_text()
    _, size = trainer.lowered["_predict"]
    assert size == 100 * jax.device_count()


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^compiling .* libtpu; pip install -e '\.\[tpu\]'$"):
        tpu.main(default.get_config())


def test_a_crash_is_a_line(tmp_path, monkeypatch):
    executable = tmp_path / "crash"
    executable.write_text("#!/bin/sh\nkill -SEGV $$\n")
    executable.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(executable))
    with pytest.raises(UserError, match=r"^the compiler for v6e:2x2 has crashed: SIGSEGV$"):
        Worker("tpu_worker", {}, {}, "the compiler for v6e:2x2")


def test_the_others_are_compiled_after_a_crash(monkeypatch):
    class Fake:
        def __init__(self, module, settings, env, name):
            self.about = {"kind": settings["topology"]}

        def measure(self, program):
            if self.about["kind"] == "bad" and program == "step":
                raise UserError("it has crashed")
            return {"cycles": {}}

        def close(self):
            closed.append(self.about["kind"])

    closed = []
    monkeypatch.setattr(tpu, "Worker", Fake)
    results, problems = tpu.compile_for(default.get_config(), ["bad", "good"])
    found = [(result["topology"], result["program"]) for result in results]
    assert found == [("good", "step"), ("good", "evaluation")]
    assert problems == ["it has crashed"] and sorted(closed) == ["bad", "good"]


@pytest.fixture(scope="module")
def compile_for(tmp_path_factory):
    """Runs the command in a new virtual environment that has libtpu."""
    folder = tmp_path_factory.mktemp("tpu")
    for name in ("mnist_flax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", f"{folder}/source[tpu]"]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"libtpu cannot be installed: {done.stderr.strip().splitlines()[-1]}")

    def run(*arguments):
        return subprocess.run(
            [python, "-m", "mnist_flax.benchmark.tpu", *arguments],
            cwd=folder,
            env=environment(JAX_PLATFORMS=None),
            capture_output=True,
            text=True,
        )

    return run


def rows(done):
    """Returns the table of programs: the numbers (devices to gathers), and the collectives."""
    assert done.returncode == 0, done.stderr
    cells = [line.split(" | ") for line in done.stdout.splitlines() if re.match(r"\| v\d", line)]
    numbers = {
        (row[0].removeprefix("| "), row[1]): [int(cell.replace(",", "")) for cell in row[2:10]]
        for row in cells
    }
    return numbers, {(row[0].removeprefix("| "), row[1]): row[10].rstrip(" |") for row in cells}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_default_recipe_compiles_for_a_tpu(compile_for, dtype):
    numbers, collectives = rows(compile_for("--topology=v5e:2x2", f"--config.model.dtype={dtype}"))
    devices, hosts, images, cycles, speed, arguments, temporaries, gathers = numbers[
        "v5e:2x2", "step"
    ]
    assert (devices, hosts, images) == (4, 1, 2_048)
    assert 1e5 < cycles < 1e7 and speed == pytest.approx(2_048 * 1.5e9 / cycles, abs=1)
    assert 47 <= arguments < 200 and temporaries < 16_000  # the data take 47 MB; a v5e has 16 GB
    assert gathers == 2  # of the batch's images and labels, none of single pixels
    assert "all-reduce" in collectives["v5e:2x2", "step"]
    assert numbers["v5e:2x2", "evaluation"][:3] == [4, 1, 8_000]


@pytest.mark.slow
def test_a_chip_and_a_slice_of_hosts(compile_for):
    small = ("--config.model.channels=((8,),)", "--config.model.kernel_sizes=((3,),)")
    numbers, collectives = rows(compile_for("--topology=v5e:1x1,v5e:4x4", *small))
    assert numbers["v5e:1x1", "step"][:3] == [1, 1, 2_048]
    assert numbers["v5e:4x4", "step"][:3] == [16, 4, 2_048]
    assert numbers["v5e:4x4", "evaluation"][:3] == [16, 4, 32_000]
    assert collectives["v5e:1x1", "step"] == "none"
    assert "all-reduce" in collectives["v5e:4x4", "step"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology=v5e:2x2,v9:1"], "--topology='v9:1' is not allowed; allowed: a topology of"),
        (["--topology=v5e:3x3"], "--topology='v5e:3x3' is not allowed; allowed: a topology of"),
        (["--topology="], "--topology='' is not allowed; allowed: one or more, such as v5e:1x1,"),
        (["--topology=v5e:2x2", "--config.batch_size=2047"], "config.batch_size=2047 is not"),
    ],
)
def test_bad_input_is_one_line(compile_for, arguments, said):
    done = compile_for(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {said}")


@pytest.mark.slow
def test_what_does_not_fit_is_a_line(compile_for):
    """60,000 images with 512 channels take 96 GB in float32; a v5e has 16 GB."""
    wide = ("--config.model.channels=((512,),)", "--config.model.kernel_sizes=((1,),)")
    done = compile_for("--topology=v5e:1x1", "--config.batch_size=60000", *wide)
    assert (done.returncode, done.stdout) == (2, "") and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.match("error: the compiler for v5e:1x1 has ended: RESOURCE_EXHAUSTED: .*HBM", last)

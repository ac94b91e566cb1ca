import functools
import json

import pytest

from configs import default
from mnist_flax.benchmark import __main__ as benchmark
from mnist_flax.benchmark import jax_worker
from mnist_flax.errors import UserError
from tests.runs import python


def test_work_is_counted_as_by_hand():
    """Two operations per product: output pixels x kernel pixels x input x output channels."""
    by_layer = [
        24 * 24 * 25 * 1 * 36,
        20 * 20 * 25 * 36 * 36,
        10 * 10 * 4 * 36 * 36,
        8 * 8 * 9 * 36 * 64,
        6 * 6 * 9 * 64 * 128,
        3 * 3 * 4 * 128 * 128,
        3 * 3 * 1 * 128 * 256,
        3 * 3 * 1 * 256 * 10,
    ]
    work = jax_worker.work(default.get_config().model)
    assert work["forward"] == 2 * sum(by_layer)
    assert work["step"] == 2 * (3 * sum(by_layer) - by_layer[0])


def result(**seconds):
    images = {"augmentation": 100, "forward": 100, "step": 100, "epoch": 300, "evaluation": 1_000}
    return {
        "device": "cpu",
        "processor": "2 CPUs",
        "python": "3.11",
        "versions": {"jax": "0.10.2"},
        "dtype": "float32",
        "batch_size": 100,
        "images": images,
        "flop": {"forward": 1e6, "step": 3e6},
        "matmul_flop_per_second": [1e9, 4e9, 2e9],
        "seconds": {
            task: {name: [n * s for s in values] for name, values in seconds.items()}
            for task, n in images.items()
        },
        "compile_seconds": {"cold": 9.04, "cached": 0.5},
        "peak_memory_bytes": dict.fromkeys(seconds, 2_000_000_000),
    }


def test_table_gives_medians_ranges_and_ratios_of_turns():
    text = benchmark.table(result(mnist_flax=[0.01, 0.02, 0.04], torch=[0.02, 0.02, 0.02]))
    assert "| step | 50 (25–100) | 50 (50–50) | 0 | 8% |" in text
    # The ratios in the three turns are 2, 1 and 0.5; the row gives their median and range.
    assert "| epoch | 1.00 (0.50–2.00) |" in text
    assert "2 GFLOP/s" in text and "9.0 s" in text and "median (range) of 3" in text


def test_table_without_another_has_no_ratios():
    text = benchmark.table(result(mnist_flax=[0.01, 0.02, 0.04]))
    assert "ratio" not in text and "| augmentation | 50 (25–100) |  |  |" in text


@pytest.fixture
def run_benchmark(tmp_path):
    command = ("-m", "mnist_flax.benchmark")
    return functools.partial(python, *command, timeout=600, XDG_CACHE_HOME=str(tmp_path))


SMALL = (
    "--config.batch_size=64",
    "--config.model.channels=((2,),)",
    "--config.model.kernel_sizes=((3,),)",
    "--num_images=100",
    "--repeats=2",
)


def test_measures_every_task(run_benchmark):
    done = run_benchmark("--json", *SMALL)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    for seconds in measured["seconds"].values():
        assert len(seconds["mnist_flax"]) == 2 and min(seconds["mnist_flax"]) > 0
    assert measured["images"]["epoch"] == 100
    assert measured["compile_seconds"]["cached"] < measured["compile_seconds"]["cold"]
    assert measured["peak_memory_bytes"]["mnist_flax"] > 100_000_000
    assert "| epoch |" in benchmark.table(measured)


@pytest.mark.slow
def test_measures_pytorch_in_turns(run_benchmark):
    pytest.importorskip("torch")
    done = run_benchmark("--json", "--against=torch", *SMALL)
    assert done.returncode == 0, done.stderr
    for seconds in json.loads(done.stdout)["seconds"].values():
        assert len(seconds) == 5 and all(len(values) == 2 for values in seconds.values())


def test_bad_flags_are_one_line(fork_main):
    done = fork_main("--against=jax", command="mnist_flax.benchmark")
    assert done.returncode == 2 and "torch" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_another_network_is_not_measured_against_the_originals(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    config = default.get_config()
    benchmark._check_comparable(config)
    config.model.norm = "layer"
    with pytest.raises(UserError, match=r"model\.norm=layer .*; allowed: batch"):
        benchmark._check_comparable(config)

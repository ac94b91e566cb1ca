import json

import pytest

from configs import default
from mnist_flax.benchmark import __main__ as benchmark
from mnist_flax.benchmark.worker import Worker
from mnist_flax.errors import UserError
from tests.runs import QUICK, python, tiny

SMALL = (
    "--config.batch_size=64",
    "--config.model.channels=((2,),)",
    "--config.model.kernel_sizes=((3,),)",
    "--num_images=100",
    "--repeats=2",
)


def test_the_table_by_hand():
    """The ratios in the three turns are 2, 1 and 0.5."""
    result = {
        "device": "cpu",
        "processor": "2 CPUs",
        "versions": {"jax": "0.10.2"},
        "dtype": "float32",
        "images": {"step": 2_048, "epoch": 6_144},
        "images_per_second": {"step": {"mnist_flax": [100, 50, 25], "torch": [50, 50, 50]}},
        "compile_seconds": {"cold": 9.04, "cached": 0.5},
    }
    text = benchmark.table(result)
    assert "| images/s | mnist_flax | torch | ratio |\n| --- | ---: | ---: | ---: |\n" in text
    assert "| step | 100 (50) | 50 (50) | 2.00 (1.00) |" in text
    assert "batches of 2,048" in text and "9.0 s" in text and "3 repeats" in text


@pytest.fixture
def measure():
    def measure(*arguments):
        done = python("-m", "mnist_flax.benchmark", "--json", *SMALL, *arguments, **QUICK)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return measure


def test_measures_every_task(measure):
    measured = measure()
    for rates in measured["images_per_second"].values():
        assert len(rates["mnist_flax"]) == 2 and min(rates["mnist_flax"]) > 0
    assert measured["images"]["epoch"] == 100
    assert measured["compile_seconds"]["cached"] < measured["compile_seconds"]["cold"]
    assert "| epoch |" in benchmark.table(measured)


@pytest.mark.slow
def test_measures_pytorch_in_turns(measure):
    pytest.importorskip("torch")
    measured = measure("--against=torch")
    for rates in measured["images_per_second"].values():
        assert len(rates) == 3 and all(len(values) == 2 for values in rates.values())
    assert "torch" in measured["versions"]


def test_what_pytorch_lacks_is_refused(monkeypatch):
    config = default.get_config()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs PyTorch; pip install"):
        benchmark.check_comparable(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    benchmark.check_comparable(config)
    config.model.norm = "layer"
    with pytest.raises(UserError, match=r"model\.norm must be batch with .*, got 'layer'"):
        benchmark.check_comparable(config)


def test_an_error_of_a_worker_is_an_error_here(capfd):
    with pytest.raises(UserError, match="JAX cannot use the devices"):
        Worker("jax_worker", {"JAX_PLATFORMS": "none"}, tiny(), None)
    with pytest.raises(UserError, match="process of the benchmark has ended"):
        Worker("missing_worker", {})
    assert "No module named 'mnist_flax.benchmark.missing_worker'" in capfd.readouterr().err

"""The real command, as people run it: in a new process, with programs compiled for speed."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.runs import MAIN, ROOT, files, python

FIGURES = {"augmentation", "predictions", "misclassified", "curves", "confusion"}
SAMPLE = "SAMPLE of 5,000 MNIST digits, not MNIST"


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """A run of `quick` that can reach no host and therefore uses the sample."""
    cwd, home = tmp_path_factory.mktemp("quick"), str(tmp_path_factory.mktemp("home"))
    arguments = (f"--config={ROOT}/configs/quick.py", f"--config.dataset.data_dir={home}")
    done = python(MAIN, *arguments, cwd=cwd, HOME=home)
    assert done.returncode == 0, done.stderr
    (workdir,) = (cwd / "runs").iterdir()
    return workdir, done


@pytest.fixture(scope="module")
def summary(quick_run):
    return json.loads((quick_run[0] / "summary.json").read_text())


@pytest.fixture(scope="module")
def metrics(quick_run):
    return [*map(json.loads, (quick_run[0] / "metrics.jsonl").read_text().splitlines())]


class TestQuick:
    def test_reaches_95_percent(self, summary):
        assert summary["final_test_accuracy"] > 0.95

    def test_output_is_plain_and_says_sample_first_and_last(self, quick_run):
        workdir, done = quick_run
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", workdir.name)
        lines = done.stdout.splitlines()
        assert workdir.name in lines[0] and workdir.name in lines[1]
        data = next(line for line in lines if line.startswith("Data: "))
        assert SAMPLE in data and "storage.googleapis.com" in data
        (last,) = [line for line in lines if line.startswith("Done: ")]
        assert SAMPLE in last and last.endswith(workdir.name)
        epochs = [line.split()[1] for line in lines if line.startswith("epoch")]
        assert epochs == ["1/3", "2/3", "3/3"]
        assert "Traceback" not in done.stderr and "\r" not in done.stdout + done.stderr

    def test_metrics(self, metrics):
        assert [(record["epoch"], record["step"]) for record in metrics] == [
            *((1, 125), (2, 250), (3, 375))
        ]
        keys = {"epoch", "step", "train/loss", "train/accuracy", "test/loss", "test/accuracy"}
        assert metrics[0].keys() == keys | {"learning_rate", "seconds", "images_per_second"}
        rates = [record["learning_rate"] for record in metrics]
        np.testing.assert_allclose(rates, [0.006, 0.003, 0.0015])
        for record in metrics:
            assert record["images_per_second"] == pytest.approx(4_000 / record["seconds"])

    def test_summary(self, quick_run, metrics, summary):
        assert summary["dataset"]["title"] == SAMPLE
        assert summary["final_test_accuracy"] == metrics[-1]["test/accuracy"]
        assert summary["best_test_accuracy"] == max(r["test/accuracy"] for r in metrics)
        matrix = np.array(summary["confusion_matrix"])
        wrong = matrix.sum() - matrix.trace()
        assert wrong == summary["num_test_errors"] == len(summary["misclassified"])
        assert wrong == round(1_000 * (1 - summary["final_test_accuracy"]))
        recalls = list(summary["class_accuracies"].values())
        np.testing.assert_allclose(recalls, matrix.diagonal() / matrix.sum(axis=1))
        assert summary["train_seconds"] == pytest.approx(sum(r["seconds"] for r in metrics))
        assert summary["compile_seconds"] > 0 and summary["devices"] == ["cpu"]
        assert {"jax", "flax", "optax", "python"} <= set(summary["versions"])
        # 8 + 8, 16 + 32 and 64 channels: convolutions with biases, and two parameters per channel
        # of each norm.
        convolutions = [(25, 1, 8), (25, 8, 8), (4, 8, 8), (9, 8, 16), (9, 16, 32), (4, 32, 32)]
        convolutions += [(1, 32, 64), (1, 64, 10)]
        by_hand = sum(area * i * o + o for area, i, o in convolutions) + 2 * (8 + 8 + 16 + 32 + 64)
        assert summary["num_parameters"] == by_hand
        assert summary["config"] == json.loads((quick_run[0] / "config.json").read_text())

    def test_figures(self, quick_run):
        paths = list((quick_run[0] / "figures").iterdir())
        assert {path.name for path in paths} == {f"{name}.png" for name in FIGURES}
        for path in paths:
            pixels = np.asarray(Image.open(path).convert("L"))
            assert pixels.shape[1] > 600 and pixels.std() > 5


def test_importing_writes_and_downloads_nothing(tmp_path):
    paths = [path.relative_to(ROOT) for path in (ROOT / "mnist_flax").rglob("*.py")]
    modules = {".".join(path.with_suffix("").parts) for path in paths if path.stem[0] != "_"}
    modules = sorted(modules - {"mnist_flax.benchmark.torch_worker"})  # PyTorch is optional
    script = (
        "import socket, importlib\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "XDG_CACHE_HOME": ""}
    subprocess.run([sys.executable, "-B", "-c", script], cwd=tmp_path, env=env, check=True)
    assert not {name for name in files(tmp_path) if "matplotlib" not in name and "font" not in name}

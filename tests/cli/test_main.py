"""The real command, as people run it."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from mnist_flax.run import fields
from tests.runs import QUICK, ROOT, python
from tests.wandb_log import OfflineRun

FIGURES = {"augmentation", "predictions", "misclassified", "curves", "confusion"}
SAMPLE = "SAMPLE of 5,000 MNIST digits, not MNIST"


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def quick_run(run_main, tmp_path_factory):
    """A run of `quick` that can reach no host and therefore uses the sample."""
    workdir = tmp_path_factory.mktemp("quick") / "run"
    home = tmp_path_factory.mktemp("home")
    done = run_main(
        "--config=configs/quick.py",
        f"--workdir={workdir}",
        f"--config.dataset.data_dir={home}",
        HOME=str(home),
    )
    assert done.returncode == 0, done.stderr
    return workdir, done


class TestQuick:
    def test_reaches_95_percent(self, quick_run):
        workdir, _ = quick_run
        summary = json.loads((workdir / "summary.json").read_text())
        assert summary["final_test_accuracy"] > 0.95

    def test_output_is_plain_and_says_sample_first_and_last(self, quick_run):
        workdir, done = quick_run
        lines = done.stdout.splitlines()
        assert lines[0] == f"Workdir: {workdir}"
        assert lines[1].startswith(f"Data: {SAMPLE}!")
        assert "storage.googleapis.com cannot be reached" in lines[1]
        assert SAMPLE in lines[-1]
        assert lines[-1].endswith(str(workdir))
        assert [line.split()[1] for line in lines if line.startswith("epoch")] == [
            *("1/3", "2/3", "3/3")
        ]
        assert "\r" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr

    def test_metrics(self, quick_run):
        workdir, _ = quick_run
        metrics = read_metrics(workdir)
        assert [record["epoch"] for record in metrics] == [1, 2, 3]
        assert [record["step"] for record in metrics] == [125, 250, 375]
        keys = ["epoch", "step", "train/loss", "train/accuracy", "test/loss", "test/accuracy"]
        keys += ["learning_rate", "seconds", "images_per_second"]
        assert all(list(record) == keys for record in metrics)
        np.testing.assert_allclose(
            [record["learning_rate"] for record in metrics], [0.006, 0.003, 0.0015]
        )
        for record in metrics:
            assert record["images_per_second"] == pytest.approx(4_000 / record["seconds"])

    def test_summary(self, quick_run):
        workdir, _ = quick_run
        summary = json.loads((workdir / "summary.json").read_text())
        metrics = read_metrics(workdir)
        dataset = summary["dataset"]
        assert (dataset["name"], dataset["source"]) == ("mnist", "sample")
        assert (dataset["train_size"], dataset["test_size"]) == (4_000, 1_000)
        assert dataset["title"] == SAMPLE
        assert summary["final_test_accuracy"] == metrics[-1]["test/accuracy"]
        assert summary["best_test_accuracy"] == max(r["test/accuracy"] for r in metrics)
        matrix = np.array(summary["confusion_matrix"])
        assert matrix.sum(axis=1).tolist() == [100] * 10
        assert matrix.sum() - matrix.trace() == summary["num_test_errors"]
        assert len(summary["misclassified"]) == summary["num_test_errors"]
        assert summary["num_test_errors"] == round(1_000 * (1 - summary["final_test_accuracy"]))
        recalls = list(summary["class_accuracies"].values())
        np.testing.assert_allclose(recalls, matrix.diagonal() / 100)
        assert summary["compile_seconds"] > 0
        assert summary["train_seconds"] == pytest.approx(sum(r["seconds"] for r in metrics))
        assert summary["devices"] == ["cpu"]
        assert {"jax", "flax", "optax", "python"} <= set(summary["versions"])
        # 8 + 8, 16 + 32 and 64 channels: convolutions with biases, and two parameters per channel
        # of each norm.
        convolutions = [(25, 1, 8), (25, 8, 8), (4, 8, 8), (9, 8, 16), (9, 16, 32), (4, 32, 32)]
        convolutions += [(1, 32, 64), (1, 64, 10)]
        by_hand = sum(area * i * o + o for area, i, o in convolutions) + 2 * (8 + 8 + 16 + 32 + 64)
        assert summary["num_parameters"] == by_hand
        config = json.loads((workdir / "config.json").read_text())
        assert summary["config"] == config
        assert config["optimizer"]["learning_rate"] == 0.006

    def test_figures(self, quick_run):
        workdir, _ = quick_run
        files = sorted(path.name for path in (workdir / "figures").iterdir())
        assert files == sorted(f"{name}.png" for name in FIGURES)
        for name in FIGURES:
            pixels = np.asarray(Image.open(workdir / "figures" / f"{name}.png").convert("L"))
            assert pixels.shape[1] > 600
            assert pixels.std() > 5

    def test_wandb_run(self, quick_run):
        workdir, done = quick_run
        run = OfflineRun(workdir)
        assert f"wandb sync {os.path.relpath(run.folder, ROOT)}" in done.stdout
        assert run.run.project == "mnist_flax"
        assert run.run.display_name == "mnist-sample-batch-strided-augmented-seed42"
        assert list(run.run.tags) == ["sample"]
        assert run.config["data"] == SAMPLE
        assert run.config["optimizer"]["learning_rate"] == 0.006
        steps = {row["_step"]: row for row in run.history}
        assert list(steps) == list(range(376))
        assert all({"train/loss", "train/accuracy"} <= set(steps[s]) for s in range(1, 376))
        for record in read_metrics(workdir):
            row = steps[record["step"]]
            assert row["test/accuracy"] == record["test/accuracy"]
            assert row["train/epoch_loss"] == pytest.approx(record["train/loss"])
            first = record["step"] - 124
            mean = np.mean([steps[s]["train/loss"] for s in range(first, record["step"] + 1)])
            assert mean == pytest.approx(record["train/loss"], rel=1e-4)
            assert (run.folder / "files" / row["predictions"]["path"]).exists()
        last = steps[375]
        for key in ("misclassified", "confusion"):
            logged = run.folder / "files" / last[key]["path"]
            assert logged.stat().st_size > 1_000
        summary = json.loads((workdir / "summary.json").read_text())
        assert last["misclassified_table"]["nrows"] == summary["num_test_errors"]
        assert last["misclassified_table"]["ncols"] == 13
        assert run.summary["final_test_accuracy"] == summary["final_test_accuracy"]
        assert "path" in steps[0]["augmentation"]


def test_mnist_from_a_folder(run_main, mnist_dir, tmp_path):
    done = run_main(
        "--config.model.channels=((4,),(8,))",
        "--config.model.kernel_sizes=((5,),(3,))",
        "--config.model.downsample=max",
        "--config.optimizer.learning_rate=0.02",
        "--config.augment.enabled=False",
        "--config.num_epochs=1",
        "--config.dataset.validation_size=50000",
        "--config.batch_size=64",
        f"--config.dataset.manual_dir={mnist_dir}",
        "--config.wandb.mode=disabled",
        cwd=tmp_path,
        **QUICK,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"Workdir: runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", lines[0])
    workdir = tmp_path / lines[0].removeprefix("Workdir: ")
    assert lines[-1].endswith(lines[0].removeprefix("Workdir: "))
    assert lines[1] == ("Data: MNIST, 10,000 training and 10,000 test images, 50,000 set aside")
    assert "SAMPLE" not in done.stdout
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["dataset"]["validation_size"] == 50_000
    assert np.sum(summary["confusion_matrix"]) == 10_000
    (record,) = read_metrics(workdir)
    assert record["step"] == 157  # 156 batches of 64 and one of 16
    assert {"validation/loss", "validation/accuracy"} <= set(record)
    assert not (workdir / "wandb").exists()
    assert record["train/accuracy"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.model.nrom=layer"], "config.model.nrom is not a field"),
        (["--config.model.norm=instance"], "config.model.norm='instance' is not allowed"),
        (["--config.optimizer.learning_rate=abc"], "config.optimizer.learning_rate=abc is not"),
        (["--config.optimizer.learning_rate=-1"], "config.optimizer.learning_rate=-1.0"),
        (["--config.augment.scale=(1.2,0.8)"], "config.augment.scale=(1.2, 0.8)"),
        (["--config.batch_size=70000"], "config.batch_size=70000"),
        (["--config.wandb.project=me/digits"], "config.wandb.project='me/digits' is not allowed"),
        ([f"--config.wandb.tags={'a' * 65}"], "a tuple of printable texts of up to 64 characters"),
        (["--config.seed"], "--config.seed"),
        (["--config=configs/nothing.py"], "--config=configs/nothing.py: no such file"),
        (["--config=README.md"], "README.md"),
        (["--epochs=3"], "error: Unknown command line flag 'epochs'"),
        (["--confg=x"], "error: Unknown command line flag 'confg'; did you mean --config? allowed"),
        (["--config=quick"], "error: --config=quick: no such file; allowed: a recipe, such as"),
        (["train"], "'train' is not a flag"),
        (["--config.dataset.manual_dir=/"], "/t10k-images-idx3-ubyte.gz: No such file"),
        (["--config.dataset.source=tfds"], "storage.googleapis.com cannot be reached"),
        (["--workdir=/dev/null/run"], "--workdir=/dev/null/run: /dev/null is not a folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(fork_main, tmp_path, arguments, expected):
    config = [] if arguments[0].startswith("--config=") else [f"--config={ROOT}/configs/quick.py"]
    home = tmp_path / "home"
    home.mkdir()
    if "workdir" in arguments[0]:
        arguments = [*arguments, "--config.dataset.source=sample"]
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    done = fork_main(*config, *arguments, cwd=cwd, HOME=str(home))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert list(cwd.iterdir()) == []


def test_a_damaged_file_is_one_line_and_leaves_nothing(fork_main, mnist_dir, tmp_path):
    folder, workdir = tmp_path / "mnist", tmp_path / "run"
    folder.mkdir()
    for path in mnist_dir.glob("*.gz"):
        (folder / path.name).write_bytes(path.read_bytes())
    damaged = folder / "train-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    done = fork_main(f"--workdir={workdir}", f"--config.dataset.manual_dir={folder}")
    assert done.returncode == 2
    assert done.stderr == f"error: {damaged}: expected 28,881 bytes, found 28,880\n"
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("main.py", "--help"),
        ("main.py", "--config.model.norm=instance"),
        ("main.py", "--workdir=/dev/null/run"),
        ("mnist_flax.predict", "--config.seed=1"),
        ("mnist_flax.study", "--config.study.num_seeds=0"),
    ],
)
def test_a_fork_answers_as_a_process_does(fork_main, tmp_path, command, arguments):
    """`fork_main` answers as the real command does; the tests of bad input rely on it."""
    fork = fork_main(arguments, command=command, cwd=tmp_path)
    path = [str(ROOT / "main.py")] if command == "main.py" else ["-m", command]
    real = python(*path, arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
    for field in ("returncode", "stdout", "stderr"):
        assert getattr(real, field) == getattr(fork, field)
    assert list(tmp_path.iterdir()) == []


def test_help(fork_main):
    done = fork_main("--help")
    assert done.returncode == 0
    assert "--config" in done.stdout
    assert "--workdir" in done.stdout


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
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not {name for name in written if "matplotlib" not in name and "font" not in name}


def test_the_sweep_names_real_fields():
    sweep = yaml.safe_load((ROOT / "configs" / "wandb_sweep.yaml").read_text())
    assert sweep["program"] == "main.py"
    names = [name.removeprefix("config.") for name in sweep["parameters"]]
    assert set(names) <= set(fields.FIELDS)
    assert {"model.norm", "model.downsample", "augment.enabled"} <= set(names)
    for name, parameter in sweep["parameters"].items():
        field = fields.FIELDS[name.removeprefix("config.")]
        for value in parameter.get("values", [parameter.get("value")]):
            assert field.accepts(value)
    assert sweep["metric"]["name"] in {"test/accuracy", "final_test_accuracy"}

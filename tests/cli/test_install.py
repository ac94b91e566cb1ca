"""The package as `pip install .` installs it, used outside its repository."""

import functools
import shutil
import subprocess
import sys

import pytest

from tests.runs import QUICK, ROOT, TINY, files, python


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an installation without dependencies, which the tests' environment has."""
    folder = tmp_path_factory.mktemp("installed")
    source, target = folder / "source", folder / "target"
    # Install from a copy, because building leaves files behind.
    for name in ("mnist_flax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "main.py"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--target"]
    done = subprocess.run([*pip, str(target), str(source)], capture_output=True, text=True)
    if "No matching distribution found for setuptools" in done.stdout + done.stderr:
        pytest.skip("pip finds no setuptools to build with")
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def run(installed, tmp_path):
    """Runs Python with the installed package, in an empty folder."""
    return functools.partial(python, cwd=tmp_path, PYTHONPATH=str(installed))


def test_every_file_is_installed(installed):
    for package in ("mnist_flax", "configs"):
        ours, theirs = (
            {str(path.relative_to(root)) for path in (root / package).rglob("*.*")}
            for root in (ROOT, installed)
        )
        # A sweep is for W&B, which runs it in a clone.
        left_out = {name for name in ours if name.endswith((".pyc", ".yaml"))}
        assert ours - left_out == theirs
    assert not (installed / "tests").exists()


def test_study_of_an_installed_package(installed, run, tmp_path):
    done = run("-c", "import configs.study, mnist_flax; print(mnist_flax.__file__)")
    assert done.stdout == f"{installed}/mnist_flax/__init__.py\n"
    done = run("-m", "mnist_flax.study", "--help")
    assert (done.returncode, done.stderr) == (0, "") and "--config" in done.stdout
    assert list(tmp_path.iterdir()) == []
    recipe = f"--config={installed}/configs/quick.py"
    small = (*TINY[1:], "--config.num_epochs=1", "--config.study.num_seeds=2")
    done = run("-m", "mnist_flax.study", recipe, *small, **QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    (workdir,) = (tmp_path / "runs").iterdir()
    assert {"study.json", "study.md", "config.json"} <= files(workdir).keys()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]

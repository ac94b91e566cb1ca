"""The package as `pip install .` installs it, used outside its repository."""

import functools
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.runs import QUICK, ROOT, TINY, python


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
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


def test_every_file_is_installed(installed, run):
    for package in ("mnist_flax", "configs"):
        ours, theirs = (
            {
                str(path.relative_to(root))
                for path in (root / package).rglob("*.*")
                if path.suffix in (".py", ".html", ".css", ".js", ".npz")
            }
            for root in (ROOT, installed)
        )
        assert ours == theirs
    assert not (installed / "tests").exists()
    done = run("-c", "import configs.study, mnist_flax; print(mnist_flax.__file__)")
    assert done.stdout == f"{installed}/mnist_flax/__init__.py\n"


def test_help(run, tmp_path):
    done = run("-m", "mnist_flax.study", "--help")
    assert done.returncode == 0
    assert (
        "--config" in done.stdout and "--workdir" in done.stdout and "--[no]ensemble" in done.stdout
    )
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_default_recipe_is_found(run, tmp_path):
    done = run("-m", "mnist_flax.study", "--config.study.num_seeds=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: config.study.num_seeds=0 is not allowed; allowed: an int")
    assert list(tmp_path.iterdir()) == []


def test_a_study(installed, run, tmp_path):
    recipe = f"--config={installed}/configs/quick.py"
    small = (*TINY[1:], "--config.num_epochs=1", "--config.study.num_seeds=2")
    done = run("-m", "mnist_flax.study", recipe, *small, **QUICK)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (workdir,) = (tmp_path / "runs").iterdir()
    assert done.stdout.splitlines()[-1] == f"Done: runs/{workdir.name}/study.md"
    assert {"study.json", "study.md", "config.json"} <= {path.name for path in workdir.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}

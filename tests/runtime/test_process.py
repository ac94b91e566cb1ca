import shlex
import sys
import types

import pytest
from absl import flags

from mnist_flax.runtime import process


@pytest.fixture
def started(monkeypatch):
    """Pretends that a command line started this process."""

    def started(*arguments, module=None):
        main = types.ModuleType("__main__")
        main.__spec__ = module and types.SimpleNamespace(name=module)
        monkeypatch.setitem(sys.modules, "__main__", main)
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
        monkeypatch.setattr(flags.FlagValues, "is_parsed", lambda _: True)

    return started


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([], ["--workdir=my runs/1"]),
        (["--workdir="], ["--workdir=my runs/1"]),  # the last one counts
        (["--workdir=my runs/1"], []),
        (["-workdir", "my runs/1"], []),
    ],
)
def test_resuming_command_names_the_workdir(started, given, added):
    started("--config.seed=1", *given)
    words = shlex.split(process.resuming_command("my runs/1"))
    assert words == ["python", "main.py", "--config.seed=1", *given, *added]


@pytest.mark.parametrize("given", [[], ["--workdir=a b"], ["-workdir", "a b"], ["--workdir="]])
def test_repeating_command_names_no_workdir(started, given):
    started(*given, "--config.wandb.notes=don't")
    words = shlex.split(process.repeating_command())
    assert words == ["python", "main.py", "--config.wandb.notes=don't"]


def test_command_of_a_module(started):
    started("--x", module="mnist_flax.study.__main__")
    assert process.repeating_command() == "python -m mnist_flax.study --x"


def test_no_command_without_flags(started, monkeypatch):
    started()
    monkeypatch.setattr(flags.FlagValues, "is_parsed", lambda _: False)
    assert process.repeating_command() == ""


def test_machine_has_a_name():
    assert process.processor() and process.num_cpus() >= 1

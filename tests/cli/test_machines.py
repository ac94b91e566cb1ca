"""The real command on machines that lack something: locks, devices, memory, valid settings."""

import errno
import shutil

import pytest

from mnist_flax.runtime import files
from tests.runs import ROOT, TINY, assert_same_run, python, records, summary

ONE_EPOCH = (*TINY, "--config.num_epochs=1")


@pytest.fixture
def stub(tmp_path):
    """Returns an environment in which Python first runs some code, to replace functions."""

    def stub(code: str) -> dict[str, str]:
        (tmp_path / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": str(tmp_path)}

    return stub


def assert_refused(done, *words: str) -> None:
    """Asserts that a command ended with status 2 and one line that contains the words."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_a_file_system_without_locks_or_syncing(run_main, stub, finished, tmp_path):
    """Lustre, some NFS and some mounted buckets are such file systems."""
    refuse = f"""
import fcntl, os
def refuse(*_):
    raise OSError({errno.ENOSYS}, os.strerror({errno.ENOSYS}))
fcntl.flock = os.fsync = os.posix_fallocate = refuse
"""
    done = run_main(*TINY, f"--workdir={tmp_path}/run", **stub(refuse))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("warning: ") == 1
    assert f"{tmp_path}/run cannot be locked here (" in done.stdout
    assert_same_run(tmp_path / "run", finished)


def test_errors_of_a_file_system_that_lacks_something():
    """These errors mean that a file system does not support a request; others are real faults."""
    for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL):
        assert files.is_not_offered(OSError(number, ""))
    for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        assert not files.is_not_offered(OSError(number, ""))


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run", "gs:/bucket", "file:///x"])
def test_a_bucket_is_no_folder(fork_main, tmp_path, url):
    done = fork_main(*TINY, f"--workdir={url}", cwd=tmp_path)
    assert_refused(done, f"--workdir={url} is a URL", "mounted")
    assert list(tmp_path.iterdir()) == []
    done = fork_main(*TINY, f"--config.dataset.data_dir={url}", cwd=tmp_path)
    assert_refused(done, "config.dataset.data_dir=", "a folder")


def test_what_results_do_not_depend_on_may_change(run_main, fork_main, finished, tmp_path):
    """The W&B project, the download folder and `keep` may change, and old runs may lack fields."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(finished, run)
    older = (run / "config.json").read_text()
    lacking = "\n".join(line for line in older.splitlines() if '"label_smoothing"' not in line)
    assert lacking != older.rstrip("\n")
    (run / "config.json").write_text(lacking)
    longer = (*TINY, "--config.num_epochs=5")
    others = ["--config.wandb.project=other", "--config.checkpoint.keep=3"]
    done = run_main(*longer, *others, f"--config.dataset.data_dir={tmp_path}", f"--workdir={run}")
    assert done.returncode == 0, done.stderr
    done = run_main(*longer, f"--workdir={whole}")
    assert records(run) == records(whole)
    assert summary(run)["num_test_errors"] == summary(whole)["num_test_errors"]
    # With a new field at another value than its default, it is a different run.
    (run / "config.json").write_text(lacking)
    done = fork_main(*longer, "--config.label_smoothing=0.1", f"--workdir={run}")
    assert_refused(done, "config.label_smoothing=0.0 (now 0.1)")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS=cuda asks for"),
        ("JAX_PLATFORMS", "nonsense", "JAX_PLATFORMS=nonsense asks for"),
        ("JAX_PLATFORMS", "cpu,nonsense", "'nonsense' is not in the list"),
        ("JAX_PLATFORM_NAME", "gpu", "gpu"),
        ("JAX_ENABLE_X64", "nonsense", "JAX_ENABLE_X64"),
        ("JAX_NUM_CPU_DEVICES", "many", "jax_num_cpu_devices"),
        ("JAX_DISABLE_JIT", "1", "JAX_DISABLE_JIT is set"),
    ],
)
def test_devices_that_are_not_there(run_main, tmp_path, variable, value, words):
    if value == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("they may be there")
    done = run_main(*TINY, f"--workdir={tmp_path}/run", **{variable: value})
    assert_refused(done, words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("module", "variable", "value"),
    [
        ("study", "MININTERVAL", "abc"),
        ("benchmark", "FILE", "log"),
        ("predict", "BAR_FORMAT", "{nothing}"),
        ("predict", "GUI", "1"),
    ],
)
def test_bars_that_tqdm_cannot_draw(module, variable, value):
    done = python("-m", f"mnist_flax.{module}", **{f"TQDM_{variable}": value})
    assert_refused(done, f"tqdm cannot use TQDM_{variable}={value} (", "unset it")


def test_bars_as_tqdm_is_told_to_draw_them(run_main):
    others = {"TQDM_MININTERVAL": "5", "TQDM_COLOUR": "green", "TQDM_NO_SUCH_THING": "x"}
    assert_refused(run_main("--config.num_epochs=0", **others), "config.num_epochs=0")


def test_more_memory_than_there_is(run_main, tmp_path):
    """A run that needs 219 GB is refused as soon as its step is compiled."""
    others = [argument for argument in ONE_EPOCH if "channels" not in argument]
    wide = ["--config.batch_size=4000", "--config.model.channels=((4096,),(8,))"]
    done = run_main(*others, *wide, f"--workdir={tmp_path}/run")
    assert_refused(done, "config.batch_size", "config.model.channels", "GB are needed")


@pytest.mark.parametrize("shadow", ["configs/__init__.py", "configs/default.py"])
@pytest.mark.parametrize("command", ["main", "study", "recipe"])
def test_another_folder_with_recipes_of_its_own(fork_main, tmp_path, shadow, command):
    (tmp_path / "configs").mkdir()
    (tmp_path / shadow).write_text("raise ImportError('not this one')")
    recipe = [f"--config={ROOT}/configs/quick.py"] if command == "recipe" else []
    arguments = [*recipe, "--config.num_epochs=0"]
    if command == "study":
        study = ("-m", "mnist_flax.study")
        done = python(*study, *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
    else:
        done = fork_main(*arguments, cwd=tmp_path)
    assert_refused(done, "config.num_epochs=0")

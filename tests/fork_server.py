"""The process that `tests.runs.Run` forks: it has the slow imports behind it, and uses no device.

`multiprocessing` starts it and forks it. So a command begins within milliseconds, and is a process
of its own all the same.
"""

import contextlib
import importlib
import multiprocessing
import os
import runpy
import sys
import traceback
import warnings

import jax

from tests.runs import QUICK

jax.config.update("jax_platforms", "cpu")  # instead of variables: JAX has been imported
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)  # JAX has started no thread yet
# None may define flags: every command would have them.
for name in ("train", "predict.classifier", "study.laboratory", "report.figures"):
    with contextlib.suppress(ImportError):
        importlib.import_module(f"mnist_flax.{name}")


def run(
    command: str,
    arguments: list[str],
    before: str,
    cwd: str,
    env: dict[str, str],
    streams: list[str],
) -> None:
    """Runs a command line in this process, after the code in `before`, and ends the process.

    The command is a script, a module for `python -m`, or "parser" for the parser and its checks.
    """
    multiprocessing.set_start_method("fork", force=True)  # which a new process has
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = (open(number, "w", number) for number in (1, 2))  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    jax.config.update("jax_compilation_cache_dir", env["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_disable_most_optimizations", QUICK.items() <= env.items())
    sys.argv = [command, *arguments]
    status = 1
    try:
        exec(before, {})
        if command == "parser":
            from mnist_flax.cli.command import start

            start(lambda config: print(config.batch_size))
        elif command.endswith(".py"):
            runpy.run_path(command, run_name="__main__")
        else:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)

"""Runs command lines, each in its own fork: `python -m tests.fork_server`.

Each line of standard input is a JSON object with `command`, `arguments`, `cwd` and `env`. The
command is "main.py", "parser" for only its parser and its checks, or a module for `python -m`. The
answer is a line of JSON: exit status, standard output and standard error.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
import warnings
from typing import Any

# Imported here so that forks need not. None may define flags: every command would have them.
import mnist_flax.predict.classifier
import mnist_flax.run.fields
import mnist_flax.study.laboratory  # noqa: F401
from tests.runs import ROOT


def answer(request: dict[str, Any]) -> tuple[int, str, str]:
    """Returns the exit status and the output of a process started with these arguments."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns of forks, but has started no thread yet
            child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(_run(**request))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return status, *texts


def _run(command: str, arguments: list[str], cwd: str, env: dict[str, str]) -> int:
    os.chdir(cwd)
    os.environ.update(env)
    sys.argv = [str(ROOT / "main.py"), *arguments]
    try:
        if command == "parser":
            from mnist_flax.cli.command import start

            start(lambda config: print(config.batch_size))
        elif command == "main.py":
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
        return 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    # With this setting, a process does not restart itself; see `runtime.huge_pages`.
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=0"
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)

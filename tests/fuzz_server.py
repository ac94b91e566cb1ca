"""Parses command lines, one a process: `python -m tests.fuzz_server`.

Each line of standard input is a JSON list of arguments. It is answered by a line, exit status,
standard output and standard error, of the real parser and checks, short of any training.
"""

import json
import os
import sys
import tempfile
import warnings

from mnist_flax.cli import command


def parse(arguments: list[str]) -> tuple[int, str, str]:
    """What a process does that is started with these arguments."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["main.py", *arguments]
            status = 99
            try:
                command.start(lambda config: print(config.batch_size))
            except SystemExit as leaving:
                status = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return status, *texts


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(parse(json.loads(line))), flush=True)

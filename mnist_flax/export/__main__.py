"""Exports a trained run: python -m mnist_flax.export --workdir=RUN --format=FORMAT."""

import importlib
from collections.abc import Sequence

from absl import flags

from mnist_flax import predict
from mnist_flax.cli import program
from mnist_flax.errors import UserError
from mnist_flax.runtime.files import expand, explain, write_whole

_SUFFIXES = {"stablehlo": "stablehlo", "onnx": "onnx", "pytorch": "safetensors"}
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder of the run, or the file of a checkpoint.", required=True
)
_FORMAT = flags.DEFINE_enum(
    "format", None, list(_SUFFIXES), "The format of the file.", required=True
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", predict.CHECKPOINT_HELP)
_OUTPUT = flags.DEFINE_string("output", "", "The file to write. By default, model.* in the run.")


def main(arguments: Sequence[str]) -> None:
    """Writes the file that the command line requests."""
    if arguments:
        raise UserError(f"{arguments[0]!r} is not a flag; see --help")
    try:
        to_file = importlib.import_module(f"mnist_flax.export.{_FORMAT.value}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format={_FORMAT.value} needs {error.name}; pip install -e '.[{_FORMAT.value}]'"
        ) from None
    classifier = predict.load(_WORKDIR.value, _CHECKPOINT.value)
    run = expand(_WORKDIR.value)
    folder = run if run.is_dir() else run.parent
    path = expand(_OUTPUT.value or folder / f"model.{_SUFFIXES[_FORMAT.value]}")
    content = to_file.export(classifier)
    try:
        write_whole(path, content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {explain(error)}; choose another --output"
        ) from None
    config = classifier.config
    if (views := config.evaluation.num_views) > 1:
        print(f"The file uses one view of each image; the run averaged {views} views")
    if config.model.dtype != "float32":
        print(f"The file computes in float32; the run computed in {config.model.dtype}")
    size = f"{len(content) / 1000:,.0f} kB"
    print(f"Wrote {path}, epoch {classifier.epoch}, {size}; {to_file.USE.format(path=path)}")


if __name__ == "__main__":
    program.run(main)

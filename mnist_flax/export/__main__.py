"""Exports a trained run: python -m mnist_flax.export --workdir=RUN --format=FORMAT."""

import importlib
from collections.abc import Sequence

from absl import flags

from mnist_flax import predict
from mnist_flax.cli import program
from mnist_flax.errors import UserError

_SUFFIXES = {"stablehlo": "stablehlo", "onnx": "onnx", "pytorch": "safetensors"}
_WORKDIR = flags.DEFINE_string("workdir", "", "The folder of the run.")
_FORMAT = flags.DEFINE_enum("format", None, list(_SUFFIXES), "The format of the file.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", predict.CHECKPOINT_HELP)
_OUTPUT = flags.DEFINE_string("output", "", "The file to write. By default, model.* in the run.")


def main(arguments: Sequence[str]) -> None:
    """Writes the file that the command line requests."""
    if arguments:
        raise UserError(f"{' '.join(arguments)} is not a flag; allowed: only flags")
    if not _WORKDIR.value:
        raise UserError("--workdir is missing; allowed: the folder of a run")
    if not _FORMAT.value:
        raise UserError(f"--format is missing; allowed: one of {', '.join(_SUFFIXES)}")
    try:
        to_file = importlib.import_module(f"mnist_flax.export.{_FORMAT.value}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format={_FORMAT.value} needs {error.name}; pip install -e '.[{_FORMAT.value}]'"
        ) from None

    from mnist_flax.runtime.files import expand, write_whole

    classifier = predict.load(_WORKDIR.value, _CHECKPOINT.value)
    default = f"{_WORKDIR.value}/model.{_SUFFIXES[_FORMAT.value]}"
    path = expand(_OUTPUT.value or default)
    content = to_file.export(classifier)
    try:
        write_whole(path, content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; choose another --output"
        ) from None
    config = classifier.config
    if config.evaluation.num_views > 1:
        views = config.evaluation.num_views
        print(f"The file uses one view of each image; the run averaged {views} views")
    if config.model.dtype != "float32":
        print(f"The file computes in float32; the run computed in {config.model.dtype}")
    size = f"{len(content) / 1000:,.0f} kB"
    print(f"Wrote {path}, epoch {classifier.epoch}, {size}; {to_file.USE.format(path=path)}")


if __name__ == "__main__":
    program.run(main)

"""Commands that take a recipe: `--config FILE`, overrides of its fields, and flags of their own."""

from collections.abc import Callable, Sequence

from ml_collections import ConfigDict, config_flags

from mnist_flax.cli import environment, program

_arguments: list[str] = []  # where ml_collections looks for overrides
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="The recipe: a Python file, such as configs/default.py, which is what a run trains "
    "by default. --config.FIELD=VALUE changes a field; docs/flags.md lists them.",
    lock_config=True,
    sys_argv=_arguments,
)


def start(main: Callable[[ConfigDict], None], default_recipe: str = "default.py") -> None:
    """Calls `main` with the configuration that the command line asks for, and exits.

    Args:
      main: the command's own function.
      default_recipe: the file in `configs/` to use if `--config` is not given.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        environment.check()
        from mnist_flax.cli import arguments  # imports JAX

        arguments.parse(argv, default_recipe, _CONFIG, _arguments)
        return list(argv[:1])

    program.run(lambda _: main(_CONFIG.value), parse)

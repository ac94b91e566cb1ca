"""Reads a command line: flag files, the recipe, and overrides of its fields."""

import os
import pathlib
import re
import traceback
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import ConfigDict

from mnist_flax.cli import program
from mnist_flax.errors import UserError
from mnist_flax.run import configs, fields


def parse(
    argv: Sequence[str],
    default_recipe: str,
    config: flags.FlagHolder[ConfigDict],
    arguments: list[str],
) -> None:
    """Parses and checks the command line.

    Args:
      argv: the command line, which begins with the program's name.
      default_recipe: the file in `configs/` to use if `--config` is not given.
      config: the `--config` flag.
      arguments: the list in which that flag looks for overrides; its items are replaced.

    Raises:
      UserError: one line that says what is wrong and what is allowed.
    """
    logging.set_verbosity(logging.ERROR)  # ml_collections would warn of what is an error below
    try:
        arguments[:] = _recipe_first(flags.FLAGS.read_flags_from_files(argv), default_recipe)
        _check_overrides(arguments)
        positional = flags.FLAGS(arguments)[1:]
        if unread := getattr(config.value, "_error", None):  # ml_collections keeps it for later
            raise unread
        if not isinstance(config.value, ConfigDict):
            kind = type(config.value).__name__
            raise UserError(f"{arguments[1]}: get_config() returns {kind}; allowed: a ConfigDict")
        fields.check(config.value)
    except UserError:
        raise
    except Exception as error:  # from absl, ml_collections or the recipe itself
        raise UserError(_explain(error, arguments[1] if arguments else "--flagfile")) from None
    if positional:
        raise UserError(f"{positional[0]!r} is not a flag; allowed: {program.own_flags(argv[0])}")


def _recipe_first(argv: Sequence[str], default_recipe: str) -> list[str]:
    """Moves `--config` to the front, where overrides need it; of several, the last counts."""
    given, others = str(configs.RECIPES / default_recipe), list(argv[:1])
    rest = iter(argv[1:])
    for argument in rest:
        if argument == "--":
            others += [argument, *rest]
        elif match := re.fullmatch(r"--?config(=(.*))?", argument, re.DOTALL):
            given = match[2] if match[1] else next(rest, "")
        else:
            others.append(argument)
    if not os.path.isfile(given.partition(":")[0]):  # a colon may introduce the recipe's argument
        recipes = ", ".join(f"configs/{path.name}" for path in sorted(configs.RECIPES.glob("*.py")))
        raise UserError(f"--config={given}: no such file; allowed: a recipe, such as {recipes}")
    configs.make_importable(pathlib.Path(given).absolute().parent)
    return [*others[:1], f"--config={given}", *others[1:]]


def _check_overrides(arguments: Sequence[str]) -> None:
    """Checks that every `--config.FIELD` argument names a field.

    Raises:
      UserError: names the unknown field and the fields of its group.
    """
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in fields.FIELDS:
            raise fields.unknown(match[1])


def _explain(error: Exception, given: str) -> str:
    """Returns one line for an error from the flags or from `given`, the recipe's --config=FILE."""
    text = str(error).removeprefix("ERROR:: ").strip()
    if "Traceback" in text:  # from the recipe; the last line names the error
        return f"{_line_of(error, given)}: {text.splitlines()[-1]}"
    text = " ".join(text.split())
    if unknown := re.match(r"(Unknown command line flag '(.+?)')(\. Did you mean: (\w+))?", text):
        theirs = f"did you mean --{unknown[4]}? " if unknown[4] else ""
        guess = fields.suggest(unknown[2]) or theirs
        return f"{unknown[1]}; {guess}allowed: the flags in docs/flags.md"
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if match and match[1] in fields.FIELDS:
        allowed = fields.FIELDS[match[1]].allowed
        return f"config.{match[1]}={match[2]} is not allowed; allowed: {allowed}"
    if isinstance(error, flags.Error):
        return text
    return f"{_line_of(error, given)}: {type(error).__name__}: {text}"


def _line_of(error: Exception, given: str) -> str:
    """Returns `given`, --config=FILE, with the last line of that file in the traceback."""
    path = given.removeprefix("--config=").partition(":")[0]
    trace = "".join(traceback.format_exception(error))
    lines = re.findall(rf'{re.escape(path)}", line (\d+)', trace)
    return f"{given}, line {lines[-1]}" if lines else given

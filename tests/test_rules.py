"""The line budgets of the package. import-linter checks the imports."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "mnist_flax"
MODULES = sorted(PACKAGE.rglob("*.py"))


def lines(path: pathlib.Path) -> int:
    return len(path.read_text().splitlines())


def test_the_core_stays_under_900_lines():
    core = {path.name: lines(path) for path in PACKAGE.glob("*.py")}
    assert len(core) > 5
    assert sum(core.values()) < 900, core


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_classes_and_functions_stay_short(path):
    assert lines(path) <= 350
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            most = 180 if isinstance(node, ast.ClassDef) else 45
            assert length <= most, f"{node.name}: {length} lines, at most {most} are allowed"


def test_every_room_says_why_it_exists():
    rooms = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(rooms) > 5
    for room in rooms:
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text())), room.name

"""The budgets of the package, in tokens and in lines. import-linter checks the imports."""

import ast
import pathlib
import tokenize

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "mnist_flax"
MODULES = sorted(PACKAGE.rglob("*.py"))
_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
_UNSEEN = (*_LAYOUT, tokenize.ENCODING, tokenize.ENDMARKER)


def tokens(path):
    """Counts what a reader of the code reads: no layout, comments or docstrings."""
    docstrings = {
        (node.body[0].lineno, node.body[0].col_offset)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and ast.get_docstring(node) is not None
    }
    with open(path, "rb") as file:
        found = [t for t in tokenize.tokenize(file.readline) if t.type not in _UNSEEN]
    return sum(token.start not in docstrings for token in found)


def test_tokens_are_counted_without_layout_comments_and_docstrings(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""Says\\nmuch."""\n\n\ndef f(x):  # why\n    "One."\n    return (\n        x,\n    )\n'
    )
    assert tokens(path) == len(["def", "f", "(", "x", ")", ":", "return", "(", "x", ",", ")"])


@pytest.mark.parametrize(("pattern", "most"), [("*.py", 6_000), ("**/*.py", 45_000)])
def test_budget_of_tokens(pattern, most):
    """The core lies at the top of the package."""
    counts = {str(path.relative_to(PACKAGE)): tokens(path) for path in PACKAGE.glob(pattern)}
    assert len(counts) > 5 and sum(counts.values()) <= most, counts


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_classes_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            most = 180 if isinstance(node, ast.ClassDef) else 45
            assert length <= most, f"{node.name}: {length} lines, at most {most} are allowed"


def test_every_room_says_why_it_exists():
    rooms = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(rooms) > 5
    for room in rooms:
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text())), room.name

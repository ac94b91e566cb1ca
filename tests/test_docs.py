"""The documentation agrees with the code, and everything that it refers to exists."""

import ast
import functools
import inspect
import operator
import pathlib
import re
import urllib.parse
from collections import Counter

import pytest

from configs import default
from mnist_flax import step
from mnist_flax.run.fields import FIELDS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
FOLDERS = {".ci", ".github", "assets", "configs", "docs", "mnist_flax", "tests"}
COMMANDS = {
    "main.py": "python main.py",
    "mnist_flax/study/__main__.py": "python -m mnist_flax.study",
    "mnist_flax/benchmark/__main__.py": "python -m mnist_flax.benchmark",
    "mnist_flax/benchmark/tpu.py": "python -m mnist_flax.benchmark.tpu",
    "mnist_flax/predict/__main__.py": "python -m mnist_flax.predict",
    "mnist_flax/export/__main__.py": "python -m mnist_flax.export",
}
USE = ("python -m mnist_flax.predict", "python -m mnist_flax.export")  # they take no --config


@functools.cache
def split(page: pathlib.Path) -> tuple[str, str]:
    """Returns a page's prose without fenced blocks, and the code in these blocks."""
    prose, code, fence = [], [], ""
    for line in page.read_text().splitlines():
        marker = re.match(r"\s*(?:> ?)*(`{3,}|~{3,})", line)
        if marker and (not fence or marker[1].startswith(fence)):
            fence = "" if fence else marker[1]
        else:
            (code if fence else prose).append(line)
    assert not fence, f"{page}: a fenced block is not closed"
    return "\n".join(prose), "\n".join(code)


def links(page: pathlib.Path) -> list[str]:
    """Returns the targets of links and pictures, except in inline code."""
    text = re.sub(r"`[^`\n]*`", "", split(page)[0])
    return re.findall(r"\]\(([^()\s]+)(?:\s+\"[^\"]*\")?\)", text)


@functools.cache
def anchors(page: pathlib.Path) -> set[str]:
    """Returns the anchors that GitHub gives a page's headings."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ +(.*?) *#*$", split(page)[0], re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def rows(text: str) -> list[list[str]]:
    """Returns the cells of every table row that begins with a flag."""
    lines = [line for line in text.splitlines() if line.startswith("| `--")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def section(page: pathlib.Path, heading: str) -> str:
    """Returns the text under a heading of the second level."""
    parts = re.split(r"^## ", split(page)[0], flags=re.MULTILINE)
    (found,) = (part for part in parts if part.splitlines()[0] == heading)
    return found


def value(cell: str) -> object:
    """Returns the default value that a cell gives."""
    if cell == "*empty*":
        return ""
    text = cell.removeprefix("`").removesuffix("`")
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def test_flags_have_the_values_and_defaults_of_the_code():
    config, page = default.get_config(), split(ROOT / "docs" / "flags.md")[0]
    described = [row for row in rows(page) if row[0].startswith("`--config.")]
    assert described
    for flag, allowed, default_cell, meaning in described:
        field = flag.removeprefix("`--config.").removesuffix("`")
        assert (field, allowed) == (field, FIELDS[field].allowed)
        given, expected = value(default_cell), operator.attrgetter(field)(config)
        assert (field, type(given), given) == (field, type(expected), expected)
        assert meaning


def test_every_field_is_described_once_under_its_group():
    page = ROOT / "docs" / "flags.md"
    described = re.findall(r"^\| `--config\.([\w.]+)`", split(page)[0], re.MULTILINE)
    assert described == list(FIELDS)
    for part in re.split(r"^## ", split(page)[0], flags=re.MULTILINE):
        group = re.search(r": `(config[\w.]*)`$", part.splitlines()[0])
        fields = re.findall(r"^\| `--(config\.[\w.]+)`", part, re.MULTILINE)
        assert {field.rpartition(".")[0] for field in fields} == ({group[1]} if group else set())


@pytest.mark.parametrize(("file", "command"), COMMANDS.items(), ids=COMMANDS.values())
def test_every_flag_of_a_command_is_described(file, command):
    defined = re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", (ROOT / file).read_text())
    page = ROOT / "docs" / ("use.md" if command in USE else "flags.md")
    described = rows(section(page, f"Flags of `{command}`"))
    assert defined
    names = defined if command in USE else (*defined, "config")
    assert {f"`--{name}`" for name in names} == {row[0] for row in described}


@EVERY_PAGE
def test_links_resolve(page):
    for target in links(page):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = urllib.parse.unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT.resolve()), f"{page}: {target} is outside the repository"
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {target}"


@EVERY_PAGE
def test_paths_exist(page):
    prose, code = split(page)
    for text in (*re.findall(r"`([^`\n]+)`", prose), code):
        for word in re.split(r"[\s='\"(),;:]+", text):
            is_path = re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", word) and "/" in word
            if is_path and (word.endswith((".py", ".md")) or word.split("/")[0] in FOLDERS):
                assert (ROOT / word).exists(), f"{page}: {word}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_shows_the_training_step_as_it_is():
    readme = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"<!-- train_step -->\n+```python\n(.*?)\n```\n", readme, re.DOTALL)
    assert shown == inspect.getsource(step.train_step).rstrip()


def test_the_readme_begins_with_the_commands_to_run_and_to_test():
    readme = (ROOT / "README.md").read_text()
    run, test = re.findall(r"^```bash\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert "python main.py" in run
    assert "pytest" in test

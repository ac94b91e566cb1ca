"""Command lines as users of absl and ml_collections write them."""

import pytest

QUICK = "--config=configs/quick.py"
BAD = "--config.batch_size=0"  # ends the command early, with an error that shows that it was read


@pytest.fixture
def say(fork_main):
    """Runs a command with bad arguments; returns the text of its error."""

    def say(*arguments: str, command: str = "main.py") -> str:
        done = fork_main(*arguments, command=command)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr.removeprefix("error: ").rstrip("\n")

    return say


@pytest.mark.parametrize(
    "arguments",
    [
        (QUICK, BAD),
        (BAD, QUICK),
        ("--config", "configs/quick.py", BAD),
        (BAD, "-config", "configs/quick.py"),
        ("--config.batch_size", "0", QUICK),
        ("--noconfig.augment.enabled", BAD, QUICK),
        ("--config=configs/speedrun.py", QUICK, BAD),
        (BAD, "--", QUICK),
    ],
    ids=" ".join,
)
def test_the_order_does_not_matter(say, arguments):
    assert say(*arguments).startswith("config.batch_size=0 is not allowed")


def test_a_file_of_flags(say, tmp_path):
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    inner.write_text(f"# a comment\n{QUICK}\n\n{BAD}\n")
    outer.write_text(f"--flagfile={inner}\n")
    for argument in (f"--flagfile={outer}", f"--flagfile={inner}"):
        assert say(argument).startswith("config.batch_size=0 is not allowed")
    # The last value counts, whether it comes from the file or not.
    assert say(f"--flagfile={inner}", "--config.batch_size=-1").startswith("config.batch_size=-1 ")
    assert say("--config.batch_size=-1", f"--flagfile={inner}").startswith("config.batch_size=0 ")
    assert say(f"--flagfile={inner}", "--config=none.py").startswith("--config=none.py: no such")


@pytest.mark.parametrize("command", ["main.py", "mnist_flax.study", "mnist_flax.predict"])
def test_a_file_of_flags_that_is_not_text(say, tmp_path, command):
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG")
    assert say(f"--flagfile={path}", command=command).startswith("--flagfile: ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--flagfile=none.txt",), "Unable to open flagfile: [Errno 2] No such file"),
        (("--flagfile",), "--flagfile with no argument"),
        (("--config",), "--config=: no such file"),
        (("--config=configs",), "--config=configs: no such file; allowed: a recipe"),
        (("--config=README.md",), "--config=README.md, line "),
        (("--config.num_epochs=ten",), "config.num_epochs=ten is not allowed; allowed: an integer"),
        (("--config.augment.enabled=maybe",), "config.augment.enabled=maybe is not allowed; allo"),
        (("--config.model=3",), "config.model is not a field"),
        (("--config.optimizer.learning_rate",), "Missing value for flag"),
    ],
)
def test_what_is_wrong_is_said(say, arguments, expected):
    assert say(*arguments).startswith(expected)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("config = lyer", ", line 4: NameError: name 'lyer' is not defined"),
        ("open('nothing')", ", line 4: FileNotFoundError: [Errno 2] No such file or directory"),
        ("config.num_epochs = int('ten')", ", line 4: ValueError: invalid literal for int()"),
        ("config.model.nrom.x = 'layer'", ", line 4: AttributeError: "),
        ("config = None", ": get_config() returns NoneType; allowed: a ConfigDict"),
    ],
)
def test_an_error_in_a_recipe_names_its_line(say, tmp_path, code, expected):
    recipe = tmp_path / "mine.py"
    begin = "from configs import default\ndef get_config():\n    config = default.get_config()\n"
    recipe.write_text(f"{begin}    {code}\n    return config\n")
    assert say(f"--config={recipe}").startswith(f"--config={recipe}{expected}")

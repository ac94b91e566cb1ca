"""Command lines as people write them, the right and the wrong ones."""

import pytest

from tests.runs import MAIN, ROOT, python, run

QUICK = f"--config={ROOT}/configs/quick.py"
BAD = "--config.batch_size=0"  # ends the command early, with an error that shows that it was read


def refusal(done):
    """Returns the line of a command that ended because of bad input."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.model.nrom=layer"], "config.model.norm?"),
        (["--config.model=3"], "config.model "),
        (["-config.model.\n=3"], "config.model."),
        (["--noconfig.augment.on"], "config.augment.on "),
        (["--noconfig.augment.enabled="], "config.augment.enabled"),
        (["--config.="], "config."),
        (["--config.model.norm=instance"], "one of batch, layer, group, none, got 'instance'"),
        (["--config.optimizer.learning_rate=abc"], "config.optimizer.learning_rate=abc"),
        (["--config.num_epochs=ten"], "config.num_epochs=ten"),
        (["--config.augment.enabled=maybe"], "config.augment.enabled=maybe"),
        (["--config.augment.scale=((("], "config.augment.scale "),
        (["--config.seed"], "--config.seed"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        (["--config=configs"], "configs"),
        (["--config="], "onfig"),
        (["--config"], "--config"),
        (["--epochs=3"], "'epochs'"),
        (["--confg=x"], "config"),
        (["train"], "'train'"),
        (["--flagfile=none.txt"], "none.txt"),
        (["--flagfile"], "--flagfile"),
        (["--config.dataset.manual_dir=/"], "/train-images-idx3-ubyte"),
        (["--config.dataset.source=tfds"], "storage.googleapis.com"),
        (["--config.dataset.data_dir=gs://bucket/x"], "config.dataset.data_dir=gs://bucket/x"),
        (["--workdir=gs://bucket/x"], "--workdir=gs://bucket/x"),
        (["--workdir=/dev/null/run", "--config.dataset.source=sample"], "/dev/null"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, arguments, expected):
    recipe = [] if arguments[0].startswith("--config=") else [QUICK]
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    assert expected in refusal(run(*recipe, *arguments, cwd=cwd, HOME=str(home)))
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (QUICK, BAD),
        ("-config", f"{ROOT}/configs/quick.py", "-config.batch_size", "0"),
        (QUICK, "--noconfig.augment.enabled", BAD, "--"),
        (QUICK, "--config.batch_size=1", BAD),  # the last one counts
        ("--flagfile={outer}",),
        ("--flagfile={inner}", "--config.batch_size=1", BAD),
    ],
    ids=" ".join,
)
def test_ways_to_write_a_command(tmp_path, arguments):
    files = {name: tmp_path / name for name in ("outer", "inner")}
    files["inner"].write_text(f"# a comment\n{QUICK}\n\n{BAD}\n")
    files["outer"].write_text(f"--flagfile={files['inner']}\n")
    done = run(*(argument.format(**files) for argument in arguments))
    assert "config.batch_size " in refusal(done) and "got 0" in done.stderr


@pytest.mark.parametrize("command", [MAIN, "mnist_flax.study", "mnist_flax.predict"])
def test_flagfile_that_is_not_text_is_one_line(tmp_path, command):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    refusal(run(f"--flagfile={tmp_path}/picture.png", command=command))


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("config = lyer", 1, 'mine.py", line 4'),
        ("config.model.nrom.x = 'layer'", 1, 'mine.py", line 4'),
        ("config.num_epochs = int('ten')", 2, 'mine.py", line 4'),
        ("open('nothing')", 2, "'nothing'"),
        ("config = None", 2, "config"),
        ("config = {}", 2, "mine.py"),
        ("import sys; sys.exit('no such city')", 1, "no such city"),
        ("import sys; sys.exit(3)", 3, ""),
    ],
)
def test_error_in_a_recipe_is_told_in_its_words(tmp_path, code, status, expected):
    recipe = tmp_path / "mine.py"
    begin = "from configs import default\ndef get_config():\n    config = default.get_config()\n"
    recipe.write_text(f"{begin}    {code}\n    return config\n")
    done = run(f"--config={recipe}", cwd=tmp_path)
    assert done.returncode == status and expected in done.stderr
    if status == 2:
        refusal(done)


@pytest.mark.parametrize("shadow", ["configs/__init__.py", "configs/default.py"])
@pytest.mark.parametrize("command", [MAIN, "mnist_flax.study"])
def test_folder_with_recipes_of_its_own(tmp_path, shadow, command):
    (tmp_path / "configs").mkdir()
    (tmp_path / shadow).write_text("raise ImportError('not this one')")
    for recipe in ((), (QUICK,)):
        assert "num_epochs" in refusal(
            run(*recipe, "--config.num_epochs=0", command=command, cwd=tmp_path)
        )


@pytest.mark.parametrize(
    ("argument", "form"),
    [("--help", "--{}:"), ("-helpshort", "--{}:"), ("--helpfull", "--{}:"), ("--helpxml", ">{}<")],
)
def test_help_is_no_failure(argument, form):
    done = run(argument)
    assert (done.returncode, done.stderr) == (0, "")
    assert form.format("workdir") in done.stdout and form.format("config") in done.stdout


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ((MAIN,), ["--help"]),
        ((MAIN,), ["--config.model.norm=instance"]),
        (("-m", "mnist_flax.study"), ["--config.study.num_seeds=0"]),
    ],
)
def test_new_process_answers_as_a_fork_does(tmp_path, path, arguments):
    """The tests of bad input rely on it."""
    fork = run(*arguments, command=path[-1], cwd=tmp_path)
    real = python(*path, *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
    for field in ("returncode", "stdout", "stderr"):
        assert getattr(real, field) == getattr(fork, field)

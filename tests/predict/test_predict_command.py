"""The real command `python -m mnist_flax.predict`."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from mnist_flax import predict
from mnist_flax.run import checkpoint
from mnist_flax.sources import sample
from tests import runs


@pytest.fixture
def run(finished, tmp_path):
    """Runs the command in an empty folder, by default on the finished run."""

    def run(*arguments: str, workdir=finished, **env: str) -> subprocess.CompletedProcess:
        options = {"command": "mnist_flax.predict", "cwd": tmp_path, **env}
        return runs.run(f"--workdir={workdir}", *arguments, **options)

    return run


@pytest.fixture
def digits(tmp_path):
    """Saves three digits of the test set as 0.png to 2.png; returns them as an array."""
    images = sample.load().test.images[[0, 400, 999]]
    for index, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{index}.png")
    return images


def test_pictures_as_a_table_and_as_json(run, digits, finished):
    expected = predict.load(finished)(digits)
    names = ["0.png", "1.png", "2.png"]
    done = run(*names)
    assert (done.returncode, done.stderr) == (0, "")
    about, headings, *rows = done.stdout.splitlines()
    assert about.startswith(f"{finished}, epoch 4, trained on SAMPLE of 5,000 MNIST digits")
    assert headings.split() == ["picture", "class", *"0123456789"]
    for name, row, probabilities in zip(names, rows, expected, strict=True):
        best = str(probabilities.argmax())
        assert row.split() == [name, best, *(f"{share:.2%}" for share in probabilities)]
    done = run("--json", "--raw", *names)
    for name, line, probabilities in zip(names, done.stdout.splitlines(), expected, strict=True):
        answer = json.loads(line)
        assert (answer["picture"], answer["class"]) == (name, str(probabilities.argmax()))
        np.testing.assert_allclose(list(answer["probabilities"].values()), probabilities, atol=1e-6)


@pytest.mark.parametrize("module", ["predict", "export"])
def test_a_run_in_a_folder_below(finished, tmp_path, module):
    runs.copy(finished, tmp_path / "runs" / "1")
    flags = {"predict": ["--json"], "export": ["--format=stablehlo"]}[module]
    done = runs.run("--workdir=runs/1", *flags, command=f"mnist_flax.{module}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "runs/1" in done.stdout + done.stderr


def test_a_bad_picture_does_not_keep_the_others_waiting(run, digits, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    done = run("0.png", "bad.png", "none.png", "2.png", "--figure=out.png")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: bad.png: not a picture",
        "error: none.png: No such file or directory",
        "error: 2 of 4 pictures cannot be classified",
    ]
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["0.png", "2.png"]
    assert np.asarray(Image.open(tmp_path / "out.png").convert("L")).std() > 5


def test_without_pictures_it_is_the_test_set(run, finished):
    summary = json.loads((finished / "summary.json").read_text())
    done = run("--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "test_accuracy": pytest.approx(summary["final_test_accuracy"], abs=1e-9),
        "num_test_errors": summary["num_test_errors"],
    }
    assert "SAMPLE" in done.stderr
    done = run("--checkpoint=best")
    assert "it was chosen on the test set, so its test accuracy is optimistic" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--workdir="], ". is not the folder of a run"),
        (["--workdir=none"], "none: No such file or directory"),
        (["--checkpoint=77"], "--checkpoint must be one of latest, best, "),
        (["--config.seed=1"], "Unknown command line flag 'config.seed'"),
        (["--raw"], "--raw is only for pictures; name some"),
        (["0.png", "--manual_dir=mnist"], "--manual_dir is only for the test set"),
        (["--manual_dir=mnist"], "--manual_dir is not for a run on the bundled sample; leave it"),
        (["none.png"], "none.png: No such file or directory"),
        (["0.png", "--figure=none/out.png"], "--figure=none/out.png: No such file or directory"),
        (["0.png", "--figure=~nobody-here/0.png"], "~nobody-here/0.png: no such user"),
    ],
)
def test_bad_input_is_one_line(run, digits, arguments, expected):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_data_set_of_a_run_on_mnist(run, run_main, mnist_dir, tmp_path):
    """The files are read from where the run had them; if they are gone, no sample replaces them."""
    workdir, folder = tmp_path / "run", tmp_path / "mnist"
    folder.symlink_to(mnist_dir)
    flags = ["--config.dataset.source=tfds", f"--config.dataset.manual_dir={folder}"]
    flags += ["--config.num_epochs=1", "--config.batch_size=2048"]
    flags += ["--config.dataset.validation_size=1000"]
    done = run_main(*runs.TINY, *flags, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    expected = f", {summary['num_test_errors']:,} errors in 10,000 test images, on MNIST"
    assert expected in run(workdir=workdir).stdout
    folder.unlink()  # as on another machine
    done = run(workdir=workdir, HOME=str(tmp_path))
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr and "manual_dir" in done.stderr
    assert expected in run(f"--manual_dir={mnist_dir}", workdir=workdir).stdout


def check_refused(run, workdir, data):
    """Asserts that the test set is refused with one line, because the run used other data."""
    done = run("--figure=out.png", workdir=workdir)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: --workdir={workdir} holds a run on SAMPLE of 5,000")
    assert f"but the data are now {data}, CRC-32 " in done.stderr and "manual_dir" in done.stderr
    assert not (workdir.parent / "out.png").exists()


def copy_of(run, folder, about=(), **dataset):
    """Returns a copy of a run, whose last checkpoint has other data."""
    path = runs.copy(run, folder) / "checkpoints" / "4.msgpack"
    saved = checkpoint.read(path)
    saved.about.update(about)
    saved.config["dataset"].update(dataset)
    checkpoint.Checkpoints(path.parent, keep=9).save(*saved)
    return folder


def test_another_data_set_than_that_of_the_run(run, finished, mnist_dir, tmp_path):
    about = {"source": "tfds", "title": "MNIST"}
    copy = copy_of(finished, tmp_path / "copy", about, manual_dir=str(mnist_dir))
    check_refused(run, copy, "MNIST")


def test_other_images_than_those_of_the_run(run, finished, tmp_path):
    copy = copy_of(finished, tmp_path / "copy", validation_size=500)
    check_refused(run, copy, "SAMPLE of 5,000 MNIST digits, not MNIST")


def test_a_thousand_pictures_in_one_call(run, tmp_path):
    for index, image in enumerate(sample.load().test.images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{index}.png")
    done = run(*(f"{index}.png" for index in range(1000)))
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1002

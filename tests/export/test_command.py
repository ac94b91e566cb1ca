"""The real `python -m mnist_flax.export`, and its files loaded as docs/use.md shows."""

import re

import numpy as np
import pytest

from mnist_flax import predict
from mnist_flax.sources import sample
from tests import runs

PAGE = runs.ROOT / "docs" / "use.md"


def code_block(heading: str) -> str:
    """Returns the Python code that the page shows under a heading of the third level."""
    (section,) = re.findall(rf"^### {heading}\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.M | re.S)
    return "\n\n".join(re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S))


@pytest.fixture(scope="module")
def images():
    return sample.load().test.images


@pytest.fixture
def export(tmp_path):
    def export(workdir, *arguments: str, **options):
        options = {"command": "mnist_flax.export", "cwd": tmp_path, **options}
        return runs.run(f"--workdir={workdir}", *arguments, **options)

    return export


@pytest.fixture
def in_a_clean_process(tmp_path, images):
    """Runs code on the test images in a process that cannot import this project or Flax."""

    def run(code: str) -> np.ndarray:
        np.save(tmp_path / "images.npy", images)
        before = "import sys; sys.modules.update(dict.fromkeys(('flax', 'mnist_flax')))\n"
        load = "import numpy as np\nimages = np.load('images.npy')\n"
        after = "\nnp.save('probabilities.npy', np.asarray(probabilities))\n"
        done = runs.python("-c", before + load + code + after, cwd=tmp_path, PYTHONPATH=None)
        assert done.returncode == 0, done.stderr
        return np.load(tmp_path / "probabilities.npy")

    return run


def assert_same(actual: np.ndarray, finished, images: np.ndarray) -> None:
    expected = predict.load(finished)(images)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.fixture
def exported(export, finished, tmp_path):
    """Exports the finished run; returns the command's output and the page's code for the file."""

    def exported(heading: str, file: str) -> tuple[str, str]:
        done = export(finished, f"--format={heading.lower()}", f"--output={tmp_path}/{file}")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout, code_block(heading).replace("runs/1", str(tmp_path))

    return exported


def of_every_size(call: str) -> str:
    """Returns code that asserts that batches of other sizes give the same probabilities."""
    same = f"np.testing.assert_allclose({call}, probabilities[:n], rtol=0, atol=1e-6)"
    return f"\nfor n in (1, 3, 100): {same}"


def test_stablehlo_by_jax_alone(exported, finished, images, in_a_clean_process, tmp_path):
    pytest.importorskip("flatbuffers")
    said, code = exported("StableHLO", "model.stablehlo")
    assert re.fullmatch(
        rf"Wrote {tmp_path}/model.stablehlo, epoch 4, \d+ kB; to use it: .*\n", said
    )
    code += of_every_size("exported.call(images[:n])")
    assert_same(in_a_clean_process(code), finished, images)


def test_onnx_by_onnxruntime(exported, finished, images, in_a_clean_process):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    _, code = exported("ONNX", "model.onnx")
    code += of_every_size("session.run(None, {'images': images[:n]})[0]")
    assert_same(in_a_clean_process(code), finished, images)


def test_pytorch_by_the_module_of_the_page(exported, finished, images, in_a_clean_process):
    pytest.importorskip("safetensors")
    pytest.importorskip("torch")
    _, code = exported("PyTorch", "model.safetensors")
    narrow = code.replace("SimpleCNN()", "SimpleCNN(((4,), (8,)), ((5,), (3,)))")
    assert narrow != code
    assert_same(in_a_clean_process(narrow), finished, images)


def test_the_module_of_the_page_is_that_of_the_default_recipe():
    torch = pytest.importorskip("torch")
    namespace = {}
    exec(code_block("PyTorch").partition("\nnetwork =")[0], namespace)
    network = namespace["SimpleCNN"]()
    assert sum(parameter.numel() for parameter in network.parameters()) == 235_546
    assert network(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 10)


def test_averaged_weights_and_a_single_view(averaged, export, images, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    run = runs.copy(averaged, tmp_path / "run")
    done = export(run, "--format=onnx", "--checkpoint=1")
    assert done.returncode == 0, done.stderr
    note, wrote = done.stdout.splitlines()
    assert note == "The file uses one view of each image; the run averaged 3 views"
    assert wrote.startswith(f"Wrote {run}/model.onnx, epoch 1, ")
    classifier = predict.load(run, 1)
    classifier.config.evaluation.num_views = 1  # before anything is compiled
    session = onnxruntime.InferenceSession(run / "model.onnx")
    actual = session.run(None, {"images": images[:100]})[0]
    np.testing.assert_allclose(actual, classifier(images[:100]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "flag --format=None: Flag --format must have a value"),
        (["--format=tflite"], "flag --format=tflite: value should be one of <stablehlo|onnx|"),
        (["--format=onnx", "1.png"], "'1.png' is not a flag; see --help"),
        (["--format=onnx", "--checkpoint=9"], "--checkpoint must be one of latest, best"),
        (["--format=onnx", "--output=no/file"], "no/file cannot be written: No such file or"),
        (["--format=onnx", "--output=~nobody-here/file"], "~nobody-here/file: no such user"),
    ],
)
def test_bad_flags_are_one_line(export, finished, arguments, message):
    pytest.importorskip("onnx")
    done = export(finished, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("form", "package"),
    [("stablehlo", "flatbuffers"), ("onnx", "onnx"), ("pytorch", "safetensors")],
)
def test_a_missing_extra_is_one_line(export, tmp_path, form, package):
    hide = f"import sys; sys.modules[{package!r}] = None"  # importing it then fails
    done = export(tmp_path, f"--format={form}", before=hide)
    expected = f"error: --format={form} needs {package}; pip install -e '.[{form}]'\n"
    assert (done.returncode, done.stderr) == (2, expected)
    assert not list(tmp_path.iterdir())

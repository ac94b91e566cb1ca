"""For tests of the report page: pages without training, and their JavaScript run in Node.js."""

import json
import pathlib
import shutil
import subprocess
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from mnist_flax import data
from mnist_flax.data import Dataset, Split
from mnist_flax.evaluate import evaluate
from mnist_flax.history import History
from mnist_flax.model import create_model
from mnist_flax.report import page
from mnist_flax.report.page.content import Run
from mnist_flax.run.configs import flatten
from mnist_flax.run.summary import class_accuracies

FOLDER = pathlib.Path(page.__file__).parent
MEAN, STD = 0.1307, 0.3081
STEPS = 3  # per epoch


def narrow() -> ConfigDict:
    """The default recipe with a narrow network that has an even kernel and odd feature maps."""
    config = default.get_config()
    config.model.channels = ((2, 6), (10,))
    config.model.kernel_sizes = ((5, 4), (3,))
    config.model.num_groups = 2
    return config


def random_variables(config: ConfigDict, images: np.ndarray) -> dict[str, Any]:
    """Draws variables of a network that is surer of some images `[n, 28, 28, 1]` than of others."""
    rng = np.random.default_rng(0)
    init = create_model(config.model, 10).init
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32)
    shapes = jax.eval_shape(lambda x: init(jax.random.key(0), x, train=False), image)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key == "kernel":
            scale = 2 / np.sqrt(np.prod(leaf.shape[:-1]))
            return rng.normal(0, scale, leaf.shape).astype(np.float32)
        low, high = (0.5, 2) if path[-1].key in ("scale", "var") else (-0.5, 0.5)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    variables = jax.tree.map_with_path(draw, shapes)
    logits = jax_logits(config, variables, images)
    last = variables["params"]["classifier"]
    mean = logits.mean(axis=0)
    factor = 2 / (logits - mean).std()
    last["kernel"] *= factor
    last["bias"] = (last["bias"] - mean) * factor
    return variables


def jax_logits(config: ConfigDict, variables: Any, images: np.ndarray) -> np.ndarray:
    """Returns the network's logits for uint8 images `[n, 28, 28, 1]`."""
    inputs = data.normalize(images, MEAN, STD)
    return np.asarray(create_model(config.model, 10).apply(variables, inputs, train=False))


def history(num_epochs: int) -> History:
    past = History("anid", "MNIST")
    for epoch in range(1, num_epochs + 1):
        record = {"epoch": epoch, "step": STEPS * epoch, "learning_rate": 0.1}
        for split, factor in (("train", 1), ("test", 2)):
            record |= {f"{split}/loss": factor / epoch, f"{split}/accuracy": 1 - factor / 8 / epoch}
        steps = np.float32([epoch, epoch + 0.25, epoch + 0.5])
        past = past.extended(record, {"loss": steps, "accuracy": steps / 10})
    return past


def create_run(config: ConfigDict, test: Split, logits: np.ndarray, **changes: Any) -> Run:
    """Returns a run with these logits on a test split, without any training."""
    names = tuple("0123456789")
    dataset = Dataset("mnist", "tfds", names, test, None, test, MEAN, STD)
    result = evaluate(logits, test.labels)
    summary = {
        "dataset": {"train_size": len(test), "validation_size": 0, "test_size": len(test)},
        "best_test_accuracy": result.accuracy,
        "class_accuracies": dict(zip(names, class_accuracies(result.confusion), strict=True)),
        "best_epoch": 2,
        "num_parameters": 1_234,
        "devices": ["cpu"],
        "machine": "2 CPUs, a processor",
        "finished": "2026-11-26 08:00:00+00:00",
        "compile_seconds": 4.25,
        "train_seconds": 3_725.0,
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
    }
    examples = (test.images[0], test.images[1:30])
    run = Run(
        config=flatten(config),
        default=flatten(default.get_config()),
        dataset=dataset,
        history=history(2),
        test=result,
        summary=summary,
        variables=random_variables(config, test.images[:10]),
        create_examples=lambda: examples,
        command="python main.py",
    )
    return run._replace(**changes)


def data_of(html: str) -> dict[str, Any]:
    """Returns the data in a page, which its scripts read."""
    start = '<script type="application/json" id="data">'
    return json.loads(html.split(start)[1].split("</script>")[0])


def leaving(page: Any) -> list[str]:
    """Returns the elements that stick out of the browser's window on the left or right."""
    return page.evaluate(
        """() => [...document.querySelectorAll("main *, header *")].filter(element => {
            const { left, right } = element.getBoundingClientRect();
            return !element.closest(".scroll") && (left < 0 || right > innerWidth);
        }).map(element => element.outerHTML.slice(0, 80))"""
    )


def check_accessibility(page: Any) -> None:
    """Fails if axe finds that a page in a browser violates WCAG 2.2, level A or AA."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = axe.run(page, options={"runOnly": {"type": "tag", "values": tags}})
    assert found.response["violations"] == [], found.generate_report()
    assert len(found.response["passes"]) > 15


def in_node(files: list[str], expression: str, given: Any) -> Any:
    """Evaluates a JavaScript expression of `given` in Node.js, with some of the page's scripts."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    source = "\n".join((FOLDER / file).read_text() for file in files)
    source += '\nconst given = JSON.parse(require("fs").readFileSync(0));'
    source += f"\nconsole.log(JSON.stringify({expression}));"
    text = json.dumps(given)
    done = subprocess.run([node, "-e", source], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

"""The content of a report page; test_page_browser.py tests it in a browser."""

import base64
import html
import re
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags

from configs import default
from mnist_flax.data import Split
from mnist_flax.history import History
from mnist_flax.report.observers import Page
from mnist_flax.report.page import content, digits
from mnist_flax.report.page.render import MAX_BYTES, render
from mnist_flax.runtime import process
from tests.report.pages import STEPS, create_run, data_of, history, narrow

SAMPLE = "SAMPLE of 80 MNIST digits, not MNIST"


def noise(count: int) -> Split:
    """Returns images that cannot be compressed."""
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % 10
    return Split(rng.integers(0, 256, (count, 28, 28, 1)).astype(np.uint8), labels)


def logits_of(labels: np.ndarray, num_wrong: int) -> np.ndarray:
    """Returns logits that are surer from image to image, and wrong for the last `num_wrong`."""
    predictions = (labels + (np.arange(len(labels)) >= len(labels) - num_wrong)) % 10
    return np.eye(10)[predictions] * np.linspace(1, 8, len(labels))[:, None]


def run_of(num_test=40, num_wrong=4, config=None, **changes):
    test = noise(num_test)
    return create_run(config or narrow(), test, logits_of(test.labels, num_wrong), **changes)


def text_of(page: str) -> str:
    """Returns the text of a page, without scripts, styles and tags."""
    page = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


@pytest.fixture(scope="module")
def page():
    return render(run_of())


class TestWhatItSays:
    def test_the_result(self, page):
        text = text_of(page).replace("\N{NO-BREAK SPACE}", " ")
        result = "90.00 % test accuracy on MNIST 4 of 40 test images misclassified, after 2 epochs"
        assert f"{result} in 1 h 2 min on 2 CPUs, a processor, with jax 0.10.2." in text
        assert "python main.py" in text and "python 3.11.7, jax 0.10.2" in text
        assert "90.00 % on the test set, after epoch 2 of 2" in text
        assert "2026-11-26 08:00:00 UTC" in text and "1,234 parameters" in text
        assert "cpu; 2 CPUs, a processor" in text
        assert "All 4 misclassified digits" in text
        assert "SAMPLE" not in page

    def test_the_sample_is_loud(self):
        run = run_of()
        page = render(run._replace(dataset=run.dataset._replace(source="sample", note="asked")))
        assert f"<title>90.00\N{NO-BREAK SPACE}% on {SAMPLE}</title>" in page
        text = text_of(page)
        assert text.count(SAMPLE) >= 4
        assert f"test accuracy on the 40 test images of the {SAMPLE}" in text
        assert f"{SAMPLE} This accuracy cannot be compared with MNIST’s (asked)." in text

    def test_what_differs_from_the_default_recipe_is_marked(self):
        config = narrow()
        config.optimizer.learning_rate = 0.5
        config.dataset.manual_dir = "<b>my & data</b>"
        run = run_of(config=config)
        marked = re.findall(r"<mark>(.*?)</mark> <small>default (.*?)</small>", render(run))
        assert {(html.unescape(value), default) for value, default in marked} == {
            ("((2, 6), (10,))", "((36, 36), (64, 128), (256,))"),
            ("((5, 4), (3,))", "((5, 5), (3, 3), (1,))"),
            ("2", "4"),
            ("0.5", "0.003"),
            ("<b>my & data</b>", "&#39;&#39;"),
        }

    def test_nothing_that_it_names_is_taken_for_html(self):
        names = ("</script><script>alert(1)</script>", *"123456789")
        run = run_of(command="python main.py --config='<img src=x>'")
        page = render(run._replace(dataset=run.dataset._replace(class_names=names)))
        assert "alert(1)</script>" not in page and "<img" not in page
        assert data_of(page)["classNames"] == list(names)
        assert names[0] in html.unescape(re.search(r"<ol id=.bars.>.*?</ol>", page, re.S)[0])

    def test_it_asks_for_nothing_from_anywhere(self, page):
        urls = set(re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"base64\": \"[^\"]*", "", page)))
        assert {url for url in urls if "." in url} == {"http://www.w3.org"}  # SVG's namespace
        assert re.findall(r"(?:src|href)=\"(?!data:,)", page) == []


class TestHowToRepeatIt:
    def test_python_where_no_command_started_it(self):
        config = narrow()
        config.optimizer.learning_rate = 0.5
        code = content.call(run_of(config=config, command=""))
        called = []
        code = code.replace("from mnist_flax import train", "import types")
        scope = {"train": type("train", (), {"run": called.append})}
        exec(code, scope)
        assert called[0].to_json() == config.to_json()

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["main.py"], "python main.py"),
            (["main.py", "--workdir=a b", "--config=x"], "python main.py --config=x"),
            (
                ["main.py", "-workdir", "a", "--config.tags=a b"],
                "python main.py '--config.tags=a b'",
            ),
        ],
    )
    def test_the_command_in_a_new_folder(self, monkeypatch, words, expected):
        monkeypatch.setattr(process.sys, "argv", words)
        monkeypatch.setattr(process.sys.modules["__main__"], "__spec__", None)
        parsed = SimpleNamespace(is_parsed=lambda: True)
        monkeypatch.setattr(flags, "FLAGS", parsed)
        assert process.repeating_command() == expected

    def test_no_command_has_parsed_flags_here(self):
        assert process.repeating_command() == ""


class TestWhatItHolds:
    def test_every_misclassified_digit_and_the_least_sure_others(self, page):
        run, data = run_of(), data_of(page)
        shown = np.array(data["digits"]["indices"])
        assert set(run.test.misclassified) <= set(shown)
        pixels = np.frombuffer(base64.b64decode(data["arrays"]["images"]["base64"]), np.uint8)
        expected = run.dataset.test.images[shown]
        np.testing.assert_array_equal(pixels.reshape(-1, 28, 28, 1), expected)
        assert data["digits"]["labels"] == run.dataset.test.labels[shown].tolist()
        # The first two images of each class, in the order of the classes.
        examples = shown[data["examples"]]
        assert examples.tolist() == list(range(20))

    def test_of_too_many_the_surest_of_every_kind(self, monkeypatch):
        monkeypatch.setattr(digits, "MAX_WRONG", 30)
        run = run_of(400, 300)
        wrong = digits.choose_wrong(run.test, run.dataset.test.labels)
        labels = run.dataset.test.labels[wrong]
        assert np.bincount(labels).tolist() == [3] * 10
        # Confidence grows with the index.
        assert sorted(wrong) == list(range(370, 400))
        assert "30 of 300 misclassified digits" in text_of(render(run))

    def test_curves(self, page):
        loss, accuracy = data_of(page)["charts"]
        steps, train, test = loss["series"]
        assert steps["name"] == "train, each step"
        assert (train["x"], train["y"], test["y"]) == ([1, 2], [1, 0.5], [2, 1])
        np.testing.assert_allclose(steps["x"], (np.arange(6) + 0.5) / 3, rtol=1e-5)
        np.testing.assert_allclose(steps["y"], [1, 1.25, 1.5, 2, 2.25, 2.5], rtol=1e-5)
        assert accuracy["series"][1]["y"] == [87.5, 93.75]

    def test_the_numbers_of_the_epochs(self):
        record = {"epoch": 1, "step": 1_200, "learning_rate": 0.00297, "test/loss": 0.5}
        record |= {"test/accuracy": 0.875, "images_per_second": 106_600.7, "seconds": 0.516}
        past = History("anid", "MNIST", (record, {**record, "epoch": 2, "test/new": 3.0}))
        table = re.search(r'<table class="numbers">.*?</table>', render(run_of(history=past)), re.S)
        names, *rows = re.findall(r"<tr>(.*?)</tr>", table[0], re.S)
        assert re.findall("<th.*?>(.*?)</th>", names) == [*record, "test/new"]
        numbers = ["1,200", "0.002970", "0.5000", "0.8750", "106,601", "0.52"]
        assert [re.findall("<td>(.*?)</td>", row) for row in rows] == [
            ["1", *numbers, ""],
            ["2", *numbers, "3.0000"],
        ]

    def test_a_long_run_has_short_curves_and_tables(self):
        records = tuple({**r, "epoch": e + 1} for e, r in enumerate(history(2).records * 3_000))
        records = tuple({**r, "step": STEPS * r["epoch"]} for r in records)
        steps = {"loss": np.zeros(len(records) * STEPS, np.float32)}
        page = render(run_of(history=History("anid", "MNIST", records, steps)))
        assert page.count("<tr>") < 1_050
        for chart in data_of(page)["charts"]:
            assert all(len(series["x"]) <= 1_000 for series in chart["series"])
            assert chart["series"][-1]["x"][-1] == 6_000  # the last epoch

    def test_without_augmentation_there_is_no_sheet(self):
        page = render(run_of(create_examples=None))
        assert "Augmentation" not in text_of(page)
        assert "sheet" not in data_of(page)["arrays"]


class TestItsSize:
    def test_a_bad_run_of_the_default_recipe_stays_below_4_mb(self):
        page = render(run_of(3_000, 2_500, config=default.get_config()))
        assert 2_000_000 < len(page.encode()) < MAX_BYTES == 4_000_000
        assert data_of(page)["arrays"]["weights"]["dtype"] == "float32"
        assert "1,000 of 2,500 misclassified" in text_of(page)

    @pytest.mark.parametrize(
        ("width", "expected"), [(300, "float16"), (600, "not there")], ids=["float16", "left out"]
    )
    def test_a_wide_network(self, width, expected):
        config = narrow()
        config.model.channels = ((2, 6), (width, width))
        config.model.kernel_sizes = ((5, 4), (3, 3))
        page = render(run_of(config=config))
        arrays, text = data_of(page)["arrays"], text_of(page)
        assert len(page.encode()) < MAX_BYTES
        assert arrays.get("weights", {"dtype": "not there"})["dtype"] == expected
        assert ("weights are rounded to float16" in text) == (expected == "float16")
        assert ("This network is too large" in text) == (expected == "not there")

    def test_a_network_that_it_does_not_know_is_left_out(self):
        run = run_of()
        page = render(run._replace(config={**run.config, "model.norm": "instance"}))
        assert "cannot run this kind of network" in text_of(page)
        assert data_of(page)["layers"] is None

    @pytest.mark.parametrize(
        ("field", "value", "expected"),
        [
            ("model.dtype", "bfloat16", "The run computed in bfloat16; this page uses float32."),
            ("evaluation.num_views", 8, "The run averaged 8 views of each image"),
        ],
    )
    def test_says_what_differs_from_the_run(self, page, field, value, expected):
        run = run_of()
        config = {**run.config, field: value}
        other = render(run._replace(config=config))
        assert expected in text_of(other) and expected not in text_of(page)
        assert 'id="check"' in page  # in which the page compares its network with the run's results
        assert ('id="check"' in other) == (field != "evaluation.num_views")


class TestObserver:
    def test_a_page_that_fails_is_a_line(self, tmp_path):
        said, run = [], run_of()
        path = tmp_path / "report.html"
        page = Page(path, lambda **results: run._replace(**results), said.append)
        page.finish(run.history, run.test, run.summary, run.variables)
        assert path.read_text().startswith("<!DOCTYPE html>") and said == []
        path.unlink()
        page.finish(run.history, run.test, {}, run.variables)
        missing = "'dict object' has no attribute 'class_accuracies'"
        assert said == [f"writing report.html failed: UndefinedError: {missing}"]
        assert list(tmp_path.iterdir()) == []

"""The page of a study of made-up replicas; a real browser runs its scripts."""

import base64
import dataclasses
import functools
import html
import json
import re

import pytest

from mnist_flax.report.page.render import MAX_BYTES
from mnist_flax.run.workdir import Workdir
from mnist_flax.study import page as study_page
from mnist_flax.study.findings import Findings
from mnist_flax.study.store import ReplicaStore
from tests.report.pages import check_accessibility, data_of, leaving
from tests.study import made_up

ERRORS = {"base": [100, 104, 96], "layer norm": [120, 125, 115], "max pooling": [91, 94, 85]}


@pytest.fixture
def write(tiny_config, tmp_path):
    """Writes findings for a study with three replicas per recipe; returns its folder."""
    folders = []

    def write(replicas, name="made up", source="tfds", say=pytest.fail):
        names = tuple(dict.fromkeys(replica.variant for replica in replicas))
        tiny_config.study.num_seeds = 3
        dataset = made_up.DATASET._replace(source=source, validation=None)
        folder = Workdir(str(tmp_path / name), tiny_config.to_dict())
        folders.append(folder)
        store = ReplicaStore(folder.path / "replicas")
        Findings(tiny_config, dataset, names, folder, store, False).write(replicas, say)
        return folder.path

    yield write
    for folder in folders:
        folder.close()


def trained(variant, seed, num_errors, num_epochs=4, num_final=2):
    """Returns a replica with curves; the test set is read only after the last epochs."""
    records = []
    for epoch in range(1, num_epochs + 1):
        record = {"epoch": epoch, "train/loss": seed / epoch, "train/accuracy": 1 - 0.1 / epoch}
        if epoch > num_epochs - num_final:
            record |= {"test/loss": 2 * seed / epoch, "test/accuracy": 1 - num_errors / 1_000}
        records.append(record)
    return dataclasses.replace(made_up.create(variant, seed, num_errors), records=records)


replicas_of = functools.partial(made_up.replicas_of, create=trained, first_seed=7)


def table_of(page):
    """Returns the cells of the page's table, without its head."""
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>.*?</tr>", body)
    ]


def test_it_says_what_study_md_says(write):
    folder = write(replicas_of(ERRORS))
    page, text = (folder / "study.html").read_text(), (folder / "study.md").read_text()
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    expected = [[cell.strip() for cell in line.split("|")] for line in lines[2:]]
    assert table_of(page) == expected and len(expected) == 3
    words = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert "3 recipes" in words and "3 seeds" in words
    for line in text.split("## In words")[1].splitlines():
        assert line.removeprefix("- ") in words or line.startswith("![")
    assert text.splitlines()[2] in words  # data, machine, versions and date
    png = (folder / "figures" / "study.png").read_bytes()
    assert base64.b64encode(png).decode() in page


def test_each_replica_has_its_curves(write):
    replicas = replicas_of(ERRORS)
    page = (write(replicas) / "study.html").read_text()
    charts = data_of(page)
    assert list(charts) == ["test accuracy", "test loss", "train accuracy", "train loss"]
    names = [row[0] for row in table_of(page)]
    assert names == ["max pooling", "base", "layer norm"]
    for name, of_recipes in charts.items():
        key, factor = name.replace(" ", "/"), 100 if "accuracy" in name else 1
        for recipe, chart in zip(names, of_recipes, strict=True):
            assert chart["title"] == f"{recipe}, {name}"
            mine = [replica for replica in replicas if replica.variant == recipe]
            assert [line["name"] for line in chart["series"]] == ["seed 7", "seed 8", "seed 9"]
            for line, replica in zip(chart["series"], mine, strict=True):
                records = [record for record in replica.records if key in record]
                assert line["x"] == [record["epoch"] for record in records]
                expected = [factor * record[key] for record in records]
                assert line["y"] == pytest.approx(expected, rel=1e-5)


def test_the_sample_is_loud_and_an_unfinished_study_says_so(write):
    page = (write(replicas_of(ERRORS)[:-1], source="sample") / "study.html").read_text()
    words = re.sub(r"<(script|style).*?</\1>|<[^>]*>", "", page, flags=re.DOTALL)
    assert words.count("SAMPLE of 2,000 MNIST digits, not MNIST") >= 4
    assert "These accuracies cannot be compared with MNIST’s (asked for)." in words
    assert "8 of 9 replicas are finished." in words


@pytest.mark.parametrize(("num_final", "metric"), [(2, "test accuracy"), (1, "train accuracy")])
def test_the_curves_shown_first_have_more_than_a_point(write, num_final, metric):
    page = (write(replicas_of(ERRORS, num_final=num_final)) / "study.html").read_text()
    assert re.findall(r'value="(.*?)" checked', page) == [metric]


def test_names_are_text_and_no_html(write):
    name = "</script><img src=x onerror=alert(1)>"
    study = write(replicas_of({"base": [1, 2], name: [3, 4]}), name="<b>&amp; my study<b>")
    page = (study / "study.html").read_text()
    assert "<img src=x" not in page and "<b>&amp; my" not in page
    assert table_of(page)[1][0] == name
    assert data_of(page)["test loss"][1]["title"] == f"{name}, test loss"
    assert "&lt;b&gt;&amp;amp; my study&lt;b&gt;" in page


def test_a_hundred_replicas_fit(write):
    errors = {f"recipe {at}": list(range(50, 60)) for at in range(10)}
    page = (write(replicas_of(errors, num_epochs=20, num_final=20)) / "study.html").read_text()
    assert len(page.encode()) < MAX_BYTES
    addresses = set(re.findall(r"https?://[^\s\"')]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a namespace, which is not fetched


def test_an_error_in_it_is_a_line(write, monkeypatch):
    def fail(*_):
        raise ValueError("no template\nof this name")

    said = []
    monkeypatch.setattr(study_page.render, "fill", fail)
    folder = write(replicas_of(ERRORS), say=said.append)
    assert said == ["writing study.html failed: ValueError: no template"]
    assert json.loads((folder / "study.json").read_text()) and not (folder / "study.html").exists()


class TestInABrowser:
    @pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1400, "light")])
    def test_layout_holds_and_anyone_can_use_it(self, show, write, width, scheme):
        page = show(write(replicas_of(ERRORS)) / "study.html", width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert leaving(page) == []
        assert page.locator(".plot").count() == 3
        check_accessibility(page)

    def test_values_under_the_pointer_of_the_metric_that_is_chosen(self, show, write):
        page = show(write(replicas_of(ERRORS)) / "study.html")
        page.get_by_label("train loss").check()
        assert page.locator(".plot").count() == 3
        plot = page.locator(".plot").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 100)  # points at the last epoch
        shown = plot.locator(".tip p").all_inner_texts()
        assert shown == ["epoch 4", "seed 7 1.7500", "seed 8 2.0000", "seed 9 2.2500"]

    @pytest.mark.parametrize("scheme", ["dark", "light"])
    def test_ten_seeds_have_ten_colours(self, show, write, scheme):
        page = show(write(replicas_of({"base": range(90, 100)})) / "study.html", scheme=scheme)
        colors = page.locator(".legend .swatch").evaluate_all(
            "all => all.map(swatch => getComputedStyle(swatch).color)"
        )
        assert len(set(colors)) == len(colors) == 10

    def test_epochs_that_no_curve_has_take_no_room(self, show, write):
        replicas = replicas_of(ERRORS, num_epochs=20, num_final=5)
        page = show(write(replicas) / "study.html")

        def ticks():
            return page.locator(".plot").first.locator("svg > text.x").all_text_contents()

        assert ticks() == ["16", "17", "18", "19", "20", "epoch"]
        page.get_by_label("train loss").check()
        assert ticks() == ["0", "5", "10", "15", "20", "epoch"]

    def test_a_replica_that_diverged_has_the_curve_it_has(self, show, write):
        first, second = replicas_of({"base": [900], "layer norm": [900]})
        for record in first.records:
            record["train/loss"] = None
        second.records[-1]["train/loss"] = None
        page = show(write([first, second]) / "study.html")
        page.get_by_label("train loss").check()
        assert page.locator(".chart").first.inner_text() == "No epoch has a finite value."
        assert page.locator(".plot").get_attribute("aria-valuemax") == "3"

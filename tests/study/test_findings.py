"""Findings about made-up replicas, whose numbers are known; a browser runs the page's scripts."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from mnist_flax.run.workdir import Workdir
from mnist_flax.study import findings
from mnist_flax.study.findings import Findings
from mnist_flax.study.store import ReplicaStore
from tests.report.pages import check_accessibility, data_of, leaving
from tests.study.made_up import DATASET, LABELS, replicas

# Errors in 1,000 test images, one number per seed.
ERRORS = {
    "base": [100, 104, 96, 101, 99],
    "worse": [120, 125, 115, 121, 121],
    "as good": [95, 109, 96, 102, 97],
    "better": [91, 94, 85, 91, 90],
}


@pytest.fixture
def study(tiny_config, tmp_path):
    """Writes findings; returns their words, study.md, study.json's content and study.html."""
    tiny_config.study.num_seeds, tiny_config.study.num_final_epochs = 5, 2
    folder = Workdir(str(tmp_path / "made up"), tiny_config.to_dict())
    folder.open()
    store = ReplicaStore(folder.path, {}, "MNIST")

    def write(finished, say=pytest.fail, ensemble=False, **changes):
        names = {replica.variant for replica in finished} - {"base"}
        tiny_config.study.variants = {name: {"num_epochs": 2} for name in names}
        dataset = DATASET._replace(**{"validation": None, **changes})
        words = Findings(tiny_config, dataset, folder, store).write(finished, say, ensemble)
        content = json.loads((folder.path / "study.json").read_text(), parse_constant=pytest.fail)
        page = folder.path / "study.html"
        text = (folder.path / "study.md").read_text()
        return words, text, content, page.read_text() if page.exists() else ""

    write.config, write.store, write.path = tiny_config, store, folder.path
    yield write
    folder.close()


def cells(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_words_follow_the_numbers_best_first(study):
    """The geometric means of errors + 0.5 are 100.466, 120.857, 100.169 and 90.652."""
    words, text, content, _ = study(replicas(ERRORS))
    assert words == [
        "better made 10 % fewer test errors than the base (95 % CI 8 to 12 %; n = 5, p < 0.001)",
        "as good made 0 % fewer test errors than the base (95 % CI 6 % fewer to 6 % more; n = 5, "
        "p = 0.864): no difference found; 80 % power to find a difference of 9 errors",
        "base reached 90.000 % test accuracy (n = 5)",
        "worse made 20 % more test errors than the base (95 % CI 19 to 22 %; n = 5, p < 0.001)",
    ]
    assert [row["name"] for row in content["recipes"]] == ["better", "as good", "base", "worse"]
    assert all(f"- {line}\n" in text for line in words)


def test_the_table_by_hand(study):
    _, text, content, _ = study(replicas(ERRORS))
    # 100, 104, 96, 101, 99: standard deviation 2.9155, standard error 1.3038, times t = 2.7764.
    assert cells(text, "base") == [
        *("base", "5", "90.000 ± 0.362", "100.0 ± 3.6", "", "", "", "1,502.5", "1.0")
    ]
    # The ratio of geometric means is 1.20297; the base has 10.0466 % errors.
    worse = content["recipes"][-1]["comparison_with_base"]
    assert cells(text, "worse")[4:7] == ["−2.039 (−2.222 to −1.859)", "0.96", "< 0.001"]
    gains = [10.04661 * (1 - worse[name]) for name in ("ratio", "high", "low")]
    assert gains == pytest.approx([-2.039, -2.222, -1.859], abs=5e-4)
    assert worse["correlation"] == pytest.approx(0.96, abs=0.005)
    assert content["recipes"][2]["comparison_with_base"] is None


def test_the_text_describes_the_method(study):
    _, text, _, _ = study(replicas(ERRORS), validation=DATASET.validation)
    joined = " ".join(text.split())
    assert "1,000 training images were set aside" in joined and cells(text, "better")[2] == "90.980"
    for part in ("each of its last 2 epochs", "for 3 comparisons", "Holm's method", "Bonferroni's"):
        assert part in joined
    assert "replicas are finished" not in text
    assert "No images were set aside" in study(replicas(ERRORS))[1]


def test_what_holm_finds_and_bonferronis_interval_does_not_is_said(study):
    """Of two comparisons, one is clear; the other's p is 0.029, which Bonferroni doubles."""
    shifted = [
        round(n * factor) for n, factor in zip(ERRORS["base"], (1.2, 1, 1.1, 1.2, 1.1), strict=True)
    ]
    words, *_ = study(
        replicas({"base": ERRORS["base"], "worse": ERRORS["worse"], "slightly": shifted})
    )
    (line,) = [line for line in words if line.startswith("slightly")]
    assert re.search(r"CI \d % fewer to \d+ % more; n = 5, p = 0.029", line)
    assert line.endswith(
        ": a difference by Holm's p, although Bonferroni's wider interval includes none"
    )


def test_an_unfinished_study_says_so(study):
    """The base, and two seeds of another recipe, of which one is the base's."""
    base, worse = replicas({"base": ERRORS["base"]}), replicas({"worse": [120, 125]}, first_seed=4)
    words, text, content, page = study(base + worse)
    assert "**7 of 10 replicas are finished.**" in text
    assert "<strong>7 of 10 replicas are finished.</strong>" in page
    assert [row["name"] for row in content["recipes"]] == ["base", "worse"]
    assert words[1] == (
        "worse made 21 % more test errors than the base (n = 1): not tested, because there is one "
        "seed"
    )
    assert cells(text, "worse")[1] == "2" and cells(text, "worse")[6] == "not tested"
    words, text, *_ = study(worse)
    assert words == ["worse reached 87.750 % test accuracy (n = 2)"] and "Holm" not in text
    assert study([])[0] == []


def test_few_seeds_or_no_spread(study):
    words, text, *_ = study(
        replicas({"base": [10, 400], "worse": [700, 20], "same": [20.5, 800.5]})
    )
    by_name = {line.split()[0]: line for line in words}
    assert by_name["worse"].endswith(": no difference found; too few seeds to find one reliably")
    assert by_name["same"].endswith("because the ratio is the same for every seed")
    # Accuracy cannot fall below 0, however wide the ratio's interval is.
    low = float(re.search(r"\(−(.+) to", cells(text, "worse")[4])[1])
    assert low == pytest.approx(100 - 100 * (10.5 * 400.5) ** 0.5 / 1_000, abs=1e-3)


def test_diverged_replicas_are_reported(study):
    diverged = replicas({"worse": [900, 901]}, loss=None)
    words, _, content, _ = study(replicas({"base": ERRORS["base"]}) + diverged)
    assert words[-1].endswith("; 2 of the 2 replicas diverged")
    assert content["recipes"][-1]["num_diverged"] == 2


def test_an_ensemble_averages_probabilities_of_all_replicas(study):
    """Each network misses other images and is unsure of them: together they miss none."""
    finished = replicas({"base": ERRORS["base"]})
    for seed, replica in enumerate(finished):
        probabilities = np.full((1_000, 10), 0.01)
        probabilities[np.arange(1_000), LABELS] = 0.91
        missed = np.arange(10) + 10 * seed
        probabilities[missed, LABELS[missed]] = 0.4
        probabilities[missed, (LABELS[missed] + 1) % 10] = 0.6
        study.store.save(replica, {"test": probabilities})
    words, _, content, _ = study(finished, ensemble=True)
    assert content["recipes"][0]["ensemble_errors"] == 0
    assert words[0].endswith("; averaged, its 5 networks make 0 test errors")


def test_the_figure_has_the_colours_of_the_verdicts(study):
    study(replicas(ERRORS))
    with Image.open(study.path / "figures" / "study.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for color in ((0x1A, 0x98, 0x50), (0xD7, 0x30, 0x27)):
        assert (pixels == color).all(1).sum() > 100


def test_an_error_in_a_picture_or_page_is_a_line(study, monkeypatch):
    said = []
    monkeypatch.setattr(findings, "write_whole", lambda *_: 1 / 0)
    monkeypatch.setitem(findings._TEMPLATES.globals, "read", None)
    words, text, *_, page = study(replicas(ERRORS), say=said.append)
    assert [line.partition(":")[0] for line in said] == [
        "drawing failed",
        "writing study.html failed",
    ]
    assert len(words) == 4 and text and not page


class TestPage:
    def test_it_says_what_study_md_says(self, study):
        words, text, _, page = study(replicas(ERRORS))
        shown = re.sub(r"<[^>]*>", "", page).replace("&#39;", "'").replace("&lt;", "<")
        assert all(line in shown for line in words) and "4 recipes,\n      5 seeds" in shown
        head, _, *lines = [line for line in text.splitlines() if line.startswith("|")]
        body = page.split("<thead>")[1].split("</tbody>")[0].replace("&lt;", "<")
        found = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", body)
        assert found == [cell.strip() for line in [head, *lines] for cell in line[1:-1].split("|")]
        assert page.count("data:image/png") == 1 and "cannot be compared" not in page

    def test_the_sample_is_loud_and_names_are_text(self, study):
        name = "</script><img src=x onerror=alert(1)>"
        finished = replicas({"base": [1, 2], name: [3, 5]})
        study.config.unlock()
        _, _, _, page = study(finished, source="sample")
        assert "These accuracies cannot be compared with MNIST’s (asked for)." in page
        assert "<img src=x" not in page
        assert data_of(page)["recipes"][1]["name"] == name

    @pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1400, "light")])
    def test_layout_holds_and_anyone_can_use_it(self, study, show, width, scheme):
        study(replicas(ERRORS))
        page = show(study.path / "study.html", width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert leaving(page) == [] and page.locator(".plot").count() == 4
        check_accessibility(page)

    def test_curves_of_the_metric_that_is_chosen(self, study, show):
        """The one shown first has more than a point; a diverged replica has the curve it has."""
        finished = replicas({"worse": [120], "base": [100, 101]}, first_seed=7)
        for record in finished[0].records[1:]:
            record["train/loss"] = None
        study(finished)
        page = show(study.path / "study.html")
        assert page.locator("[name=metric]:checked").input_value() == "test/accuracy"
        page.get_by_label("train loss").check()
        assert page.locator(".plot").last.get_attribute("aria-valuemax") == "1"
        plot = page.locator(".plot").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 100)  # points at the last epoch
        shown = plot.locator(".tip p").all_inner_texts()
        assert shown == ["epoch 4", "seed 7 1.7500", "seed 8 2.0000"]
        study.config.study.num_final_epochs = 1
        study(replicas({"base": [100, 101]}, num_final=1))
        page = show(study.path / "study.html")
        assert page.locator("[name=metric]:checked").input_value() == "train/accuracy"

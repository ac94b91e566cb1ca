"""The report page in a real browser: Chromium, driven by Playwright."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from mnist_flax import predict
from mnist_flax.predict import pictures
from mnist_flax.report.page.render import render
from mnist_flax.sources import Split, sample
from tests.report.pages import (
    check_accessibility,
    create_run,
    jax_logits,
    leaving,
    narrow,
    random_variables,
)

# A 3, in fractions of the pad's side.
THREE = [(0.3, 0.25), (0.5, 0.15), (0.7, 0.3), (0.5, 0.48), (0.72, 0.66), (0.5, 0.85), (0.27, 0.75)]
SEVEN = [(0.25, 0.2), (0.75, 0.2), (0.45, 0.85)]
CROSSED = [(0.35, 0.52), (0.65, 0.52)]
DRAWINGS = (
    [THREE],
    [SEVEN, CROSSED],
    [[(0.1, 0.1), (0.2, 0.12)]],
)  # the last is a small stroke in a corner
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker")
FASHION += ("Bag", "Ankle boot")


@pytest.fixture
def report(finished):
    """The page that the command wrote."""
    return finished / "report.html"


@pytest.fixture(scope="module")
def classifier(finished):
    """The network of the same run, loaded by `mnist_flax.predict`."""
    return predict.load(str(finished))


@pytest.fixture(scope="module")
def bad_report(tmp_path_factory):
    """The page of a bad run on the sample, with other class names, norm and padding."""
    config = narrow()
    config.model.update(norm="group", norm_position="after", downsample="max", padding="SAME")
    test = Split(*(array[::5] for array in sample.load().test))
    variables = random_variables(config, test.images[::20])
    logits = jax_logits(config, variables, test.images)
    run = create_run(config, test, logits, variables=variables)
    dataset = run.dataset._replace(name="fashion_mnist", class_names=FASHION, source="sample")
    path = tmp_path_factory.mktemp("bad") / "report.html"
    path.write_text(render(run._replace(dataset=dataset)))
    return path


def draw(page, points):
    """Draws a stroke with the mouse, through points in fractions of the pad's side."""
    pad = page.locator("#pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def shares(page):
    """Waits until the bars stop moving; returns the probabilities that they show."""
    page.wait_for_timeout(300)
    script = "rows => rows.map(row => Number(row.style.getPropertyValue('--share')))"
    return np.array(page.locator("#bars li").evaluate_all(script))


def save(page, folder):
    """Saves the drawing with the page's button; returns the path of the PNG and its pixels."""
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(folder / "drawing.png")
    image = np.asarray(Image.open(folder / "drawing.png").convert("RGB"))
    assert (image == image[..., :1]).all()
    return folder / "drawing.png", image[..., 0]


def check_against_predict(page, classifier, path):
    """Asserts that the page reads and classifies the drawing as `mnist_flax.predict` does."""
    image = pictures.read(path)
    url = page.locator("#seen").evaluate("canvas => canvas.toDataURL()")
    seen = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    np.testing.assert_array_equal(np.asarray(seen.convert("L")), image[..., 0])
    (expected,) = classifier(image[None])
    np.testing.assert_allclose(shares(page), expected, rtol=0, atol=1e-4)
    best = classifier.class_names[expected.argmax()]
    assert page.locator("#answer").inner_text() == best
    assert page.locator("#bars .first span").inner_text() == best


class TestPad:
    def test_strokes_give_what_predict_gives(self, show, report, classifier, tmp_path):
        page = show(report, accept_downloads=True)
        assert page.locator("#answer").inner_text() == ""
        for strokes in DRAWINGS:
            page.locator("#clear").click()
            for points in strokes:
                draw(page, points)
            path, ink = save(page, tmp_path)
            assert ink.shape == (280, 280) and ink.max() == 255
            check_against_predict(page, classifier, path)

    def test_bars_move_while_the_mouse_is_down(self, show, report):
        page = show(report)
        box = page.locator("#pad").bounding_box()
        page.mouse.move(box["x"] + 50, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 60, box["y"] + 150, steps=5)
        first = shares(page)
        page.mouse.move(box["x"] + 200, box["y"] + 100, steps=5)
        second = shares(page)
        assert first.sum() == pytest.approx(1) == second.sum()
        assert np.abs(first - second).max() > 1e-3

    def test_undo_clear_and_a_test_digit(self, show, report):
        page = show(report)
        draw(page, [(0.5, 0.2), (0.5, 0.8)])
        one = shares(page)
        draw(page, [(0.2, 0.5), (0.8, 0.5)])
        assert np.abs(shares(page) - one).max() > 1e-3
        page.locator("#undo").click()
        np.testing.assert_array_equal(shares(page), one)
        page.locator("#clear").click()
        assert shares(page).sum() == 0 and page.locator("#hint").is_visible()
        page.locator("#undo").click()
        np.testing.assert_array_equal(shares(page), one)
        page.locator("#example").click()
        assert shares(page).sum() == pytest.approx(1)
        assert np.abs(shares(page) - one).max() > 1e-3

    def test_the_keyboard_draws(self, show, report, classifier, tmp_path):
        page = show(report, accept_downloads=True)
        page.locator("#pad").focus()
        for key in [*["ArrowUp"] * 9, "Space", *["ArrowDown"] * 18, "Space", *["ArrowLeft"] * 5]:
            page.keyboard.press(key)
        path, ink = save(page, tmp_path)
        rows, columns = ink.nonzero()
        assert np.ptp(rows) > 180 and np.ptp(columns) < 30  # a vertical stroke
        check_against_predict(page, classifier, path)

    def test_a_finger_draws_and_does_not_scroll(self, show, report):
        page = show(report, width=360, has_touch=True, is_mobile=True)
        page.locator("#pad").scroll_into_view_if_needed()
        box, scrolled = page.locator("#pad").bounding_box(), page.evaluate("scrollY")
        touch = page.context.new_cdp_session(page)
        for kind, share in (("touchStart", 0.8), ("touchMove", 0.5), ("touchMove", 0.2)):
            point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + share * box["height"]}
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        assert shares(page).sum() == pytest.approx(1)
        assert page.evaluate("scrollY") == scrolled

    @pytest.mark.parametrize("path", ["report", "bad_report"])
    def test_the_page_checks_its_network_against_the_run(self, show, path, request):
        page = show(request.getfixturevalue(path))
        page.wait_for_function("document.getElementById('check').textContent")
        text = page.locator("#check").inner_text()
        assert "on 20 test images" in text or path == "bad_report"  # it recognises fewer
        assert float(text.removesuffix(".").split()[-1]) < 1e-4


class TestDigits:
    def test_cells_open(self, show, bad_report):
        page = show(bad_report)
        for cell in page.locator("#matrix button").all()[::7]:
            cell.click()
            label, prediction, count = (
                int(cell.get_attribute(f"data-{key}")) for key in ("label", "prediction", "count")
            )
            cards = page.locator("#cell-digits .card .verdict").all_inner_texts()
            if label == prediction:
                assert set(cards) == {FASHION[label]}
                assert min(count, 20) <= len(cards) <= min(count, 22)
            else:
                assert cards == [f"{FASHION[label]} → {FASHION[prediction]}"] * count
            assert cell.get_attribute("aria-pressed") == "true"
        assert page.locator("#matrix button[aria-pressed=true]").count() == 1

    def test_misclassified_digits_come_the_surest_first(self, show, report, finished):
        page = show(report)
        summary = json.loads((finished / "summary.json").read_text())
        if page.locator("#more").is_visible():
            page.locator("#more").click()
        cards = page.locator("#wrong .card")
        assert cards.count() == summary["num_test_errors"] > 0
        sure = [
            float(text.split()[-3].strip(">")) for text in cards.locator(".note").all_inner_texts()
        ]
        assert sure == sorted(sure, reverse=True)
        assert cards.locator("svg.bars rect").count() == 10 * cards.count()
        shown = {title.split()[-1] for title in cards.evaluate_all("all => all.map(c => c.title)")}
        assert shown == set(map(str, summary["misclassified"]))


class TestCurves:
    def test_values_under_the_pointer_and_the_arrow_keys(self, show, report, finished):
        page = show(report)
        lines = (finished / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        plot = page.locator(".plot").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        # Point at the right end, which is the last epoch.
        page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 100)
        tip = plot.locator(".tip")
        assert tip.locator("p").all_inner_texts() == [
            "epoch 4",
            f"train {records[3]['train/loss']:.4f}",
            f"test {records[3]['test/loss']:.4f}",
        ]
        page.mouse.move(0, 0)
        assert tip.is_hidden()
        assert plot.locator("svg > text.x").all_text_contents()[-1] == "epoch"
        legend = page.locator(".legend").first.locator("li").all_inner_texts()
        assert [text.split()[0] for text in legend] == ["train", "test", "train,"]  # the faint one
        plot.focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        said = plot.get_attribute("aria-valuetext")
        assert said.startswith(f"epoch 2: train {records[1]['train/loss']:.4f}, test ")
        assert tip.is_visible()


class TestLayout:
    @pytest.mark.parametrize("path", ["report", "bad_report"])
    @pytest.mark.parametrize("width", [360, 1400])
    def test_nothing_leaves_the_page(self, show, path, width, request):
        page = show(request.getfixturevalue(path), width=width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert leaving(page) == []

    @pytest.mark.parametrize("path", ["report", "bad_report"])
    def test_what_a_phone_shows(self, show, path, request):
        page = show(request.getfixturevalue(path), width=360, has_touch=True, is_mobile=True)
        command = page.locator(".command")
        assert command.evaluate("element => element.scrollWidth <= element.clientWidth")
        command.locator("code").click()  # selects the whole command
        words = page.locator(".command code").text_content()
        assert page.evaluate("getSelection().toString()") == words and "python" in words
        for button in page.get_by_role("button").all():
            box = button.bounding_box()
            # WCAG 2.2 requires 24 pixels.
            assert box is None or min(box["width"], box["height"]) >= 30
        recall = page.locator("#matrix tbody .recall").first
        recall.scroll_into_view_if_needed()
        right = recall.evaluate("cell => cell.getBoundingClientRect().right")
        assert re.fullmatch(r"[\d.]+\s%", recall.inner_text()) and right <= 360
        left = page.locator("#matrix tbody th").first.bounding_box()["x"]
        assert 0 <= left < 20  # the row's class stays visible
        behind = page.locator("#behind")
        assert behind.evaluate("box => box.scrollHeight <= box.clientHeight")

    @pytest.mark.parametrize(
        ("path", "width", "scheme"),
        [
            ("report", 360, "light"),
            ("report", 1400, "dark"),
            ("bad_report", 360, "dark"),
            ("bad_report", 1400, "light"),
        ],
    )
    def test_no_violation_of_wcag_aa(self, show, path, width, scheme, request):
        page = show(request.getfixturevalue(path), width=width, scheme=scheme)
        draw(page, THREE)
        page.locator("summary").click()
        check_accessibility(page)

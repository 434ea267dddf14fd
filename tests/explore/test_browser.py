"""The page in a browser: sliders are moved by the keyboard, and what is shown is held against the numbers."""

import html.parser
import math
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from sims.explore import export, model
from sims.explore.config import DIALS, NAMES, Config
from tests.explore import stand_in
from tests.helpers import ROOT

PARTS = ("aligned", "conflicting", "shifted", "train")
ROUNDING = 1.01e-4  # of numbers that follow from numbers rounded to 4 digits, themselves rounded to 4


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs the program chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


class Loads(html.parser.HTMLParser):
    """What a page loads, and its words."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words, self.hidden = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.hidden = tag in ("script", "style")
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        self.hidden = False

    def handle_data(self, data):
        self.words += "" if self.hidden else data


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of few numbers, and these."""
    with pytest.MonkeyPatch.context() as patch:
        config = stand_in.few(patch)
        grid = config.grid
        path = tmp_path_factory.mktemp("explore") / "page.html"
        path.write_text(export.html(config), encoding="utf-8")
    return path.as_uri(), grid, stand_in.tables(config.at, config.masking, grid)


class Visit:
    """A page that is open; `wrong` gathers errors, and what it loads beside itself."""

    def __init__(self, browser, url, width=1280):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.wrong = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        own = (url, "data:", "blob:")
        self.page.on("request", lambda asked: None if asked.url.startswith(own) else self.wrong.append(asked.url))
        self.page.goto(url)
        self.page.locator("#state").wait_for()

    def slider(self, name):
        return self.page.get_by_role("slider", name=re.compile(rf"^{name}\b"))

    def move(self, name, key):
        """Press a key on a slider, and wait for its numbers; returns what the slider then says."""
        self.slider(name).press(key)
        text = self.slider(name).get_attribute("aria-valuetext")
        self.page.locator("#state", has_text=re.compile(rf"\b{name} = {re.escape(text)}[,.]")).wait_for()
        return text

    def choose(self, label, option):
        self.page.get_by_label(label, exact=True).select_option(label=option)

    def shown(self, learner):
        cells = self.page.locator(f"tr[data-learner={learner}] td").all_inner_texts()
        return dict(zip(PARTS, (math.nan if text == "-" else float(text) for text in cells), strict=True))

    def state(self):
        """The values of all dials, as the page says them."""
        said = dict(re.findall(r"(\w+) = ([^, ]+?)(?:,|\.? |\.$)", self.page.locator("#state").inner_text()))
        return {name: math.inf if said[name] == "∞" else float(said[name]) for name in NAMES}

    def drawn(self, source):
        """The numbers of a drawing, by column."""
        data = self.page.evaluate(
            "name => Object.fromEntries(Object.entries(Bokeh.documents[0].get_model_by_name(name).data)"
            ".map(([column, values]) => [column, Array.from(values)]))",
            f"{source} source",
        )
        return {name: np.array(values) for name, values in data.items()}


@pytest.fixture
def visit(browser):
    """Open a page; at the end nothing was wrong."""
    visits = []

    def opened(url, **more):
        visits.append(Visit(browser, url, **more))
        return visits[-1]

    yield opened
    for one in visits:
        one.page.close()
        assert one.wrong == []


def assert_shown(shown, numbers, p_spu, atol=ROUNDING):
    aligned, conflicting = numbers[:2]
    expected = aligned, conflicting, (aligned + conflicting) / 2, p_spu * aligned + (1 - p_spu) * conflicting
    np.testing.assert_allclose([shown[part] for part in PARTS], expected, rtol=0, atol=atol)


@pytest.mark.costly
def test_the_file_needs_no_other(file):
    text = pathlib.Path(file[0].removeprefix("file://")).read_text(encoding="utf-8")
    loads = Loads(text)
    assert loads.found == [] and "@import" not in text.split("</style>")[0]
    assert "Fixed in this file: sigma_core = 1, mu_core = 1," in loads.words
    assert '<html lang="en">' in text and 'name="viewport"' in text
    assert Loads('<script src="https://cdn.bokeh.org/bokeh.js"></script>').found


def test_a_file_shows_its_numbers(visit, file):
    url, grid, tables = file
    page = visit(url)

    def stored(learner, **moved):
        where = {**at, **moved}
        return tables[learner][tuple(v.index(where[x]) for x, v in grid.items() if x in model.DEPENDS[learner])]

    for name, key in [("p_spu", "ArrowLeft"), ("pi_spu", "Home"), ("time", "End")]:
        page.move(name, key)
        at = page.state()
        for learner in tables:
            assert_shown(page.shown(learner), stored(learner), at["p_spu"])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_shown(page.shown("ridge"), stored("ridge", kappa=0.0), at["p_spu"])
    page.choose("learner", "whitened")
    page.choose("horizontal", "pi_core")
    page.choose("value", "aligned minus conflicting accuracy")
    curve, plane, time = page.drawn("curve"), page.drawn("plane"), page.drawn("time")
    for i, p in enumerate(grid["p_spu"]):
        found = [curve[f"{who}_{part}"][i] for who in ("chosen", "sl") for part in ("aligned", "conflicting")]
        both = [*stored("whitened", p_spu=p)[:2], *stored("supervised", p_spu=p)[:2]]
        np.testing.assert_allclose(found, both, rtol=0, atol=ROUNDING)
    for value, j, i in zip(plane["value"], plane["x"], plane["y"], strict=True):
        aligned, conflicting, _ = stored("whitened", pi_core=grid["pi_core"][int(j)], mu_spu=grid["mu_spu"][int(i)])
        np.testing.assert_allclose(value, aligned - conflicting, rtol=0, atol=2 * ROUNDING)
    np.testing.assert_allclose(time["aligned"], [stored("training", time=t)[0] for t in grid["time"]], atol=ROUNDING)
    rules = page.drawn("rules")
    angles = [stored(learner)[2] for learner in model.LEARNERS]
    found = np.arctan2(rules["y1"].astype(float), rules["x1"].astype(float))
    np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * np.array(angles)), rtol=0, atol=2e-4)


@pytest.mark.slow
def test_what_is_lacking_is_said(visit, file):
    page = visit(file[0])
    page.move("same_class_weight", "Home")  # X6 has the ordinary loss alone
    assert np.isnan(list(page.shown("training").values())).all()
    said = page.page.locator(".note")
    assert "X6 covers the ordinary loss" in " ".join(said.all_inner_texts())
    page.choose("horizontal", "mu_spu")
    assert "choose two different parameters" in " ".join(said.all_inner_texts())
    assert np.isnan(page.drawn("plane")["value"].astype(float)).all()
    lacking = {"supervised": "SL: no prediction", "mmcl": "Linear loss: no prediction"}
    met = set()
    for name, key in [("n", "Home"), ("mu_spu", "Home"), ("mu_spu", "ArrowRight"), ("n", "End")]:
        page.move(name, key)
        for learner, words in lacking.items():
            gone = math.isnan(page.shown(learner)["shifted"])
            assert gone is (words in " ".join(said.all_inner_texts()))
            met.add((learner, gone))
    assert met == {(learner, gone) for learner in lacking for gone in (True, False)}


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits(visit, file, width):
    """No scrolling sideways; one column of figures, or two; everything that can be moved has a name."""
    page = visit(file[0], width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    figures = [page.locator(f".panel:nth-child({i})").bounding_box() for i in (1, 2)]
    assert (figures[0]["y"] == figures[1]["y"]) is (width == 1280)
    assert figures[0]["width"] >= 340
    sliders = page.get_by_role("slider").all()
    assert len(sliders) == len(file[1]) and all(one.get_attribute("aria-label") for one in sliders)
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in (one.bounding_box() for one in sliders))
    assert page.get_by_role("combobox").count() == 5
    for label in ("learner", "value", "horizontal", "vertical", "masking: of unmentioned details"):
        assert page.get_by_label(label, exact=True).count() == 1


@pytest.mark.slow
def test_the_whole_file_is_the_librarys(visit, tmp_path):
    """At random positions of its sliders, reached by the keyboard."""
    config = Config({"sigma_core": 0.8, "p_spu": 0.83, "n": 200.0}, "mean")
    (tmp_path / "page.html").write_text(export.html(config), encoding="utf-8")
    page = visit((tmp_path / "page.html").as_uri())
    rng = np.random.default_rng(0)
    for _ in range(6):
        for name in config.grid:
            page.move(name, rng.choice(["ArrowLeft", "ArrowRight", "Home", "End"]))
        assert_is_the_librarys(page, "mean")


def assert_is_the_librarys(page, masking, moved=None, atol=ROUNDING):
    at = {**page.state(), **(moved or {})}
    here = np.array([[at[name] for name in NAMES]])
    for learner in (*model.LEARNERS, "training"):
        if learner == "training" and at["same_class_weight"] != 0.5:
            continue
        expected = np.asarray(model.predict(here, learner, masking))[0]
        assert_shown(page.shown(learner), expected, at["p_spu"], atol)


@pytest.mark.slow
def test_the_live_page_is_the_librarys(visit):
    """The command itself, until Ctrl-C. What is computed there is rounded once."""
    command = [sys.executable, "-m", "sims.explore", "--noopen", "--sigma_core=0.8", "--n=200"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            url = running.stdout.readline().split(" ")[0]
            assert re.fullmatch(r"http://localhost:\d+/", url), url
            page = visit(url)
            page.page.get_by_label("masking: of unmentioned details").select_option(label="mean")
            for name, key in {"p_spu": "PageDown", "pi_core": "Home", "sigma_image": "End", "kappa": "End"}.items():
                page.move(name, key)
                page.page.locator("#state", has_text="masking = mean").wait_for()
                assert_is_the_librarys(page, "mean", atol=0.501e-4)
            with pytest.raises(AssertionError, match="Not equal to tolerance"):
                assert_is_the_librarys(page, "mean", moved={"pi_core": 1.0})
            assert len(page.drawn("plane")["value"]) == len(model.axis("p_spu")) * len(model.axis("mu_spu"))
            assert DIALS["p_spu"].values == tuple(page.drawn("curve")["p"])
            assert page.wrong == []
        finally:
            running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) == 0
        assert running.stderr.read().splitlines()[-1] == "Stopped."
        page.slider("p_spu").press("Home")  # nothing answers, and no number of before is left
        page.page.locator("#state", has_text="Computing").wait_for()
        assert page.page.locator("tr").count() == 0
        page.wrong.clear()  # the lost connection

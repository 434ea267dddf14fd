"""`sims.report`: what the page says of finished, unfinished and damaged runs, ledgers, and what is none."""

import functools
import html.parser
import json
import re
import shutil

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sims import report, show
from sims.engine import runs as engine
from sims.engine import store
from sims.engine.flags import DEFAULTS
from sims.engine.grid import Grid, Task
from tests.helpers import assert_refused, contents, interrupt_write

GRID = Grid(
    {"task": ("a", "b")},
    lambda _: Task(lambda key, point: jax.numpy.stack([point["x"]])),
    {"x": (1.0, 2.0)},
    {"value": ("y",)},
    seeds=2,
    seed=0,
)
TINY = engine.Experiment(
    "tiny",
    "measured",
    lambda dataset: {"name": [f"<b>{i}</b>" for i in range(50)], "value": np.arange(50) / 3},
    lambda dataset: plt.figure(figsize=(1, 1)),
    lambda dataset: "a < b\nagrees",
)


def measured(out):
    TINY.run({"command": "tiny", "seeds": 2}, GRID, lambda _: xr.Dataset(), out, DEFAULTS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run and one that was interrupted."""
    root = tmp_path_factory.mktemp("runs")
    measured(root / "done")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_write(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            measured(root / "half")
    return root


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    """This module as that of the experiment."""
    monkeypatch.setitem(show.MODULES, "tiny", __name__)
    monkeypatch.setattr("tests.test_report.EXPERIMENT", TINY, raising=False)


@pytest.fixture
def call(mmcl):
    return functools.partial(mmcl, report, operands=("the folders of runs",), repeated=True)


def test_the_page_has_what_the_run_has_and_needs_no_other_file(runs, tmp_path, call):
    code, out, err = call(runs / "done", f"--out={tmp_path}/page.html", "--rows=3")
    assert (code, err) == (0, "") and "page.html" in out
    page = (tmp_path / "page.html").read_text()
    assert "tiny --seeds=2" in page and "jax " in page and "git_commit" in page
    assert "<pre>a &lt; b\nagrees</pre>" in page
    assert page.count("data:image/png;base64,") == 1
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert "&lt;b&gt;0&lt;/b&gt;" in page and "<td>0.666667</td>" in page and "<td>0.333333</td>" in page
    assert "<b>" not in page and "47 more rows are in summary.csv." in page
    assert "Unfinished" not in page

    class Balanced(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            self.open += [] if tag in ("img", "meta") else [tag]

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Balanced()
    parser.feed(page)
    assert parser.open == []


def test_runs_in_a_folder_are_each_reported_and_an_unfinished_one_as_such(runs, tmp_path, call):
    assert call(runs, f"--out={tmp_path}/page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert page.index("/done</h2>") < page.index("/half</h2>")
    done, blocks = store.progress(runs / "half")
    assert 0 < done < blocks and f"Unfinished: {done} of {blocks} blocks are done." in page
    damaged = tmp_path / "damaged"
    shutil.copytree(runs / "done", damaged)
    chunk = next(p for p in (damaged / store.RESULTS).rglob("c/*") if p.is_file() or p.is_dir())
    shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
    assert call(damaged, f"--out={tmp_path}/page.html")[0] == 0
    assert "Unfinished or damaged: " in (tmp_path / "page.html").read_text()


def test_folders_at_any_depth_and_the_audit_of_captions(runs, tmp_path, call):
    shutil.copytree(runs / "done", tmp_path / "a" / "deep" / "down")
    audited = tmp_path / "b" / "audit"
    audited.mkdir(parents=True)
    (audited / "audit.json").write_text(
        json.dumps({"settings": {"captions": "table.csv", "words": None}, "totals": {}})
    )
    (audited / "groups.csv").write_text("class,captions\ncat,3\n")
    assert call(tmp_path, f"--out={tmp_path}/page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert page.index("/a/deep/down</h2>") < page.index("/b/audit</h2>") and page.count("<h2>") == 2
    assert "captions_audit --captions=&quot;table.csv&quot;<" in page and "<td>cat</td>" in page
    for content, said in (("{}", "audit.json has no settings"), ("{", "audit.json is damaged")):
        (audited / "audit.json").write_text(content)
        assert call(tmp_path, f"--out={tmp_path}/page.html")[0] == 0
        assert said in (tmp_path / "page.html").read_text()


def test_another_program_s_folder_is_left_out_and_a_link_is_followed_once(runs, tmp_path, call):
    (tmp_path / "all" / "foreign").mkdir(parents=True)
    (tmp_path / "all" / "foreign" / "config.json").write_text('{"architectures": ["BertModel"]}')
    (tmp_path / "all" / "latest").symlink_to(runs / "done")
    (tmp_path / "all" / "round").symlink_to(tmp_path / "all")
    assert call(tmp_path / "all", f"--out={tmp_path}/page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<h2>") == 2 and "/latest</h2>" in page and "Left out: its config.json is not" in page
    assert_refused(call(tmp_path / "all" / "foreign", f"--out={tmp_path}/page.html"), "its config.json is damaged")


def test_a_ledger_is_counted(tmp_path, call):
    row = {"label": "T1", "claim": "a < b", "gap": {"predicted": 0.25, "measured": 1 / 3}, "verdict": "holds"}
    rows = [{**row, "wrong": [["x", "9"], ["y", "8"]], "missed": [], "good": True}]
    (tmp_path / "ledger.json").write_text(json.dumps({"rows": rows}))
    assert call(tmp_path / "ledger.json", f"--out={tmp_path}/page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "<p>1 of 1 rows good, 2 wrong theories rejected, 0 missed</p>" in page
    assert "<td>a &lt; b</td><td>0.25</td><td>0.333333</td>" in page
    bad = [*rows, {**rows[0], "missed": ["x"], "good": False}]
    (tmp_path / "ledger.json").write_text(json.dumps({"rows": bad}))
    assert call(tmp_path / "ledger.json", f"--out={tmp_path}/page.html")[0] == 0
    assert (
        "<p class=bad>1 of 2 rows good, 3 wrong theories rejected, 1 missed</p>" in (tmp_path / "page.html").read_text()
    )


@pytest.mark.parametrize("name, said", [
    ("none", "neither it nor a folder in it has config.json or diagnosis.json or audit.json or lines.csv."),
    ("other.json", "is not a ledger of `python -m proofs_checks --json`"),
    ("broken", "its config.json is damaged"),
])  # fmt: skip
def test_what_is_no_run_is_refused_and_nothing_written(name, said, runs, tmp_path, call):
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    before = contents(tmp_path)
    assert_refused(call(runs / "done", tmp_path / name, f"--out={tmp_path}/page.html"), said)
    assert contents(tmp_path) == before
    assert_refused(call(f"--out={tmp_path}/page.html"), "needs the folders of runs")
    assert_refused(call(runs / "done", f"--out={tmp_path}"), "--out must be a file, got the folder")


def test_a_diagnosis_is_a_run(tmp_path, call):
    (tmp_path / "diagnosis.json").write_text(json.dumps({"settings": {"folds": 10, "rank": None}}))
    (tmp_path / "advice.csv").write_text(f"learner,gain\nmmcl,{np.pi}\n")
    assert call(tmp_path, f"--out={tmp_path}/page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "diagnose --folds=10" in page and "<td>3.14159</td>" in page and "rank" not in page


def test_a_run_without_results_is_unfinished_and_a_broken_file_does_not_end_the_page(runs, tmp_path, call):
    for name in ("begun", "broken", "done"):
        (tmp_path / name).mkdir()
    shutil.copy(runs / "done" / "config.json", tmp_path / "begun")
    (tmp_path / "broken" / "diagnosis.json").write_text("{}")
    (tmp_path / "broken" / "empty.csv").write_text("")
    (tmp_path / "done" / "lines.csv").write_text("seed,share\n4294967295,0.123456789\n")
    assert call(tmp_path, f"--out={tmp_path}/page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "Unfinished: nothing is measured yet." in page and "diagnosis.json has no settings" in page
    assert "<td>4294967295</td><td>0.123457</td>" in page

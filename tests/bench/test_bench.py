"""The bench at tiny sizes: its agreement checks, its table and its command. Nothing here judges a time."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest

from sims.bench import __main__ as command
from sims.bench import jobs as bench_jobs
from sims.bench import report
from sims.bench.baselines import numpy_ambient, scipy_cells
from sims.bench.jobs import Differs, Result, Row, Sizes
from sims.engine.flags import UsageError
from tests.helpers import assert_refused

LONG = pytest.mark.long

TINY = Sizes(
    cells=4,
    scipy_cells=8,
    n=16,
    dim=20,
    runs=8,
    numpy_runs=1,
    law_runs=400,
    law_n=20,
    law_dim=8,
    margin_n=20,
    margin_dim=60,
    gradient_runs=2,
    torch_runs=1,
    steps=3,
    device_seeds=2,
    counts=(100,),
    dims=(20,),
    scenes=512,
    batch=256,
    peak=16,
    mixture_cells=8,
    features_n=400,
    features_dim=6,
    head_runs=2,
    head_epochs=2,
)


@pytest.fixture(autouse=True)
def _float32(float32):
    """As the command measures."""


def test_the_command_knows_every_job():
    assert tuple(bench_jobs.JOBS) == report.JOBS


@pytest.mark.costly
@pytest.mark.parametrize("job", ["theory", "max_margin"])
def test_a_job_agrees_with_its_baseline_and_is_timed(job):
    if job == "max_margin":
        pytest.importorskip("sklearn")
    result = bench_jobs.run(job, TINY, 5)
    for row in result.rows:
        assert row.remark == "" and row.ours > 0
        assert row.ratio is None or row.ratio > 0
    assert result.rows
    text = report.table({job: result})
    assert all(row.job in text for row in result.rows) and all(note in text for note in result.notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "job",
    [
        "gradient",
        "heads",
        "start",
        "features",
        "mixture",
        *(pytest.param(j, marks=LONG) for j in "sampler devices digits".split()),
    ],
)
def test_the_other_jobs(job):
    if job in ("gradient", "heads"):
        pytest.importorskip("torch")
    result = bench_jobs.run(job, TINY, 5)
    assert all(row.remark == "" and row.ratio > 0 for row in result.rows), result.rows
    assert result.rows


def off_by(module, name, change):
    """The baseline with another answer."""
    right = getattr(module, name)
    return lambda *args, **kwargs: change(right(*args, **kwargs))


WRONG = {
    "theory": (scipy_cells, "accuracy", lambda x: x + 0.002),
    "sampler": (numpy_ambient, "accuracy", lambda x: x - 0.05),
}


@pytest.mark.parametrize("job", [pytest.param("sampler", marks=LONG), "theory"])
def test_a_wrong_baseline_is_refused(job, monkeypatch):
    module, name, change = WRONG[job]
    monkeypatch.setattr(module, name, off_by(module, name, change))
    monkeypatch.setattr(bench_jobs, "interleaved", lambda *_: pytest.fail("timed what differs"))
    (row,) = bench_jobs.run(job, TINY, 5).rows
    assert row.met is False and "results differ" in row.remark and math.isnan(row.ours)
    assert "results differ" in report.table({job: Result([row])})


def test_a_wrong_margin_is_refused(monkeypatch):
    module = pytest.importorskip("sims.bench.baselines.sklearn_margin")
    monkeypatch.setattr(module, "margin", off_by(module, "margin", lambda x: 1.002 * x))
    (row,) = bench_jobs.run("max_margin", TINY, 5).rows
    assert "results differ" in row.remark


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sims.bench.baselines.torch_gradient", None)
    (row,) = bench_jobs.run("gradient", TINY, 5).rows
    assert row.remark == "not installed; pip install torch"
    assert "pip install torch" in report.table({"gradient": Result([row])})


def test_agreement():
    nan = np.nan
    bench_jobs.agree("x", [1.0, nan], [1.0005, nan], 1e-3)
    for ours, theirs in (([1.0], [1.002]), ([nan], [1.0]), ([1.0], [nan])):
        with pytest.raises(Differs):
            bench_jobs.agree("x", ours, theirs, 1e-3)


def test_laws():
    """One law passes; a shift that 2,000 draws can see does not, nor an undefined answer."""
    draws = np.random.default_rng(0).standard_normal((2, 2000, 2))
    bench_jobs.same_law("x", *draws)
    for wrong in (draws[1] + [0, 0.5], draws[1] * [1, 2]):
        with pytest.raises(Differs):
            bench_jobs.same_law("x", draws[0], wrong)


def test_calls_are_timed_in_turn():
    order = []
    seconds = bench_jobs.interleaved(3, lambda: order.append("a"), lambda: order.append("b"))
    assert order == ["a", "b"] * 4  # the first of each does not count
    assert [len(s) for s in seconds] == [3, 3]


def test_ratios_and_goals():
    ours, theirs = np.array([1.0, 2.0, 4.0]), np.array([30.0, 20.0, 10.0])
    faster = bench_jobs.compare("x", "run", ours, theirs, least=10)
    assert (faster.ratio, faster.spread, faster.met, faster.goal) == (10.0, (2.5, 30.0), True, ">= 10x")
    overhead = bench_jobs.compare("x", "run", theirs, ours, most=5)
    assert (overhead.ratio, overhead.spread, overhead.met) == (10.0, (2.5, 30.0), False)
    assert bench_jobs.compare("x", "run", ours, theirs).met is None


def test_the_table_and_its_json():
    row = Row("x", "run", 2e-6, 0.5, 250_000.0, (1e5, 3e5), ">= 10,000x", True, "bits: 50%")
    results = {"x": Result([row, dataclasses.replace(row, ours=float("nan"), remark="gone")], ["a note"])}
    text = report.table(results)
    assert "2 us / run" in text and "250,000 (100,000..300,000)" in text and "gone" in text
    assert text.endswith("a note")
    found = json.loads(report.as_json({"jax": "0"}, results))
    assert found["jobs"]["x"]["rows"][0]["ratio"] == 250_000 and found["jobs"]["x"]["rows"][1]["ours"] is None


@pytest.mark.parametrize("jobs, repeats", [(("theory", "warp"), 5), (("",), 5), (("theory",), 4), (("theory",), -1)])
def test_what_is_not_allowed(jobs, repeats):
    with pytest.raises(UsageError, match=r"--jobs must be of theory, |--repeats must be >= 5"):
        report.check(jobs, repeats)


@pytest.mark.parametrize(
    "flag", ["--jobs=warp", "--jobs=", "--repeats=0", "--repeats=many", "--json=/nowhere/at/all.json"]
)
def test_bad_flags_exit_with_two_and_one_line(mmcl, flag):
    assert_refused(mmcl(command, flag), flag.split("=")[0].lstrip("-"))

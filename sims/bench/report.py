"""Run the jobs one after another, and show their results as a table and as JSON. JAX is imported late."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sims.engine import tables
from sims.engine.flags import UsageError

if TYPE_CHECKING:
    from sims.bench.jobs import Result, Row, Sizes

JOBS = (
    "theory",
    "sampler",
    "gradient",
    "max_margin",
    "mixture",
    "features",
    "heads",
    "devices",
    "digits",
    "clip",
    "start",
)
_PACKAGES = ("jax", "numpy", "scipy", "scikit-learn", "torch", "open_clip_torch")


def versions() -> dict[str, Any]:
    """What the figures depend on: the versions, the device and the cores."""
    import jax

    entries: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            entries[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            entries[package] = "not installed"
    device = jax.local_devices()[0]
    entries["device"] = f"{len(jax.local_devices())} x {_cpu() if device.platform == 'cpu' else device.device_kind}"
    entries["cores"] = len(os.sched_getaffinity(0))
    return entries


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n")
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


def check(jobs: Sequence[str], repeats: int) -> None:
    """Raise UsageError for an unknown job, or too few repeats."""
    for job in jobs:
        if job not in JOBS:
            raise UsageError(f"--jobs must be of {', '.join(JOBS)}, got {job!r}.")
    if repeats < 5:
        raise UsageError(f"--repeats must be >= 5, got {repeats}.")


def run(jobs: Sequence[str], repeats: int, sizes: "Sizes | None" = None) -> dict[str, "Result"]:
    """Run the jobs; returns their results by name."""
    from tqdm import tqdm

    from sims.bench import jobs as bench_jobs

    sizes = bench_jobs.Sizes() if sizes is None else sizes
    results = {}
    bar = tqdm(bench_jobs.names(jobs), unit="job", disable=None)
    for job in bar:
        bar.set_description(job)
        results[job] = bench_jobs.run(job, sizes, repeats)
    return results


def table(results: dict[str, "Result"]) -> str:
    """The rows of all jobs, then their notes."""
    rows = [("job", "ours", "baseline", "ratio (smallest..largest)", "goal", "met", "bound")]
    rows += [_cells(row) for result in results.values() for row in result.rows]
    notes = [note for result in results.values() for note in result.notes]
    return "\n".join([tables.as_text(rows), *([""] if notes else []), *notes])


def _cells(row: "Row") -> tuple[str, ...]:
    if row.remark:
        return row.job, "", row.remark, "", row.goal, "", ""
    ratio = ""
    if row.ratio is not None and row.spread is not None:
        ratio = f"{_short(row.ratio)} ({_short(row.spread[0])}..{_short(row.spread[1])})"
    met = {True: "yes", False: "NO", None: ""}[row.met]
    ours = f"{_seconds(row.ours)} / {row.unit}"
    return row.job, ours, "" if row.baseline is None else _seconds(row.baseline), ratio, row.goal, met, row.bound


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _seconds(x: float) -> str:
    scale, unit = next(((scale, unit) for scale, unit in ((1, "s"), (1e3, "ms")) if x * scale >= 1), (1e6, "us"))
    return f"{x * scale:.3g} {unit}"


def as_json(facts: dict[str, Any], results: dict[str, "Result"]) -> str:
    """Versions and results; what is not a number is null."""
    whole = {"versions": facts, "jobs": {job: dataclasses.asdict(result) for job, result in results.items()}}
    return json.dumps(whole, indent=1).replace("NaN", "null") + "\n"

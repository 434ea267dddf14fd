"""Run the checks of the named statements and show their rows."""

import concurrent.futures
import dataclasses
import importlib
import json
import math
import multiprocessing
import pathlib
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from tqdm import tqdm

from proofs_checks.ledger import FAILS, REFUTED, Gap, Row
from sims import files

COLUMNS = (
    f"{'':4} {'claim':104} {'predicted':>11} {'measured':>11} {'+- se':>8} {'allowed':>8} {'z':>7} {'limit':>6}"
    "  verdict, rejected"
)

# Statements in the order of their seconds; the others are shorter.
LONGEST = ("X10", "X9", "X2", "X5", "X3", "X1", "T6", "T4", "T2", "T3", "X8")


def module(label: str):
    """The module of a statement."""
    return importlib.import_module(f"proofs_checks.{label.lower()}")


def judged(labels: Sequence[str], effort: int) -> Iterator[Row]:
    """A row for every check of the statements, in float64, as it comes; a check that raises is a row that fails.

    effort: factor on the number of runs, >= 1.
    """
    for label in labels:
        for check in module(label).CHECKS:
            start = time.perf_counter()
            with jax.enable_x64(True):
                try:
                    row = check(effort)
                except Exception as error:
                    tqdm.write(traceback.format_exc(), file=sys.stderr)
                    nan = float("nan")
                    reason = " ".join(f"{check.__name__}: {type(error).__name__}: {error}".split())
                    row = Row(reason, Gap(nan, nan, None, nan, nan), FAILS, ())
            yield dataclasses.replace(row, label=label, seconds=time.perf_counter() - start)


def ledger(labels: Sequence[str], effort: int, workers: int = 1) -> list[Row]:
    """`judged`, a statement a job of `workers` processes, the longest first; rows are printed as they come.

    A process keeps what it has compiled for its next statement. Progress is shown on stderr.

    Returns the rows in the order of the statements.
    """
    rows: dict[str, list[Row]] = {label: [] for label in labels}
    print(COLUMNS)
    total = sum(len(module(label).CHECKS) for label in labels)
    with tqdm(total=total, unit="check", disable=None) as bar:

        def show(row: Row) -> None:
            rows[row.label].append(row)
            tqdm.write(text(row))
            sys.stdout.flush()
            bar.update()

        if workers == 1 or len(labels) == 1:
            for row in judged(labels, effort):
                show(row)
        else:
            spawn = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(workers, spawn) as pool:
                jobs = [pool.submit(_statement, label, effort) for label in sorted(labels, key=_rank)]
                for job in concurrent.futures.as_completed(jobs):
                    for row in job.result():
                        show(row)
    return [row for label in labels for row in rows[label]]


def _rank(label: str) -> int:
    return LONGEST.index(label) if label in LONGEST else len(LONGEST)


def _statement(label: str, effort: int) -> list[Row]:
    return list(judged([label], effort))


def text(row: Row) -> str:
    """A row as one line."""
    gap = row.gap
    se = "exact" if gap.se is None else f"{gap.se:.1e}"
    missed = f", MISSED {', '.join(row.missed)}" if row.missed else ""
    verdict = f"{row.verdict}, {len(row.rejected)}/{len(row.rejected) + len(row.missed)}{missed}, {row.seconds:.1f} s"
    allowed = f"{gap.allowed:.2g}" if gap.allowed else ""
    values = f"{gap.predicted:11.6g} {gap.measured:11.6g} {se:>8} {allowed:>8} {gap.z:7.2g} {gap.limit:6.2g}"
    return f"{row.label:4} {row.claim:104} {values}  {verdict}"


def summary(rows: Sequence[Row]) -> str:
    """Counts of verdicts."""
    bad = [row for row in rows if not row.good]
    refuted = sum(row.verdict == REFUTED for row in rows)
    wrong = sum(len(row.rejected) for row in rows)
    seconds = sum(row.seconds for row in rows)
    lines = [
        f"{len(rows) - len(bad)} of {len(rows)} rows are good ({refuted} refuted as stated); {wrong} wrong theories"
        f" rejected, {sum(len(row.missed) for row in rows)} missed; {seconds:.0f} s."
    ]
    return "\n".join([*lines, *(f"BAD {text(row)}" for row in bad)])


def write_json(target: pathlib.Path, rows: Sequence[Row], profile: str) -> None:
    """Write the rows, whole or not at all."""
    statements = {label: module(label).STATEMENT for label in dict.fromkeys(row.label for row in rows)}
    content = {
        "profile": profile,
        "statements": statements,
        "rows": [_finite(_record(row)) for row in rows],
    }
    files.write_text(target, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _record(row: Row) -> dict[str, Any]:
    return dataclasses.asdict(row) | {"good": row.good, "missed": row.missed, "excess": row.gap.excess}


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have: an infinite or undefined z."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value

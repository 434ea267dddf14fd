"""Run the checks of the named statements and show their rows."""

import contextlib
import dataclasses
import importlib
import multiprocessing
import queue
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from proofs_checks.ledger import FAILS, REFUTED, Gap, Row
from proofs_checks.store import Key
from sims.engine.flags import WorkFailed

COLUMNS = (
    f"{'':4} {'claim':104} {'predicted':>11} {'measured':>11} {'+- se':>8} {'allowed':>8} {'z':>7} {'limit':>6}"
    "  verdict, rejected"
)

# The statements that take longest, longest first.
LONGEST = ("X13", "X10", "X11", "X9", "X2", "X5", "X3", "X1", "T6", "T4", "T2", "T3", "X8")


def module(label: str):
    """The module of a statement."""
    return importlib.import_module(f"proofs_checks.{label.lower()}")


def judged(labels: Sequence[str], effort: int, known: Collection[Key] = ()) -> Iterator[Row]:
    """Yield a row for every check of the statements, in float64; a check that raises gives a row that fails.

    effort: factor on the number of runs, >= 1.
    known: (label, check) of checks to leave out.
    """
    for label in labels:
        for check in module(label).CHECKS:
            if (label, check.__name__) in known:
                continue
            start = time.perf_counter()
            with jax.enable_x64(True):
                try:
                    row = check(effort)
                except Exception as error:
                    tqdm.write(traceback.format_exc(), file=sys.stderr)
                    nan = float("nan")
                    reason = " ".join(f"{check.__name__}: {type(error).__name__}: {error}".split())
                    row = Row(reason, Gap(nan, nan, None, nan, nan), FAILS, ())
            seconds = time.perf_counter() - start
            yield dataclasses.replace(row, label=label, check=check.__name__, seconds=seconds)


def ledger(
    labels: Sequence[str],
    effort: int,
    workers: int = 1,
    known: Mapping[Key, Row] | None = None,
    keep: Callable[[Sequence[Row]], None] | None = None,
    only: Collection[Key] | None = None,
) -> list[Row]:
    """Judge the statements with `workers` processes, the longest first, and print each row once it is judged.

    A process takes one statement after another and reuses its compiled programs. Progress is shown on stderr.

    known: rows of an earlier run, which are shown but not judged again.
    keep: called after each row with all rows so far, in the order of the checks.
    only: the checks to judge; None: all of the statements.
    Returns the rows in the order of the checks.
    Raises: WorkFailed if a process exits before its work is done.
    """
    every = [(label, check.__name__) for label in labels for check in module(label).CHECKS]
    order = every if only is None else [key for key in every if key in only]
    left_out = {*every} - {*order}
    rows = {key: row for key, row in (known or {}).items() if key in order}
    print(COLUMNS)
    for key in order:
        if key in rows:
            tqdm.write(text(rows[key]))
    open_labels = [label for label in labels if any(key not in rows for key in order if key[0] == label)]
    with tqdm(total=len(order), initial=len(rows), unit="check", disable=None) as bar:
        if workers == 1 or len(open_labels) <= 1:
            coming = judged(open_labels, effort, left_out | set(rows))
        else:
            coming = _judged_by_processes(sorted(open_labels, key=_rank), effort, left_out | set(rows), workers)
        with contextlib.closing(coming):
            for row in coming:
                rows[row.label, row.check] = row
                tqdm.write(text(row))
                sys.stdout.flush()
                bar.update()
                if keep:
                    keep([rows[key] for key in order if key in rows])
    return [rows[key] for key in order]


def _judged_by_processes(labels: Sequence[str], effort: int, known: Collection[Key], workers: int) -> Iterator[Row]:
    """`judged` by processes that share the statements; they end with this iterator, or with this process."""
    spawn = multiprocessing.get_context("spawn")
    jobs, results = spawn.SimpleQueue(), spawn.Queue()
    for label in [*labels, *[None] * workers]:
        jobs.put(label)
    processes = [spawn.Process(target=_work, args=(jobs, results, effort, known), daemon=True) for _ in range(workers)]
    # Only this process handles an interrupt: the others inherit the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for process in processes:
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    working = workers
    try:
        while working:
            try:
                row = results.get(timeout=1)
            except queue.Empty:
                if code := next((p.exitcode for p in processes if p.exitcode), None):
                    raise WorkFailed(f"a process ended with exit code {code}; rows judged before it stay.") from None
                continue
            if row is None:
                working -= 1
            else:
                yield row
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _work(jobs: Any, results: Any, effort: int, known: Collection[Key]) -> None:
    """Judge the statements of `jobs` up to None, which is passed on."""
    parent = multiprocessing.parent_process()
    while (label := jobs.get()) is not None:
        for row in judged([label], effort, known):
            if not parent.is_alive():
                return
            results.put(row)
    results.put(None)


def _rank(label: str) -> int:
    return LONGEST.index(label) if label in LONGEST else len(LONGEST)


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
    """The number of rows of each verdict, as text."""
    bad = [row for row in rows if not row.good]
    refuted = sum(row.verdict == REFUTED for row in rows)
    wrong = sum(len(row.rejected) for row in rows)
    seconds = sum(row.seconds for row in rows)
    lines = [
        f"{len(rows) - len(bad)} of {len(rows)} rows are good ({refuted} refuted as stated); {wrong} wrong theories"
        f" rejected, {sum(len(row.missed) for row in rows)} missed; {seconds:.0f} s."
    ]
    return "\n".join([*lines, *(f"BAD {text(row)}" for row in bad)])

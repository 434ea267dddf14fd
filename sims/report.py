"""One HTML page of any runs: settings, verdicts, tables, figures and versions; it needs no other file.

    python -m sims.report runs/sweep_spurious runs/paper runs/ledger.json --out=report.html

A run is the folder of any command, a folder that has such folders at any depth, or what `python -m proofs_checks
--json` wrote. An unfinished run is reported as such, with the share that is done.
"""

import csv
import html
import importlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import flags

from sims import show
from sims.engine import page
from sims.engine.flags import UsageError, check_range, define, integer, path, run_main

_RECORDS = {"diagnosis.json": "diagnose", "audit.json": "captions_audit"}  # files with settings, of commands
_MARKS = ("config.json", *_RECORDS, "lines.csv")  # any of which makes a folder that of a run
_LEDGER = ("label", "claim", "predicted", "measured", "verdict", "wrong theories rejected")


def report(run: pathlib.Path, rows: int) -> str:
    """The part of the page on one run, or on each of the runs in a folder. rows: of a table that are shown.

    Raises: UsageError if there is no run.
    """
    if run.is_file():
        return _ledger(run)
    folders = list(_folders(run, set()))
    if not folders:
        raise UsageError(f"{run} is not the folder of a run: neither it nor a folder in it has {' or '.join(_MARKS)}.")
    parts = []
    for folder in folders:
        try:
            parts.append(_run(folder, rows))
        except UsageError:  # its config.json is another program's, or damaged
            if folder == run:
                raise
            name = html.escape(str(folder))
            parts.append(f"<h2>{name}</h2><p class=bad>Left out: its config.json is not that of a run, or damaged.</p>")
    return "\n".join(parts)


def _folders(root: pathlib.Path, seen: set[pathlib.Path]) -> Iterator[pathlib.Path]:
    """The folders of runs at or below root, by name, each once; what is inside a run's folder is the run's own."""
    if not root.is_dir() or (place := root.resolve()) in seen:
        return
    seen.add(place)
    if any((root / name).exists() for name in _MARKS):
        yield root
        return
    for inner in sorted(root.iterdir()):
        yield from _folders(inner, seen)


def _ledger(file: pathlib.Path) -> str:
    """The judged statements of a JSON file."""
    try:
        judged = json.loads(file.read_text(encoding="utf-8"))["rows"]
        cells = [[_cell(row, name) for name in _LEDGER] for row in judged]
        good = sum(bool(row["good"]) for row in judged)
        wrong = sum(len(row["wrong"]) for row in judged), sum(len(row["missed"]) for row in judged)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is not a ledger of `python -m proofs_checks --json` ({error!r}).") from None
    mark = "" if good == len(judged) else " class=bad"
    counted = f"{good} of {len(judged)} rows good, {wrong[0] - wrong[1]} wrong theories rejected, {wrong[1]} missed"
    return f"<h2>Statements: {html.escape(str(file))}</h2><p{mark}>{counted}</p>{page.table(_LEDGER, cells)}"


def _cell(row: dict[str, Any], name: str) -> str:
    if name == "wrong theories rejected":
        return f"{len(row['wrong']) - len(row['missed'])} of {len(row['wrong'])}"
    value = row["gap"].get(name) if name in ("predicted", "measured") else row[name]
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _run(folder: pathlib.Path, rows: int) -> str:
    parts = [f"<h2>{html.escape(str(folder))}</h2>", *_settings(folder)]
    parts += [page.picture(file.read_bytes(), file.stem) for file in sorted(folder.glob("*.png"))]
    parts += [_table(file, rows) for file in sorted(folder.glob("*.csv"))]
    return "\n".join(parts)


def _settings(folder: pathlib.Path) -> list[str]:
    """What the run is, whether it is finished, and what its command printed."""
    from sims.engine import runs, store

    if (folder / "lines.csv").exists():
        return []
    if not (folder / "config.json").exists():
        name, command = next((name, command) for name, command in _RECORDS.items() if (folder / name).exists())
        try:
            stored = json.loads((folder / name).read_text(encoding="utf-8"))["settings"]
        except KeyError:
            return [f"<p class=bad>{name} has no settings: it is damaged, or an earlier version wrote it.</p>"]
        except (OSError, ValueError, TypeError) as error:
            return [f"<p class=bad>{name} is damaged: {html.escape(repr(error))}</p>"]
        return [_list({k: v for k, v in stored.items() if v is not None}, command, {})]
    config = store.read_config(folder)
    provenance = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("provenance", {})
    command = str(config.pop("command", ""))
    parts = [_list(config, command, provenance)]
    if not (folder / store.RESULTS).exists():
        if command in show.MODULES:
            parts.append("<p class=bad>Unfinished: nothing is measured yet.</p>")
        return parts
    done, blocks = store.progress(folder)
    if done < blocks:
        return [*parts, f"<p class=bad>Unfinished: {done} of {blocks} blocks are done.</p>"]
    try:
        dataset = runs.load(folder)
    except Exception as error:  # zarr, its codecs and xarray raise many kinds for a damaged store
        reason = html.escape(" ".join(str(error).split()) or type(error).__name__)
        return [*parts, f"<p class=bad>Unfinished or damaged: {reason}</p>"]
    if dataset.attrs["failed"]:
        parts.append(f"<p class=bad>{dataset.attrs['failed']} runs failed; failed.csv lists them.</p>")
    module = show.MODULES.get(command)
    if module is None:
        return parts
    loaded = importlib.import_module(module)
    shown = getattr(loaded, "EXPERIMENT", loaded).text(dataset)  # the digits have no EXPERIMENT, but a `text`
    return [*parts, f"<pre>{html.escape(shown)}</pre>"]


def _list(settings: dict[str, Any], command: str, provenance: dict[str, Any]) -> str:
    shown = " ".join(f"--{k}={json.dumps(v)}" for k, v in settings.items())
    versions = ", ".join(f"{name} {value}" for name, value in provenance.items() if value)
    made = f"<p>Made with {html.escape(versions)}.</p>" if versions else ""
    return f"<p><code>{html.escape(f'{command} {shown}')}</code></p>{made}"


def _table(file: pathlib.Path, rows: int) -> str:
    with file.open(encoding="utf-8", newline="") as opened:
        header, *body = list(csv.reader(opened)) or [[]]
    more = f"<p>{len(body) - rows:,} more rows are in {html.escape(file.name)}.</p>" if len(body) > rows else ""
    return f"<h3>{html.escape(file.name)}</h3>{page.table(header, [map(_short, row) for row in body[:rows]])}{more}"


def _short(cell: str) -> str:
    """A number with a point, with 6 digits; other text as it is, whole numbers too."""
    try:
        return f"{float(cell):.6g}" if "." in cell else cell
    except ValueError:
        return cell


def _define_flags() -> None:
    define("rows", 40, "rows of each table that are shown, >= 1", integer)
    define("out", "report.html", "file of the page", path)


def _main(*given: str) -> None:
    check_range("rows", flags.FLAGS.rows, 1)
    out = pathlib.Path(flags.FLAGS.out)
    from sims.engine import files

    if out.is_dir():
        raise UsageError(f"--out must be a file, got the folder {out}.")
    files.check_folder(out.parent, f"--out={out}")
    body = "\n".join(report(pathlib.Path(path(run)), flags.FLAGS.rows) for run in given)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, page.page("Report of runs", body))
    print(f"{out}: {out.stat().st_size / 2**20:.2g} MiB")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main, operands=("the folders of runs",), repeated=True)

"""Write a page per statement: what its module says, its section of docs/theory.md, its functions and its rows.

    python -m proofs_checks --json=ledger.json && python -m proofs_checks.pages --json=ledger.json --out=docs/statements

Writes T1.md .. X14.md, README.md (the index) and ledger.png: how far each prediction is from its measurement, and how
far the wrong theories are, in units of what the check allows. Beside the folder goes paper.md: the paper's statements
in its order. All rows must be of one profile and version of the code.
"""

import importlib
import inspect
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from proofs_checks import paper, run, store
from proofs_checks.__main__ import LABELS
from sims.engine.flags import UsageError, define, path, run_main

Row = Mapping[str, Any]
_LOW, _HIGH = 1e-3, 1e4  # limits of ledger.png's axis; points beyond are drawn on its edge


def functions(label: str) -> list[tuple[str, str, str]]:
    """(name, file, summary) of the public functions whose docstring names the statement's module under `Check:`."""
    needle = f"proofs_checks/{label.lower()}.py"
    documented = []
    for package in ("theory", "learners", "zero_shot", "data", "features"):
        module = importlib.import_module(f"mmcl_theory.{package}")
        names = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        for name in names:
            value = getattr(module, name)
            doc = inspect.getdoc(value) or ""
            if needle in doc.partition("Check:")[2]:
                file = value.__module__.replace(".", "/") + ".py"
                documented.append((f"mmcl_theory.{package}.{name}", file, " ".join(doc.partition("\n\n")[0].split())))
    return documented


def derivation(label: str) -> tuple[str, str]:
    """(anchor, text) of the statement's section in docs/theory.md, with links as seen from docs/statements."""
    theory = (store.ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    section = re.search(rf"^### ({label}: [^\n]*)\n\n(.*?)\s*(?=^#{{2,3}} |\Z)", theory, re.MULTILINE | re.DOTALL)
    if not section:
        raise LookupError(f"docs/theory.md has no section '### {label}: ...'")
    text = re.sub(rf"\s+Page:\s+\[{label}\]\([^)]*\)\.", "", section[2])
    text = re.sub(r"\]\((?=[\w/]+\.\w)", "](../", text).replace("](../statements/", "](")
    return _anchor(section[1]), text.replace("](#", "](../theory.md#")


def gallery_entry(picture: str) -> tuple[str, str]:
    """(title, anchor) of a figure's section in docs/gallery.md, which has its command."""
    gallery = (store.ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    section = re.search(rf"^### ([^\n]*)\n\n!\[[^\n]*\]\({re.escape(picture)}\)$", gallery, re.MULTILINE)
    if not section:
        raise LookupError(f"docs/gallery.md has no section with the figure {picture}")
    return section[1], _anchor(section[1])


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def page(label: str, rows: Sequence[Row], profile: str) -> str:
    """Markdown of one statement."""
    module = run.module(label)
    title, _, body = inspect.getdoc(module).partition("\n\n")
    mechanism, _, limits = body.partition("Fails where: ")
    anchor, mathematics = derivation(label)
    code = f"proofs_checks/{label.lower()}.py"
    lines = [f"# {title.rstrip('.')}", "", f"**{module.STATEMENT}.**", "", mechanism.strip(), ""]
    lines += [
        f"[Mathematics](#the-mathematics) | [where it fails](#where-it-fails) | [functions](#functions) | "
        f"[its rows in the ledger](#how-it-was-checked) | [code of the checks](../../{code})",
        "",
    ]
    if picture := getattr(module, "PICTURE", None):
        heading, where = gallery_entry(picture)
        lines += [f"![{heading}](../{picture})", "", *getattr(module, "CAPTION", "").strip().splitlines()]
        lines += [f"[The command that makes this figure](../gallery.md#{where}).", ""]
    lines += ["## The mathematics", "", f"From [the theory](../theory.md#{anchor}).", "", mathematics, ""]
    lines += ["## Where it fails", "", f"Where {limits}", ""]
    lines += ["## Functions", ""]
    lines += [f"* [`{name}`](../../{file}): {summary}" for name, file, summary in functions(label)]
    lines += ["", "## How it was checked", ""]
    lines += [
        f"`python -m proofs_checks --only={label} --profile={profile}`, by [{code}](../../{code}); in brackets what the"
        " check must reject.",
        "",
    ]
    lines += ["| claim | predicted | measured | allowed | z (limit) | verdict |", "|---|---|---|---|---|---|"]
    lines += [_table_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def _table_row(row: Row) -> str:
    gap = row["gap"]
    measured = _number(gap["measured"], 6)
    if gap["se"] is not None:
        measured += f" +- {_number(gap['se'], 1)}"
    wrong = "; ".join(name for name, _ in row["wrong"])
    verdict = row["verdict"] + (f" (missed: {', '.join(row['missed'])})" if row["missed"] else "")
    claim = f"{row['claim']} [{wrong}]".replace("|", "\\|")
    allowed = _number(gap["allowed"], 2) if gap["allowed"] else ""
    z = f"{_number(gap['z'], 2)} ({_number(gap['limit'], 2)})"
    return f"| {claim} | {_number(gap['predicted'], 6)} | {measured} | {allowed} | {z} | {verdict} |"


def _number(value: float | str | None, digits: int) -> str:
    return "-" if value is None else f"{float(value):.{digits}g}"


def index(content: Mapping[str, Any], profile: str) -> str:
    """Markdown of the list of statements."""
    rows = content["rows"]
    good = sum(row["good"] for row in rows)
    wrong = sum(len(row["wrong"]) for row in rows)
    lines = [
        "# The statements, and how each was checked",
        "",
        f"{good} of {len(rows)} checks are good; they reject {wrong} wrong theories (profile {profile}).",
        "",
        "| | statement | checks |",
        "|---|---|---|",
    ]
    for label, statement in content["statements"].items():
        here = [row for row in rows if row["label"] == label]
        refuted = sum(row["verdict"] == "refuted as stated" for row in here)
        note = f", {refuted} refuted as stated" if refuted else ""
        bad = sum(not row["good"] for row in here)
        note += f", {bad} bad" if bad else ""
        text = statement.replace("|", "\\|")
        lines.append(f"| [{label}]({label}.md) | {text} | {len(here)}{note} |")
    lines += ["", "![Every check: prediction and wrong theories, in units of what is allowed](ledger.png)"]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], target: pathlib.Path) -> None:
    """Each row's z over its limit (dot), and those of its wrong theories (crosses), on a log axis."""
    import matplotlib.pyplot as plt

    def place(excess: float | str) -> float:
        return min(max(float(excess), _LOW), _HIGH)  # NaN is not drawn

    figure, ax = plt.subplots(figsize=(9, 0.16 * len(rows) + 1.2), layout="constrained")
    ax.axvspan(_LOW / 2, 1, color="0.92", zorder=0)
    for i, row in enumerate(rows):
        refuted = row["verdict"] == "refuted as stated"
        wrong = [place(excess) for _, excess in row["wrong"]]
        ax.plot(wrong, [i] * len(wrong), "x", color="tab:orange", markersize=4)
        if not refuted:
            ax.plot(place(row["excess"]), i, "o", color="tab:blue", markersize=4)
    ax.set(xscale="log", xlim=(_LOW / 2, _HIGH * 2), ylim=(len(rows), -1))
    labels = [row["label"] for row in rows]
    first = [i for i, label in enumerate(labels) if i == 0 or labels[i - 1] != label]
    ax.set_yticks(first, [labels[i] for i in first])
    for i in first[1:]:
        ax.axhline(i - 0.5, color="0.8", linewidth=0.5)
    ax.set_xlabel("|measured - predicted| in units of what the check allows (grey: it passes)")
    handles = [
        ax.plot([], [], "o", color="tab:blue", markersize=4, label="the prediction")[0],
        ax.plot([], [], "x", color="tab:orange", markersize=4, label="a wrong theory, or a claim refuted as stated")[0],
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def write(content: Mapping[str, Any], out: pathlib.Path) -> None:
    """Write all pages, the index and the figure into `out`, once all pages are made."""
    profile = store.origin(content["rows"])
    pages = {"README.md": index(content, profile)}
    for label in content["statements"]:
        here = [row for row in content["rows"] if row["label"] == label]
        pages[f"{label}.md"] = page(label, here, profile)
    table = paper.markdown(content["rows"])
    out.mkdir(parents=True, exist_ok=True)
    (out.parent / "paper.md").write_text(table)
    for name, text in pages.items():
        (out / name).write_text(text)
    draw(content["rows"], out / "ledger.png")


def _define_flags() -> None:
    define("json", "ledger.json", "file that `python -m proofs_checks --json` wrote", path)
    define("out", "docs/statements", "folder for the pages", path)


def _main() -> None:
    source, out = pathlib.Path(flags.FLAGS.json), pathlib.Path(flags.FLAGS.out)
    try:
        content = json.loads(source.read_text())
        absent = [label for label in LABELS if label not in content["statements"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--json={source} cannot be read as a ledger: {type(error).__name__}: {error}.") from None
    if absent:
        raise UsageError(f"--json={source} must hold every statement, has no {', '.join(absent)}.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out={out} must be a folder.")
    try:
        write(content, out)
    except (KeyError, TypeError) as error:
        raise UsageError(f"--json={source} is not a ledger of this version: {type(error).__name__}: {error}.") from None
    except ValueError as error:
        raise UsageError(f"--json={source} holds {error}; judge all again with `python -m proofs_checks`.") from None
    print(f"{len(content['statements'])} pages in {out}")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)

"""The ledger's rows in a JSON file, which the next run of the same code continues.

Each row carries the profile and the version of the code that judged it. A run replaces only the rows of the statements
that it was asked for; the others are kept, whatever their profile and version.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from proofs_checks.ledger import Gap, Row
from sims.engine import files
from sims.engine.flags import UsageError, WorkFailed

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("mmcl_theory", "proofs_checks", "sims")
NUMERICS = ("flax", "jax", "jaxlib", "numpy", "optax", "scipy", "sympy")

Key = tuple[str, str]  # a row's statement and check
Record = dict[str, Any]  # a row in JSON


def version() -> str:
    """Digest of all that a row depends on: the packages' sources and the versions of their libraries."""
    digest = hashlib.sha256()
    for name in NUMERICS:
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def write(
    target: pathlib.Path,
    statements: Mapping[str, str],
    rows: Sequence[Row],
    profile: str,
    code: str,
    others: Sequence[Record] = (),
) -> None:
    """Write the rows, atomically.

    statements: label to text, of all rows, in their order.  code: `version` when the run began, which a source that is
    edited meanwhile does not change.  others: records of statements that were not asked for.
    Raises: WorkFailed if the file cannot be written.
    """
    order = list(statements)
    mine = [_record(row) | {"profile": profile, "version": code} for row in rows]
    records = sorted([*others, *mine], key=lambda record: order.index(record["label"]))
    content = {"statements": dict(statements), "rows": _in_json(records)}
    try:
        files.write_text(target, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise WorkFailed(f"--json={target} cannot be written: {error.strerror}.") from None


def read(
    target: pathlib.Path, profile: str, labels: Collection[str], overwrite: bool = False
) -> tuple[dict[Key, Row], list[Record]]:
    """(good rows of the statements by this code at this profile, all records of other statements).

    Rows that are not good are left out, so that they are judged again; with `overwrite` all are. Both are empty if
    there is no file, or if the file to overwrite is not a ledger.
    Raises: UsageError if the file is no ledger.
    """
    now = (profile, version())
    try:
        records = json.loads(target.read_text(encoding="utf-8"))["rows"]
        mine = [record for record in records if record["label"] in labels]
        rows = [_row(record) for record in mine if (record["profile"], record["version"]) == now and record["good"]]
        others = [record for record in records if record["label"] not in labels and origin([record])]
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if overwrite:
            return {}, []
        raise UsageError(
            f"--json={target} cannot be read as a ledger ({type(error).__name__}); give --overwrite or another file."
        ) from None
    return {(row.label, row.check): row for row in rows if row.good and not overwrite}, others


def origin(records: Sequence[Record]) -> str:
    """The profile of all records. Raises: ValueError if they are not of one profile and one version of the code."""
    labels = {(record["profile"], record["version"]): record["label"] for record in records}
    if len(labels) != 1:
        several = f"rows of different profiles or versions of the code ({', '.join(labels.values())})"
        raise ValueError(several if labels else "no rows")
    return next(iter(labels))[0]


def _record(row: Row) -> Record:
    return dataclasses.asdict(row) | {"good": row.good, "missed": row.missed, "excess": row.gap.excess}


def _row(record: Record) -> Row:
    gap = Gap(**{name: value if value is None else float(value) for name, value in record["gap"].items()})
    wrong = tuple((str(name), float(excess)) for name, excess in record["wrong"])
    fields = {field.name: record[field.name] for field in dataclasses.fields(Row)}
    return Row(**fields | {"gap": gap, "wrong": wrong, "seconds": float(record["seconds"])})


def _in_json(value: Any) -> Any:
    """The value with "inf", "-inf" and "nan", which float() reads, in place of numbers that JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {k: _in_json(v) for k, v in value.items()}
    return [_in_json(v) for v in value] if isinstance(value, list | tuple) else value

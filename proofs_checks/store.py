"""The ledger's rows in a JSON file: written as they come, and read again by the next run of the same code."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from proofs_checks.ledger import Gap, Row
from sims import files
from sims.flags import UsageError, WorkFailed

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("mmcl_theory", "proofs_checks", "sims")
NUMERICS = ("flax", "jax", "jaxlib", "numpy", "optax", "scipy", "sympy")

Key = tuple[str, str]  # a row's statement and check
Record = dict[str, Any]  # a row in JSON


def version() -> str:
    """Digest of all that a row depends on: the packages' sources and the versions of the libraries under them."""
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
    """Write the rows, whole or not at all.

    statements: label to text, of all rows, in their order.  code: `version` when the run began, which a source that is
    edited meanwhile does not change.  others: records of statements that were not asked for.
    Raises: WorkFailed if the file cannot be written.
    """
    order = list(statements)
    records = sorted([*others, *map(_record, rows)], key=lambda record: order.index(record["label"]))
    content = {
        "profile": profile,
        "version": code,
        "statements": dict(statements),
        "rows": _finite(records),
    }
    try:
        files.write_text(target, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise WorkFailed(f"--json={target} cannot be written: {error.strerror}.") from None


def read(target: pathlib.Path, profile: str, labels: Collection[str]) -> tuple[dict[Key, Row], list[Record]]:
    """Good rows of the statements, and the records of other statements, that this code has written at this profile.

    A row that is not good is not among the first, so that it is judged again. Both are empty where there is no file.
    Raises: UsageError if the file is no ledger.
    """
    try:
        content = json.loads(target.read_text(encoding="utf-8"))
        records = content["rows"] if (content["profile"], content.get("version")) == (profile, version()) else []
        rows = [_row(record) for record in records if record["label"] in labels and record["good"]]
        others = [record for record in records if record["label"] not in labels]
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"--json={target} cannot be read as a ledger ({type(error).__name__}); give --overwrite or another file."
        ) from None
    return {(row.label, row.check): row for row in rows if row.good}, others


def _record(row: Row) -> Record:
    return dataclasses.asdict(row) | {"good": row.good, "missed": row.missed, "excess": row.gap.excess}


def _row(record: Record) -> Row:
    """The row of a record that is good, whose numbers are finite or infinite: null, but of the standard error."""
    gap = Gap(**{name: value if name == "se" else _number(value) for name, value in record["gap"].items()})
    wrong = tuple((str(name), _number(excess)) for name, excess in record["wrong"])
    fields = {field.name: record[field.name] for field in dataclasses.fields(Row)}
    return Row(**fields | {"gap": gap, "wrong": wrong, "seconds": _number(record["seconds"])})


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have: an infinite or undefined z."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value

"""Load a statement of one's own from a file: what `--module` names, held to what the ledger's own modules keep."""

import functools
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Collection

from proofs_checks.ledger import Row
from sims.engine.flags import UsageError

LONGEST_STATEMENT = 115  # characters


def load(file: pathlib.Path, taken: Collection[str]) -> str:
    """Import the file as the module of a statement, which `run.module` then finds, and return its label.

    taken: labels that the statement must not have.
    Raises: UsageError if there is no such file, it cannot be imported, or it is not a statement.
    """
    if not file.is_file() or file.suffix != ".py":
        raise UsageError(f"--module={file} must be a file whose name ends in .py.")
    module = _imported(file)
    doc = inspect.getdoc(module) or ""
    title = re.match(r"([A-Z]+\d+): \S", doc)
    if not title:
        raise UsageError(f"--module={file} needs a docstring that starts with a label and a title, 'X99: ...'.")
    label = title[1]
    if label in taken:
        raise UsageError(f"--module={file} needs a label of its own: the ledger has {label}.")
    if "Fails where: " not in doc:
        raise UsageError(f"--module={file} needs 'Fails where: ...' in its docstring.")
    statement = getattr(module, "STATEMENT", None)
    if not isinstance(statement, str) or not 0 < len(statement) <= LONGEST_STATEMENT or "\n" in statement:
        raise UsageError(f"--module={file} needs STATEMENT, a line of at most {LONGEST_STATEMENT} characters.")
    checks = getattr(module, "CHECKS", None)
    if not isinstance(checks, tuple) or not checks or not all(isinstance(c, types.FunctionType) for c in checks):
        raise UsageError(f"--module={file} needs CHECKS, a tuple of functions with at least one.")
    if len({check.__name__ for check in checks}) < len(checks):
        raise UsageError(f"--module={file} has two CHECKS of one name.")
    module.CHECKS = tuple(map(_returning_a_row, checks))
    sys.modules[f"proofs_checks.{label.lower()}"] = module
    return label


def _imported(file: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"statement_{file.stem}", file.resolve())
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # what dataclasses and pickle look up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file.resolve())
        ]
        line = error.lineno if isinstance(error, SyntaxError) else max(lines[-1:], default=1)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"--module={file} cannot be imported, line {line}: {reason}.") from None
    return module


def _returning_a_row(check: Callable[[int], Row]) -> Callable[[int], Row]:
    @functools.wraps(check)
    def checked(effort: int) -> Row:
        row = check(effort)
        if not isinstance(row, Row):
            raise TypeError(f"a check must return what ledger.judge or ledger.refute returns, got {row!r}")
        return row

    return checked

"""Mutation check: wrong versions of every theory function, each of which the ledger or a test must notice.

A mutant changes one expression of `mmcl_theory/theory/*.py`, of the models' moments, of the zero-shot rule's accuracy
or of the samplers: a sign flipped; a factor, divisor or exponent dropped; a constant raised by one; a comparison
reversed; arguments or the two entries of a vector swapped; p for q = 2 p - 1; n - 1 for n. Expressions about rounding
(`finfo`, `eps`), errors and defaults state no theory and are not changed. Each mutant runs in its own process: first
its module's tests, then the rows of the ledger that use it, until one fails. A mutant that nothing notices survives.
Either `EXPLAINED` says why, or the checks have a gap.
"""

import ast
import concurrent.futures
import contextlib
import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from tqdm import tqdm

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIMEOUT = 1800
WATCHERS = {  # module of mmcl_theory: its tests, and the statements that use it
    "theory.mmcl": ("theory/test_mmcl", ("T2", "T5", "T6", "T4", "X3", "X2")),
    "theory.finite_sample": ("theory/test_finite_sample", ("T2", "T5")),
    "theory.supervised": ("theory/test_supervised", ("X1", "T4", "T3")),
    "theory.spiked": ("theory/test_spiked", ("X2",)),
    "theory.design": ("theory/test_design", ("X4", "X3")),
    "theory.dynamics": ("theory/test_dynamics", ("X6",)),
    "theory.recovery": ("theory/test_recovery", ("X7",)),
    "theory.budget": ("theory/test_budget", ("X8",)),
    "theory.whitened": ("theory/test_whitened", ("X10", "X5")),
    "theory.info_nce": ("theory/test_info_nce", ("X10", "X11")),
    "theory.info_nce_mixtures": ("theory/test_info_nce", ("X13",)),
    "theory.ridge": ("theory/test_ridge", ("X11", "X12")),
    "theory.sup_con": ("theory/test_sup_con", ("T7",)),
    "theory.mixtures": ("theory/test_mixtures", ("X13",)),
    "zero_shot": ("test_zero_shot", ("T2", "T4", "T6")),
    "data.captions": ("test_data", ("T2", "T5", "T4")),
    "data.mixture": ("theory/test_mixtures", ("X13",)),
    "data.group_captions": ("theory/test_mixtures", ("X13",)),
    "data.intra_class": ("test_data", ("T2",)),
    "data.inter_class": ("test_data", ("T4", "T6")),
    "learners.samplers": ("learners/test_samplers", ("X9",)),
    "learners.ridge": ("theory/test_ridge", ("X11",)),
}
_SYMMETRIC = "equivalent: symmetric in a_I and a_T"
EXPLAINED: dict[tuple[str, str], str] = {
    (
        "_noiseless_inter_class",
        "jnp.abs(own) + foreign.sum() -> jnp.abs(own) - foreign.sum()",
    ): "equivalent: 0 times it passes NaN on, whatever its sign",
    (
        "shortcut_bound",
        "0.5 + 2 / jnp.where(says, room, 1.0) + 0 * room -> 0.5 + 2 / jnp.where(says, room, 1.0) - 0 * room",
    ): "equivalent: 0 times room passes NaN on, whatever its sign",
    ("bulk_edge", "_edge(a_i, a_t) -> _edge(a_t, a_i)"): _SYMMETRIC,
    ("bulk_edge", "_squared_value(_edge(a_i, a_t), a_i, a_t) -> _squared_value(_edge(a_i, a_t), a_t, a_i)"): _SYMMETRIC,
    (
        "_adjugate",
        "pair_matrix(matrix[..., 1, 1], -matrix[..., 0, 1], -matrix[..., 1, 0], matrix[..., 0, 0])"
        " -> pair_matrix(matrix[..., 1, 1], -matrix[..., 1, 0], -matrix[..., 0, 1], matrix[..., 0, 0])",
    ): "equivalent: covariances are symmetric",
    (
        "_kkt_residual",
        "[*-eye[pi <= _ACTIVE], *eye[pi >= 1 - _ACTIVE]] -> [*eye[pi >= 1 - _ACTIVE], *-eye[pi <= _ACTIVE]]",
    ): "equivalent: the order of the constraints",
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: in `function` of mmcl_theory.`module`, the expression `before` of line `line` becomes `after`."""

    module: str
    function: str
    line: int
    before: str
    after: str
    source: str = dataclasses.field(repr=False)

    @property
    def change(self) -> str:
        return f"{self.before} -> {self.after}"


def _variants(node: ast.AST) -> Iterator[ast.expr]:
    """The wrong versions of the expression `node`."""
    if isinstance(node, ast.BinOp):
        left, op, right = node.left, node.op, node.right
        if isinstance(op, ast.Sub) and ast.unparse(left).startswith("2 * ") and ast.unparse(right) == "1":
            yield left.right  # p for q
        if isinstance(op, ast.Add):
            yield ast.BinOp(left, ast.Sub(), right)
        elif isinstance(op, ast.Sub):
            yield ast.BinOp(left, ast.Add(), right)
        elif isinstance(op, ast.Mult):
            yield from (left, right)
        elif isinstance(op, ast.Div | ast.Pow):
            yield left
        for side in ("left", "right"):
            operand = getattr(node, side)
            if isinstance(operand, ast.Constant) and isinstance(operand.value, int | float):
                yield ast.BinOp(**{"left": left, "op": op, "right": right, side: ast.Constant(operand.value + 1)})
            if isinstance(operand, ast.Name) and operand.id in ("n", "n_array"):
                less = ast.BinOp(operand, ast.Sub(), ast.Constant(1))
                yield ast.BinOp(**{"left": left, "op": op, "right": right, side: less})
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        turned = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.Gt, ast.GtE: ast.Lt}.get(type(node.ops[0]))
        if turned:
            yield ast.Compare(node.left, [turned()], node.comparators)
    elif isinstance(node, ast.List) and len(node.elts) == 2 and ast.unparse(node.elts[0]) != ast.unparse(node.elts[1]):
        yield ast.List(node.elts[::-1], node.ctx)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) >= 2:
        for i in range(len(node.args) - 1):
            args = [*node.args[:i], node.args[i + 1], node.args[i], *node.args[i + 2 :]]
            if not any(isinstance(a, ast.Starred) for a in args):
                yield ast.Call(node.func, args, node.keywords)


def _expressions(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Expressions that state theory: no docstring, errors, defaults, subscripts' indices, annotations, rounding."""
    stack: list[ast.AST] = list(reversed(function.body))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise | ast.JoinedStr):
            continue
        if isinstance(node, ast.stmt) and not hasattr(node, "body"):
            text = ast.unparse(node)
            if "finfo" in text or "eps" in text or "_checks" in text:
                continue
        if isinstance(node, ast.If) and any(isinstance(x, ast.Raise) for x in node.body):
            continue
        if isinstance(node, ast.FunctionDef):
            stack += reversed(node.body)
            continue
        if isinstance(node, ast.Subscript):
            stack.append(node.value)
            continue
        if isinstance(node, ast.AnnAssign):
            stack.append(node.value)
            continue
        if isinstance(node, ast.expr):
            yield node
        stack += reversed(list(ast.iter_child_nodes(node)))


def path_of(module: str) -> pathlib.Path:
    """The file of a module of mmcl_theory."""
    return ROOT / "mmcl_theory" / f"{module.replace('.', '/')}.py"


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, in source order."""
    text = path_of(module).read_text()
    tree = ast.parse(text)
    all_mutants = []
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for function in (node for container in (tree, *classes) for node in container.body):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in _expressions(function):
            for variant in _variants(node):
                before = ast.unparse(node)
                changed = _replaced(text, node, f"({ast.unparse(ast.fix_missing_locations(variant))})")
                after = ast.unparse(variant)
                all_mutants.append(Mutant(module, function.name, node.lineno, before, after, changed))
    return all_mutants


def _replaced(text: str, node: ast.AST, new: str) -> str:
    """The text with the expression replaced; columns in `ast` count bytes."""
    lines = text.encode().splitlines(keepends=True)
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    stop = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    raw = text.encode()
    return (raw[:start] + new.encode() + raw[stop:]).decode()


def sample(per_function: int, seed: int = 0) -> list[Mutant]:
    """At most so many mutants of each function of each module, chosen at random from `seed`."""
    chosen = []
    for module in WATCHERS:
        by_function: dict[str, list[Mutant]] = {}
        for mutant in mutants(module):
            by_function.setdefault(mutant.function, []).append(mutant)
        for name, group in by_function.items():
            picked = random.Random(f"{seed} {module.removeprefix('theory.')} {name}").sample(
                group, min(per_function, len(group))
            )
            chosen += sorted(picked, key=lambda m: m.line)
    return chosen


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from the given source, never from a cached compilation."""

    def __init__(self, name: str, path: str, source: str):
        super().__init__(name, path)
        self.changed = source

    def get_code(self, fullname: str):
        return compile(self.changed, self.path, "exec")


def _inject(module: str, source: str) -> None:
    """Make `import mmcl_theory.<module>` load `source`."""
    name = f"mmcl_theory.{module}"
    path = str(path_of(module))

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname, *_):
            if fullname == name:
                return importlib.util.spec_from_file_location(name, path, loader=_Loader(name, path, source))
            return None

    sys.meta_path.insert(0, Finder())


def watch(module: str, source: str) -> str | None:
    """The first test or row of the ledger that fails with this source in place of the module's; None if none does."""
    _inject(module, source)
    import pytest

    report = io.StringIO()
    name, labels = WATCHERS[module]
    tests = str(ROOT / "tests" / f"{name}.py")
    options = ["-x", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "-m", "not long", "--rootdir", str(ROOT), tests]
    with contextlib.redirect_stdout(report):
        # Without the project's options: its shape checker would reject mutants before the tests judge them.
        code = pytest.main(options)
    if code != 0:
        failed = [line for line in report.getvalue().splitlines() if line.startswith(("FAILED", "ERROR"))]
        return failed[0].split(" - ")[0] if failed else f"pytest exit {int(code)}"
    from proofs_checks import run

    for row in run.judged(labels, 1):
        if not row.good:
            return f"{row.label}: {row.claim}"
    return None


def _watched(mutant: Mutant, cache: str) -> str | None:
    """`watch` in its own process; a mutant that does not terminate counts as noticed."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    command = [sys.executable, "-m", "proofs_checks.mutants", mutant.module]
    try:
        done = subprocess.run(
            command, input=mutant.source, capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT} s"
    if done.returncode > 0:
        raise RuntimeError(f"{mutant.module}: {mutant.change}: {done.stderr[-2000:]}")
    if done.returncode:
        return f"the process died of signal {-done.returncode}"
    return json.loads(done.stdout.splitlines()[-1])


def report(per_function: int, workers: int, target: pathlib.Path | None) -> bool:
    """Inject, watch, print kills and survivors; True if at least 95% of those that are not equivalent are
    killed and every survivor is explained.

    target: JSON file for all mutants and what noticed each, or None.
    """
    chosen = sample(per_function)
    records: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as cache, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        whole = [Mutant(m, "", 0, "", "", path_of(m).read_text()) for m in WATCHERS]
        for mutant, noticed in zip(whole, pool.map(lambda m: _watched(m, cache), whole), strict=True):
            if noticed is not None:
                print(f"the unchanged module {mutant.module} is noticed by {noticed}: mend that first.")
                return False
        jobs = {pool.submit(_watched, mutant, cache): mutant for mutant in chosen}
        with tqdm(concurrent.futures.as_completed(jobs), total=len(jobs), unit="mutant") as bar:
            for job in bar:
                mutant, noticed = jobs[job], job.result()
                fields = {k: v for k, v in dataclasses.asdict(mutant).items() if k != "source"}
                records.append(fields | {"noticed": noticed})
                if target:  # after each: a killed run leaves its results so far
                    target.write_text(json.dumps(records, indent=1) + "\n")
                if noticed is None:
                    where = f"{mutant.module}.{mutant.function}:{mutant.line}"
                    tqdm.write(f"survives: {where}  {mutant.change}")
    survivors = [r for r in records if r["noticed"] is None]
    for module in WATCHERS:
        here = [r for r in records if r["module"] == module]
        alive = sum(r["noticed"] is None for r in here)
        print(f"{module:20} {len(here):4} mutants {len(here) - alive:4} killed {alive:3} survive")
    reasons = [EXPLAINED.get((str(r["function"]), f"{r['before']} -> {r['after']}")) for r in survivors]
    for r, reason in zip(survivors, reasons, strict=True):
        where = f"{r['module']}.{r['function']}:{r['line']}"
        print(f"{where}  {r['before']} -> {r['after']}\n    {reason or 'UNEXPLAINED'}")
    unexplained = reasons.count(None)
    equivalent = sum(reason is not None and reason.startswith("equivalent") for reason in reasons)
    killed, late = len(records) - len(survivors), sum(str(r["noticed"]).startswith("no answer") for r in records)
    share = killed / max(len(records) - equivalent, 1)
    print(
        f"{killed} of {len(records)} mutants killed, {late} of them by time; {equivalent} are equivalent;"
        f" {100 * share:.1f}% of the others killed; {unexplained} survivors unexplained."
    )
    return share >= 0.95 and not unexplained


if __name__ == "__main__":
    print(json.dumps(watch(sys.argv[1], sys.stdin.read())))

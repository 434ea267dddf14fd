"""Judge every statement of the theory: prediction against measurement, and wrong theories that must be rejected.

Prints a row a check: label, claim, predicted, measured +- standard error, the error that the prediction is allowed (as
that of a limit), z and its limit, verdict, how many of its wrong theories it rejected, seconds. "refuted as stated"
marks a claim of the theory text that a check contradicts, with what holds instead in the claim's line. Exit code 1 if
any row fails or misses a wrong theory.

    python -m proofs_checks --only=T2,X1 --profile=full --json=ledger.json

FILE of --json gets each row as it comes. A run that was stopped goes on from it when called again: rows that are good
are not judged again as long as the code and the profile are the same. --overwrite judges all again. Rows of statements
that --only leaves out stay as they are, each with the profile and the version of the code that judged it.

With --paper only what the paper's numbered statements need is judged, and then shown as one table in the paper's order:
number, claim, the paper's figure, ours exact, measured +- standard error, verdict.

With --mutants=K the checks themselves are tested: K wrong versions of every theory function are injected, one at a
time, and the ledger or a test must notice. Exit code 1 unless 95% of those that are not equivalent are killed and every
survivor is explained.
"""

import dataclasses
import functools
import os
import pathlib
import sys

from absl import flags

from sims.engine.flags import UsageError, define, integer, names, path, run_main

LABELS = (*(f"T{i}" for i in range(1, 8)), *(f"X{i}" for i in range(1, 13)))
EFFORT = {"quick": 1, "full": 8}  # factor on the number of runs; some limits are judged at larger n too


def _define_flags() -> None:
    define("only", LABELS, f"statements to judge, of {', '.join(LABELS)}", names)
    flags.DEFINE_string("profile", "quick", "quick: about 5 minutes on 2 cores; full: ten times that, smaller errors")
    define("json", None, "file to write the rows (or mutants) to, and to go on from", path)
    flags.DEFINE_bool("overwrite", False, "judge the statements of --only again, whatever the file of --json holds")
    define("mutants", 0, "wrong versions to inject in each theory function, >= 0; 0: judge the statements", integer)
    flags.DEFINE_bool("paper", False, "judge the paper's numbered statements and show them in its order")
    define("workers", 2, "processes, >= 1", integer)


def _main() -> None:
    values = flags.FLAGS.flag_values_dict()
    for label in values["only"]:
        if label not in LABELS:
            raise UsageError(f"--only must be of {', '.join(LABELS)}, got {label!r}.")
    if values["profile"] not in EFFORT:
        raise UsageError(f"--profile must be quick or full, got {values['profile']!r}.")
    target = values["json"] and pathlib.Path(values["json"])
    if target:
        folder = target.resolve().parent
        if not folder.is_dir():
            raise UsageError(f"--json={target}: there is no folder {folder}.")
        if target.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"--json={target} cannot be written.")
    if values["paper"] and (values["mutants"] or values["json"] or flags.FLAGS["only"].present):
        raise UsageError("--paper must be given without --only, --json and --mutants.")
    if values["mutants"] < 0 or values["workers"] < 1:
        raise UsageError("--mutants must be >= 0 and --workers >= 1.")
    if values["mutants"]:
        from proofs_checks import mutants

        sys.exit(0 if mutants.report(values["mutants"], values["workers"], target) else 1)
    from proofs_checks import paper, run, store  # JAX and SymPy load only once the arguments are good

    labels, profile = values["only"], values["profile"]
    known, keep = {}, None
    if target:
        known, others = store.read(target, profile, labels, values["overwrite"])
        others = [record for record in others if record["label"] in LABELS]
        held = {*labels, *(record["label"] for record in others)}
        statements = {label: run.module(label).STATEMENT for label in LABELS if label in held}
        keep = functools.partial(store.write, target, statements, profile=profile, code=store.version(), others=others)
    only = paper.keys() if values["paper"] else None
    rows = run.ledger(labels, EFFORT[profile], values["workers"], known, keep, only)
    bad = [row for row in rows if not row.good]
    print(run.summary(rows))
    if values["paper"]:
        print("\n" + paper.text([dataclasses.asdict(row) | {"good": row.good} for row in rows]))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)

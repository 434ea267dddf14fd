"""Judge every statement of the theory: prediction against measurement, and wrong theories that must be rejected.

Prints a row per check: label, claim, predicted, measured +- standard error, the allowed error of the prediction (of a
limit, say), z and its limit, verdict, number of wrong theories that it rejected, seconds. "refuted as stated" marks a
claim of the theory text that a check contradicts; the row also says what holds instead. Exit code 1 if any row fails
or does not reject a wrong theory.

    python -m proofs_checks --only=T2,X1 --profile=full --json=ledger.json

The file of --json gets each row as soon as it is judged. If a run is stopped, the same command continues from the file:
good rows are not judged again, unless the code or the profile has changed. --overwrite judges all rows again. Rows of
statements that --only leaves out are kept, with the profile and the version of the code that judged them.

--paper judges only what the paper's numbered statements need, and shows one table in the paper's order: number, claim,
the paper's figure, our exact one, measured +- standard error, verdict.

--module=FILE judges a statement of one's own by the same rules: a file like a module of this package, with a label that
is not in the ledger. It alone is judged, unless --only names others to judge beside it; all in one process.
examples/statement/own.py is one to start from.

--mutants=K tests the checks themselves: K wrong versions of every theory function are injected, one at a time, and the
ledger or a test must notice each. Exit code 1 unless 95% of the mutants that are not equivalent are killed and every
survivor is explained.
"""

import dataclasses
import functools
import os
import pathlib
import sys

from absl import flags

from sims.engine.flags import UsageError, define, integer, names, path, run_main

LABELS = (*(f"T{i}" for i in range(1, 8)), *(f"X{i}" for i in range(1, 15)))
EFFORT = {"quick": 1, "full": 8}  # factor on the number of runs; some limits are also judged at larger n


def _define_flags() -> None:
    define("only", LABELS, f"statements to judge, of {', '.join(LABELS)}", names)
    flags.DEFINE_string("profile", "quick", "quick: about 5 minutes on 2 cores; full: ten times that, smaller errors")
    define("json", None, "file to write the rows (or mutants) to, and to continue from", path)
    flags.DEFINE_bool("overwrite", False, "judge the statements of --only again, whatever the file of --json holds")
    define("mutants", 0, "wrong versions to inject in each theory function, >= 0; 0: judge the statements", integer)
    flags.DEFINE_bool("paper", False, "judge the paper's numbered statements and show them in its order")
    define("module", None, "file of a statement of one's own to judge, such as examples/statement/own.py", path)
    define("workers", 2, "processes, >= 1", integer)


def _main() -> None:
    values = flags.FLAGS.flag_values_dict()
    for label in values["only"]:
        if label not in LABELS:
            raise UsageError(f"--only must be of {', '.join(LABELS)}, got {label!r}.")
    if values["module"] and (values["paper"] or values["mutants"] or values["json"]):
        raise UsageError("--module must be given without --json, --paper and --mutants.")
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
    from proofs_checks import own, paper, run, store  # late: JAX and SymPy load only after the arguments are checked

    labels, profile, workers = values["only"], values["profile"], values["workers"]
    if values["module"]:
        others = labels if flags.FLAGS["only"].present else ()
        labels, workers = [*others, own.load(pathlib.Path(values["module"]), LABELS)], 1
    known, keep = {}, None
    if target:
        known, others = store.read(target, profile, labels, values["overwrite"])
        others = [record for record in others if record["label"] in LABELS]
        shown = {*labels, *(record["label"] for record in others)}
        statements = {label: run.module(label).STATEMENT for label in LABELS if label in shown}
        keep = functools.partial(store.write, target, statements, profile=profile, code=store.version(), others=others)
    only = paper.keys() if values["paper"] else None
    rows = run.ledger(labels, EFFORT[profile], workers, known, keep, only)
    bad = [row for row in rows if not row.good]
    print(run.summary(rows))
    if values["paper"]:
        print("\n" + paper.text([dataclasses.asdict(row) | {"good": row.good} for row in rows]))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)

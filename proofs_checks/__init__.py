"""Every statement of the theory, judged: `python -m proofs_checks` prints the ledger.

A module a statement (t1..t6, x1..x10): STATEMENT in one line, and CHECKS, functions of the effort that return a row.
`ledger` judges, `symbolic` derives moments from the models' definitions, `ambient` learns rules from sampled pairs.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a second thread pool would fight XLA's for the cores

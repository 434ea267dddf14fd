"""Every statement of the theory, judged: `python -m proofs_checks` prints the ledger.

Each statement has a module (t1..t7, x1..x13): STATEMENT is one line, CHECKS are functions of the effort that return a
row. `ledger` judges, `symbolic` derives moments from the models' definitions, `ambient` learns rules from samples.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a second thread pool would compete with XLA's for the cores

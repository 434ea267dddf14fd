"""Experiments: flags, files, progress and figures around `mmcl_theory`."""

import os

# LAPACK's own thread pool spins against XLA's and slows small factorisations a hundredfold; this must precede SciPy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

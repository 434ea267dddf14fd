"""Strict tests: float64, no silent rank promotion; a second BLAS thread pool would fight XLA's for the cores."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

"""Strict tests: float64, no silent rank promotion; a second BLAS thread pool would fight XLA's for the cores.

Compiling is most of what the suite does, so XLA's optimisations are off where a test does not ask for them.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def float32():
    """The commands measure in float32."""
    with jax.enable_x64(False):
        yield

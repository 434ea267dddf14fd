"""What tests of the digits share."""

import jax
import pytest

from mmcl_theory import learners, theory


@pytest.fixture
def compiled(monkeypatch):
    """The theory as whole programs. Operation by operation each would be compiled by itself."""
    monkeypatch.setattr(learners, "ridge_optimum", jax.jit(learners.ridge_optimum))
    for name in ("whitened_accuracy", "optimal_ridge", "balanced_pi_spu"):
        monkeypatch.setattr(theory, name, jax.jit(getattr(theory, name)))

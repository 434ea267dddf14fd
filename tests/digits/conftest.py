"""What tests of the digits share."""

import jax
import pytest

from mmcl_theory import learners, theory
from sims.digits import images
from sims.digits.config import parse_groups


@pytest.fixture(scope="session")
def source():
    """The built-in digits, 0 to 4 against 5 to 9."""
    return images.load("builtin", parse_groups("01234:56789"))


@pytest.fixture
def compiled(monkeypatch):
    """The theory as whole programs. Operation by operation each would be compiled by itself."""
    monkeypatch.setattr(learners, "ridge_optimum", jax.jit(learners.ridge_optimum))
    for name in ("whitened_accuracy", "optimal_ridge", "balanced_pi_spu"):
        monkeypatch.setattr(theory, name, jax.jit(getattr(theory, name)))

"""Small matrices written out, against NumPy and jax.numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmcl_theory as mt
from mmcl_theory import _small

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ("kg,kgi,kgj->kij", [(2, 4), (2, 4, 3), (2, 4, 3)]),
        ("gri,gij->grj", [(4, 1, 2), (4, 2, 2)]),
        ("ij,kj->ki", [(2, 3), (4, 3)]),
        ("ij,ij->", [(2, 4), (2, 4)]),
        ("ik,kj->ij", [(2, 17), (17, 3)]),
    ],
)
def test_sums_of_products(spec, shapes):
    operands = [RNG.normal(size=shape) for shape in shapes]
    want = np.einsum(spec, *operands)
    got = _small.einsum(spec, *map(jnp.asarray, operands))
    np.testing.assert_allclose(got, want, atol=1e-13)
    assert np.abs(want - np.einsum(spec, operands[0][::-1], *operands[1:])).max() > 1e-3


def matrices(l):
    """Of any eigenvalues; singular, with equal eigenvalues, diagonal, and 0; of every scale."""
    a = RNG.normal(size=(6, l, l))
    square = a @ a.mT
    square[1] = a[1, :, :1] @ a[1, :, :1].T
    square[2] = np.eye(l) + a[2, :, :1] @ a[2, :, :1].T
    square[3] = np.diag(np.diag(square[3]))
    square[4] *= 0
    return np.concatenate([square, 1e-200 * square[:1], 1e200 * square[:1]])


@pytest.mark.parametrize("l", [1, 2, 3, 4, 5])
def test_eigenvectors(l):
    given = matrices(l)
    values, vectors = map(np.asarray, jax.jit(jax.vmap(_small.eigh))(given))
    scale = np.maximum(np.abs(given).max((1, 2)), 1e-300)[:, None]
    np.testing.assert_allclose(vectors.mT @ vectors, np.broadcast_to(np.eye(l), given.shape), atol=1e-14)

    def off(values):
        return np.abs((vectors * values[:, None]) @ vectors.mT - given).max((1, 2)) / scale[:, 0]

    assert off(values).max() < 1e-14
    np.testing.assert_allclose(np.sort(values) / scale, np.linalg.eigvalsh(given) / scale, atol=1e-14)
    assert off(1.001 * values)[0] > 1e-4


@pytest.mark.parametrize("l", [2, 3, 4])
def test_derivatives_of_eigenvectors(l):
    """Of the trace and the entries of exp(A) C, which depend on neither order nor sign, to second order."""
    given, direction = matrices(l)[0], matrices(l)[5]
    other = RNG.normal(size=(l, l))

    def curve(eigh):
        def value(t):
            values, vectors = eigh(given + t * direction)
            return ((vectors * jnp.exp(-values)[None, :]) @ vectors.T @ other)[0]

        return value(0.0), jax.jacfwd(value)(0.0), jax.jacfwd(jax.jacrev(value))(0.0)

    got, want = jax.jit(lambda: (curve(_small.eigh), curve(jnp.linalg.eigh)))()
    for one, two in zip(got, want, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-12, rtol=1e-10)
        assert np.abs(two).max() > 1e-3
    assert not np.allclose(got[1], 1.001 * want[1], atol=1e-12, rtol=1e-10)


def routines(l, predict):
    """What XLA would call a routine for, for every model of a grid."""

    def prediction(mean):
        weight = np.full(4, 0.25)
        return predict(mt.mixture(weight, mean, np.eye(l), [0, 0, 1, 1], weight))

    text = str(jax.make_jaxpr(prediction)(np.zeros((5, 4, l))))
    return {name for name in ("dot_general", "eigh") if f" {name}[" in text}


@pytest.mark.costly
def test_predictions_of_a_grid_of_small_mixtures_call_no_routine():
    obs = mt.observation(300, 240)
    assert routines(2, lambda model: mt.theory.mmcl_accuracy(model, None, obs, 500.0).by_group) == set()
    for l, expected in ((2, set()), (5, {"dot_general", "eigh"})):
        assert routines(l, lambda model: mt.theory.whitened_accuracy(model, None, obs).by_group) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_matrix_that_is_not_finite_has_no_eigenvectors(bad):
    """Else a covariance that is not finite would be a rule without a direction, and so a coin."""
    for place in ((0, 0), (0, 1)):
        matrix = np.eye(2)
        matrix[place] = matrix[place[::-1]] = bad
        values, vectors = _small.eigh(matrix)
        assert jnp.isnan(values).all() and jnp.isnan(vectors).all()
    assert jnp.isfinite(_small.eigh(np.eye(2))[1]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eigenvalues_at_the_ends_of_a_precision(dtype):
    for scale in (0.4 * np.finfo(dtype).max, 4 * np.finfo(dtype).tiny):
        matrix = (scale * np.array([[1.0, 0.5], [0.5, 1.0]])).astype(dtype)
        values, vectors = _small.eigh(matrix)
        np.testing.assert_allclose(np.sort(np.asarray(values) / scale), [0.5, 1.5], rtol=1e-6)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(2), atol=1e-6)


def test_operands_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"ij,jk->ik needs operands of equal sizes, got \(2, 3\), \(4, 2\)"):
        _small.einsum("ij,jk->ik", np.ones((2, 3)), np.ones((4, 2)))

"""Data models: what the constructors refuse, the sampled laws against the exact moments, and the conventions."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from mmcl_theory import data
from mmcl_theory.data import (
    Dictionaries,
    all_pairs,
    captions,
    class_index,
    class_labels,
    inter_class,
    intra_class,
    is_aligned,
    observation,
    sample_pairs,
    shifted,
)
from tests.helpers import refuses
from tests.statistics import assert_mean_close, rejects

NAN, INF = float("nan"), float("inf")
INTRA = {"p_spu": 0.9, "sigma_core": 0.7, "sigma_spu": 0.3, "mu_core": 1.4, "mu_spu": 0.8}
INTER = {"num_pairs": 3, "p_spu": 0.9, "alpha": 1.6, "beta": 0.4, "beta_spu": 0.3}
CAPTIONS = {"pi_core": 0.7, "pi_spu": 0.4}
OBSERVATION = {"dim_image": 9, "dim_text": 8, "sigma_image": 1.5, "sigma_text": 0.5}
MODELS = {"intra": lambda: intra_class(**INTRA), "inter": lambda: inter_class(**INTER)}
MASKINGS = ["named", "mean", "zero"]
over_models = pytest.mark.parametrize("name", MODELS)
over_maskings = pytest.mark.parametrize("masking", MASKINGS)

RANGES = {  # where each parameter may lie, and values just outside
    "in [0, 1]": [-0.01, 1.01, NAN, INF, -INF, "high"],
    "in [0, 1)": [-0.01, 1.0, NAN, INF, -INF, "high"],
    "finite and >= 0": [-0.01, NAN, INF, -INF, "high"],
    "finite and > 0": [0.0, -0.01, NAN, INF, "high"],
    "an integer >= 1": [0, -1, 1.5, 2.0, NAN, INF, True, "high"],
    "an integer >= 2": [1, -1, 1.5, 2.0, NAN, INF, True, "high"],
}
ARGUMENTS = [
    *[(intra_class, INTRA, name, "finite and >= 0") for name in ("sigma_core", "sigma_spu", "mu_spu")],
    (intra_class, INTRA, "p_spu", "in [0, 1]"),
    (intra_class, INTRA, "mu_core", "finite and > 0"),
    (inter_class, INTER, "num_pairs", "an integer >= 1"),
    (inter_class, INTER, "p_spu", "in [0, 1]"),
    (inter_class, INTER, "alpha", "finite and > 0"),
    *[(inter_class, INTER, name, "in [0, 1)") for name in ("beta", "beta_spu")],
    *[(captions, CAPTIONS, name, "in [0, 1]") for name in CAPTIONS],
    *[(observation, OBSERVATION, name, "an integer >= 2") for name in ("dim_image", "dim_text")],
    *[(observation, OBSERVATION, name, "finite and >= 0") for name in ("sigma_image", "sigma_text")],
]


N = 60_000


moments = jax.jit(data.moments)
index_of = jax.jit(class_index)
draw_dictionaries = jax.jit(data.draw_dictionaries)
pairs_of = jax.jit(sample_pairs, static_argnames="n")
means_of_class = jax.jit(lambda model, label: model.class_means(label))
means_of_attribute = jax.jit(lambda model, label, attribute: model.attribute_means(label, attribute))


@jax.jit
def sample(seed, model, caps):
    key_z, key_u = jax.random.split(jax.random.key(seed))
    latents = model.sample(key_z, N)
    return latents.z, caps.sample(key_u, model, latents), latents


def draw(name, caps, seed=0, **changes):
    """(z, u, latents) of N samples, with fields of the model changed."""
    model = dataclasses.replace(MODELS[name](), **{key: jnp.asarray(x, float) for key, x in changes.items()})
    return sample(seed, model, caps)


def in_numpy(tree):
    """A record of arrays as one of NumPy's: on JAX's every operation of every shape is a program to compile."""
    return types.SimpleNamespace(**{name: np.asarray(x) for name, x in vars(tree).items()})


def products(a, b):
    """a_i b_j of every sample; at most 6 x 6 a sample."""
    return np.asarray(a)[:, :, None] * np.asarray(b)[:, None, :]


def full(name, matrix):
    return all_pairs(matrix, INTER["num_pairs"]) if name == "inter" else matrix


def assert_trees_close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def wrong_type(value, allowed):
    return isinstance(value, str) or "integer" in allowed


@pytest.mark.parametrize(
    ("build", "valid", "argument", "allowed", "value"),
    [(*case, value) for case in ARGUMENTS for value in RANGES[case[3]]],
)
def test_constructors_refuse_and_name_argument_range_and_value(monkeypatch, build, valid, argument, allowed, value):
    # The hooks of the tests would refuse a wrong type in front of the library.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", wrong_type(value, allowed))
    with pytest.raises(ValueError) as caught:
        build(**valid | {argument: value})
    shown = f"{value:g}" if isinstance(value, float) and "integer" not in allowed else repr(value)
    assert str(caught.value) == f"{argument} must be {allowed}, got {shown}."


def test_constructors_refuse_wrong_entries_of_arrays_and_unknown_maskings():
    refuses(r"^p_spu must be in \[0, 1\], got 1.2.$", intra_class, **INTRA | {"p_spu": np.array([[0.5, 1.2]])})
    refuses(r"^masking must be one of named, mean, zero, got 'drop'.$", captions, masking="drop")


@pytest.mark.parametrize("value", [None, [0.5, 1.5], {}, 1j, "0.5", []])
def test_constructors_refuse_what_is_no_number(monkeypatch, value):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    refuses(r"^p_spu must be in \[0, 1\], got ", intra_class, **INTRA | {"p_spu": value})


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_constructors_accept_the_ends_of_closed_ranges(edge):
    assert intra_class(edge, 0.0, 0.0, mu_spu=0.0).p_spu == edge
    assert inter_class(1, edge, 1.0, 0.0, 0.0).p_spu == edge
    assert captions(edge, edge).pi_core == edge
    assert observation(2, 2, 0.0, 0.0).sd_image == 0


MOMENT_CASES = [(name, masking, pi) for name in MODELS for masking in MASKINGS for pi in ((0.7, 0.4), (0, 1), (1, 0))]
over_moments = pytest.mark.parametrize(("name", "masking", "pi"), MOMENT_CASES)
RESOLUTION = 0.02  # of any entry; mu_core^2 = 1.96 is the largest


@functools.lru_cache(1)
def sampled_moments(name, masking, pi):
    z, u, _ = draw(name, captions(*pi, masking))
    return np.stack([products(z, z), products(z, u), products(u, u)], axis=1)


def check_moments(name, masking, pi, *, changed_p=None, pi_in_theory=None):
    model = MODELS[name]()
    if changed_p is not None:
        model = dataclasses.replace(model, p_spu=jnp.asarray(changed_p))
    exact = moments(model, captions(*(pi_in_theory or pi), masking))
    want = np.stack([full(name, exact.zz), full(name, exact.zu), full(name, exact.uu)])
    assert_mean_close(sampled_moments(name, masking, pi), want, resolution=RESOLUTION)


@pytest.mark.slow
@over_moments
def test_samples_have_the_exact_moments(name, masking, pi):
    """Inter-class in all 2m coordinates: different pairs are uncorrelated, alike pairs are kron(pair, I)."""
    check_moments(name, masking, pi)
    z, u, _ = draw(name, captions(*pi, masking))
    assert_mean_close(np.concatenate([z, u], 1), 0.0, resolution=RESOLUTION)


@pytest.mark.costly
@over_models
@over_maskings
def test_sampled_moments_reject_a_wrong_theory(name, masking):
    rejects(check_moments, name, masking, (0.7, 0.4), changed_p=0.87)
    rejects(check_moments, name, masking, (0.7, 0.4), pi_in_theory=(1.0, 0.4))
    rejects(check_moments, name, masking, (0.7, 0.4), pi_in_theory=(0.7, 1.0))


@over_moments
def test_between_class_parts(name, masking, pi):
    """K 1{same class} z u^T of two independent samples has mean sum_y P(y) E[z | y] E[u | y]^T."""
    caps = captions(*pi, masking)
    exact = moments(MODELS[name](), caps)
    z, u, first = draw(name, caps, seed=0)
    _, v, second = draw(name, caps, seed=1)
    same = MODELS[name]().num_classes * np.asarray(first.label == second.label)[:, None, None]
    got = np.stack([products(z, v) * same, products(u, v) * same], 1)
    want, whole = (
        [full(name, m) for m in pair] for pair in ((exact.zu_between, exact.uu_between), (exact.zu, exact.uu))
    )
    assert_mean_close(got, np.stack(want), resolution=0.03)
    rejects(assert_mean_close, got, np.stack([want[1], want[0]]) + 0.3, resolution=0.03)
    if masking == "mean":
        rejects(assert_mean_close, got, np.stack(whole), resolution=0.03)


def written_out(pi_core, pi_spu):
    """docs/theory.md 1.5 for named masking: zz, zu, uu, zu_between of both models, symbol by symbol."""
    p, s_c, s_s, mu_c, mu_s = INTRA.values()
    q = 2 * p - 1
    c, s, x = mu_c**2 + pi_core * s_c**2, pi_spu * (mu_s**2 + s_s**2), q * mu_c * mu_s
    m_z, m_u = np.array([mu_c, q * mu_s]), np.array([mu_c, pi_spu * q * mu_s])
    intra = (
        [[mu_c**2 + s_c**2, x], [x, mu_s**2 + s_s**2]],
        [[c, pi_spu * x], [x, s]],
        [[c, pi_spu * x], [pi_spu * x, s]],
        np.outer(m_z, m_u),
    )
    within = np.diag([pi_core * s_c**2, pi_spu * (s_s**2 + (1 - q**2) * mu_s**2)])
    np.testing.assert_allclose(intra[1], within + intra[3], rtol=1e-12)
    m, p, alpha, beta, beta_spu = INTER.values()
    x = (2 * p - 1) * alpha
    rich, spu = 1 + (m - 1) * pi_core * beta**2, alpha**2 * (1 + (m - 1) * beta_spu**2)
    inter = (
        np.array([[1 + (m - 1) * beta**2, x], [x, spu]]) / m,
        np.array([[rich, pi_spu * x], [x, pi_spu * spu]]) / m,
        np.array([[rich, pi_spu * x], [pi_spu * x, pi_spu * spu]]) / m,
        np.array([[1, pi_spu * x], [x, pi_spu * x * x]]) / m,
    )
    return {"intra": intra, "inter": inter}


@over_models
@pytest.mark.parametrize("pi", [(0.7, 0.4), (0, 0), (0, 1), (1, 0), (1, 1)])
def test_named_masking_as_written_in_theory(name, pi):
    got = moments(MODELS[name](), captions(*pi))
    for field, want in zip(("zz", "zu", "uu", "zu_between"), written_out(*pi)[name], strict=True):
        np.testing.assert_allclose(getattr(got, field), want, rtol=1e-12, atol=1e-15, err_msg=field)


@over_models
@over_maskings
def test_rich_captions_are_the_latents(name, masking):
    z, u, _ = draw(name, captions(1.0, 1.0, masking))
    np.testing.assert_array_equal(u, z)
    exact = moments(MODELS[name](), captions(1.0, 1.0, masking))
    np.testing.assert_allclose(exact.zu, exact.zz, rtol=1e-12)
    np.testing.assert_allclose(exact.uu, exact.zz, rtol=1e-12)
    np.testing.assert_allclose(exact.uu_between, exact.zu_between, rtol=1e-12)


@over_models
def test_empty_captions_leave_what_stands_for_the_details(name):
    _, u, latents = draw(name, captions(0.0, 0.0, "zero"))
    assert not u.any()
    model = MODELS[name]()
    _, u, latents = draw(name, captions(0.0, 0.0))
    np.testing.assert_array_equal(u, means_of_class(model, latents.label))
    _, u, latents = draw(name, captions(0.0, 0.0, "mean"))
    np.testing.assert_array_equal(u, means_of_attribute(model, latents.label, latents.attribute))


@pytest.mark.parametrize("pi", [(0.0, 0.3), (0.5, 0.0)])
def test_named_captions_always_name_the_class(pi):
    _, u, latents = draw("inter", captions(*pi))
    rows, own = np.arange(N), np.abs(latents.label) - 1
    np.testing.assert_array_equal(u[rows, own], np.sign(latents.label))
    _, u, latents = draw("intra", captions(0.0, pi[1]))
    np.testing.assert_array_equal(u[:, 0], INTRA["mu_core"] * latents.label)


def test_mentions_are_independent_of_each_other():
    """Masked to zero, u_j != 0 is the mention of coordinate j."""
    pi = np.repeat([0.7, 0.4], 3)
    _, u, _ = draw("inter", captions(0.7, 0.4, "zero"))
    mentioned = np.asarray(u != 0) - pi
    assert_mean_close(products(mentioned, mentioned), np.diag(pi * (1 - pi)), resolution=0.002)


def test_intra_class_law():
    """The conditional law of each latent given y and a, and the law of both signs, to the fourth moment."""
    _, _, latents = draw("intra", captions(), seed=5)
    y, a = np.asarray(latents.label), np.asarray(latents.attribute)
    mean = np.stack([INTRA["mu_core"] * y, INTRA["mu_spu"] * a], 1)
    g = (np.asarray(latents.z) - mean) / np.array([INTRA["sigma_core"], INTRA["sigma_spu"]])
    moments_of_g = np.stack([g, g * y[:, None], g * a[:, None], g**2, g**3, g**4], 1)
    want = np.array([[0, 0], [0, 0], [0, 0], [1, 1], [0, 0], [3, 3]])
    assert_mean_close(moments_of_g, want, resolution=0.05)
    assert_mean_close(np.stack([y, a, y * a], 1), [0, 0, 2 * INTRA["p_spu"] - 1], resolution=0.005)
    rejects(assert_mean_close, y * a, 2 * INTRA["p_spu"] - 1.06, resolution=0.005)


def test_inter_class_law():
    m, p, alpha, beta, beta_spu = INTER.values()
    _, _, latents = draw("inter", captions(), seed=6)
    label, a = np.asarray(latents.label), np.asarray(latents.attribute)
    sign, own = np.sign(label), np.abs(label)[:, None] == np.arange(1, m + 1)
    core, spu = np.asarray(latents.z[:, :m]), np.asarray(latents.z[:, m:])
    np.testing.assert_array_equal(core[own], sign)
    np.testing.assert_array_equal(spu[own], alpha * a)
    np.testing.assert_array_equal(np.abs(core[~own]), beta)
    np.testing.assert_array_equal(np.abs(spu[~own]), alpha * beta_spu)
    counts = (label[:, None] == np.asarray(class_labels(2 * m))).astype(float)
    assert_mean_close(counts, 1 / (2 * m), resolution=0.002)
    assert_mean_close(sign * a, 2 * p - 1, resolution=0.005)
    foreign = np.concatenate([np.where(own, 0, core / beta), np.where(own, 0, spu / (alpha * beta_spu))], 1)
    fair = products(foreign, foreign) * (1 - np.eye(2 * m))
    assert_mean_close(fair, 0.0, resolution=0.005)
    assert_mean_close(np.concatenate([foreign * sign[:, None], foreign * a[:, None]], 1), 0.0, resolution=0.005)


def test_the_paper_has_one_beta():
    paper, ours = inter_class(3, 1.0, 10.0, 0.4), inter_class(3, 1.0, 10.0, 0.4, 0.4)
    assert paper.beta_spu == 0.4
    assert_trees_close(moments(paper, captions()), moments(ours, captions()))
    with pytest.raises(AssertionError):
        assert_trees_close(moments(paper, captions()), moments(inter_class(3, 1.0, 10.0, 0.4, 0.3), captions()))


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@over_models
def test_p_spu_decides_the_groups(name, p):
    _, _, latents = draw(name, captions(), p_spu=p)
    aligned = is_aligned(latents.label, latents.attribute)
    if p == 0.5:
        assert_mean_close(aligned, 0.5, resolution=0.005)
    else:
        assert aligned.all() == (p == 1) and aligned.any() == (p == 1)


def test_conventions_of_labels():
    np.testing.assert_array_equal(class_labels(6), [-1, 1, -2, 2, -3, 3])
    np.testing.assert_array_equal(class_index(class_labels(6)), np.arange(6))
    labels = jnp.array([3, -1, 2, 1, -3, -2, 2])
    np.testing.assert_array_equal(class_labels(6)[class_index(labels)], labels)
    np.testing.assert_array_equal(is_aligned(labels, jnp.array([1, 1, -1, 1, -1, -1, 1])), [1, 0, 0, 1, 1, 1, 1])
    for name in MODELS:
        z, _, latents = draw(name, captions())
        model = MODELS[name]()
        np.testing.assert_array_equal(np.unique(index_of(latents.label)), np.arange(model.num_classes))
        assert z.shape == (N, model.num_latents) and latents.attribute.shape == latents.label.shape == (N,)


@over_models
def test_means_are_the_conditional_means(name):
    """class_means under P*, attribute_means under P, as averages of what is sampled."""
    model = MODELS[name]()
    _, _, latents = sample(7, shifted(model), captions())
    latents = in_numpy(latents)
    residual = latents.z - np.asarray(means_of_class(model, latents.label))
    assert_mean_close(residual, 0.0, resolution=0.01)
    signed = residual * np.sign(latents.label)[:, None]
    assert_mean_close(signed, 0.0, resolution=0.01)
    _, _, latents = sample(8, model, captions())
    latents = in_numpy(latents)
    residual = latents.z - np.asarray(means_of_attribute(model, latents.label, latents.attribute))
    assert_mean_close(residual * latents.attribute[:, None], 0.0, resolution=0.01)
    signed = (latents.z - np.asarray(means_of_class(model, latents.label))) * np.sign(latents.label)[:, None]
    rejects(assert_mean_close, signed, 0.0, resolution=0.01)


def test_shifted_changes_p_spu_only():
    for model in (f() for f in MODELS.values()):
        other = shifted(model)
        assert type(other) is type(model) and other.p_spu == 0.5
        assert dataclasses.replace(other, p_spu=model.p_spu).__dict__ == model.__dict__
    np.testing.assert_array_equal(shifted(intra_class(np.array([0.1, 0.9]), 1, 1)).p_spu, [0.5, 0.5])


@over_models
def test_dictionaries_are_orthonormal_and_fresh(name):
    model, obs = MODELS[name](), observation(**OBSERVATION)
    d = in_numpy(draw_dictionaries(jax.random.key(0), model, obs))
    for matrix, dim in ((d.image, 9), (d.text, 8)):
        assert matrix.shape == (dim, model.num_latents)
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(model.num_latents), atol=1e-14)
    other = in_numpy(draw_dictionaries(jax.random.key(1), model, obs))
    assert np.abs(d.image - other.image).max() > 0.1 and np.abs(d.image[:8] - d.text).max() > 0.1


def test_dictionaries_are_uniform():
    """Haar: every entry has mean 0, entries of one column covariance I/d, and columns are exchangeable in sign."""
    model, obs = MODELS["intra"](), observation(3, 4)
    draws = jax.jit(jax.vmap(lambda key: draw_dictionaries(key, model, obs).image.reshape(-1)))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    assert_mean_close(draws, 0.0, resolution=0.01)
    assert_mean_close(products(draws, draws), np.eye(6) / 3, resolution=0.01)


@over_models
def test_observations_are_latents_plus_noise_of_the_stated_norm(name):
    """Inside the dictionaries the moments gain s^2 I; outside there is noise alone, s^2 a dimension."""
    model, caps, obs = MODELS[name](), captions(**CAPTIONS), observation(**OBSERVATION)
    d = draw_dictionaries(jax.random.key(0), model, obs)
    pairs = pairs_of(jax.random.key(1), model, caps, obs, n=N, dictionaries=d)
    exact, l = moments(model, caps), model.num_latents
    d, pairs = in_numpy(d), in_numpy(pairs)
    x, t = pairs.image @ d.image, pairs.text @ d.text
    s2_image, s2_text = 1.5**2 / 9, 0.5**2 / 8
    np.testing.assert_allclose([obs.sd_image**2, obs.sd_text**2], [s2_image, s2_text], rtol=1e-12)
    zz, uu, zu = full(name, exact.zz), full(name, exact.uu), full(name, exact.zu)
    assert_mean_close(products(x, x), zz + s2_image * np.eye(l), resolution=RESOLUTION)
    assert_mean_close(products(t, t), uu + s2_text * np.eye(l), resolution=RESOLUTION)
    assert_mean_close(products(x, t), zu, resolution=RESOLUTION)
    rejects(assert_mean_close, products(x, x), zz, resolution=RESOLUTION)
    noise_image, noise_text = pairs.image - x @ d.image.T, pairs.text - t @ d.text.T
    assert_mean_close((noise_image**2).sum(1), s2_image * (9 - l), resolution=0.01)
    assert_mean_close((noise_text**2).sum(1), s2_text * (8 - l), resolution=0.01)
    rejects(assert_mean_close, (noise_image**2).sum(1), (9 - l), resolution=0.01)
    both = products(noise_image, noise_text)
    assert_mean_close(both, 0.0, resolution=0.01)
    square = (np.eye(9) - d.image @ d.image.T) * s2_image
    assert_mean_close(products(noise_image, noise_image), square, resolution=0.01)


def test_without_noise_the_latents_come_back():
    obs = observation(9, 8, 0.0, 0.0)
    for model in (intra_class(0.8, 0.0, 0.0, 1.4, 0.8), MODELS["inter"]()):
        d = draw_dictionaries(jax.random.key(0), model, obs)
        pairs = pairs_of(jax.random.key(1), model, captions(), obs, n=200, dictionaries=d)
        d, pairs = in_numpy(d), in_numpy(pairs)
        z = pairs.image @ d.image
        np.testing.assert_allclose(pairs.text @ d.text, z, atol=1e-14)
        np.testing.assert_allclose(pairs.image, z @ d.image.T, atol=1e-14)
        if model.num_latents == 2:
            np.testing.assert_allclose(z, means_of_attribute(model, pairs.label, pairs.attribute), atol=1e-14)
        else:
            means = np.asarray(means_of_attribute(model, pairs.label, pairs.attribute))
            np.testing.assert_allclose(z[means != 0], means[means != 0], atol=1e-14)
            alpha = INTER["alpha"]
            foreign, own = (np.repeat(x, 3) for x in ([INTER["beta"], alpha * INTER["beta_spu"]], [1, alpha]))
            np.testing.assert_allclose(np.abs(z), np.where(means != 0, own, foreign), atol=1e-14)


def test_sample_pairs_refuses_sizes_that_do_not_fit():
    model, caps, obs, key = MODELS["inter"](), captions(), observation(**OBSERVATION), jax.random.key(0)
    for n in (1, 0, -3):
        refuses(rf"^n must be an integer >= 2, got {n}\.", sample_pairs, key, model, caps, obs, n)
    for name in ("dim_image", "dim_text"):
        small = observation(**OBSERVATION | {name: 5})
        message = rf"^{name} must be an integer >= 6 \(the number of latents\), got 5\."
        refuses(message, sample_pairs, key, model, caps, small, 4)
        refuses(message, jax.jit(lambda key, small=small: sample_pairs(key, model, caps, small, 4)), key)
    d = draw_dictionaries(key, model, obs)
    for name, shape in (("image", r"\(9, 6\), got \(8, 6\)"), ("text", r"\(8, 6\), got \(8, 5\)")):
        wrong = {"image": d.image, "text": d.text} | {name: d.image[:8] if name == "image" else d.text[:, :5]}
        with pytest.raises(ValueError, match=rf"^the {name} dictionary must have shape {shape}\.$"):
            sample_pairs(key, model, caps, obs, 4, Dictionaries(**wrong))


@pytest.mark.costly
@pytest.mark.parametrize(("name", "masking"), [("intra", "mean"), ("inter", "named")])
def test_jit_and_vmap_over_leaves_and_keys_equal_a_loop(name, masking):
    p, keys = np.array([0.1, 0.6, 1.0]), jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def run(key, p, pi):
        model = dataclasses.replace(MODELS[name](), p_spu=p)
        caps = captions(pi, 0.3, masking)
        return sample_pairs(key, model, caps, observation(**OBSERVATION), 20), moments(model, caps)

    mapped = jax.jit(jax.vmap(run))(keys, p, p**2)
    for k in range(3):
        assert_trees_close([np.asarray(x)[k] for x in jax.tree.leaves(mapped)], run(keys[k], p[k], p[k] ** 2))
    pairs, other = in_numpy(mapped[0]), in_numpy(run(keys[1], p[0], p[0] ** 2)[0])
    assert pairs.image.shape == (3, 20, 9) and pairs.text.shape == (3, 20, 8)
    assert np.abs(pairs.image[0] - other.image).max() > 0.1 and np.abs(pairs.text[0] - other.text).max() > 0.1


@over_models
@over_maskings
def test_moments_broadcast_over_leaves_as_a_loop(name, masking):
    p, pi_core, pi_spu = np.array([0.2, 0.7, 1.0]), np.array([[0.0], [0.4]]), np.array([[0.5], [1.0]])
    build, valid = (intra_class, INTRA) if name == "intra" else (inter_class, INTER)
    grid = moments(build(**valid | {"p_spu": p}), captions(pi_core, pi_spu, masking))
    for i in range(2):
        for j in range(3):
            caps = captions(pi_core[i, 0], pi_spu[i, 0], masking)
            one = moments(build(**valid | {"p_spu": p[j]}), caps)
            assert_trees_close(jax.tree.map(lambda x, cell=(i, j): x[cell], grid), one)


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("intra", {"sigma_core": (3,), "mu_spu": (3,)}),
        ("intra", {"p_spu": (3,), "sigma_core": (2, 1)}),
        ("inter", {"alpha": (3,)}),
        ("inter", {"beta": (2, 1), "alpha": (3,), "beta_spu": (4, 1, 1)}),
    ],
)
def test_leaves_of_a_model_broadcast_against_each_other(name, leaves):
    build, valid = (intra_class, INTRA) if name == "intra" else (inter_class, INTER)
    values = {key: np.linspace(0.2, 0.8, int(np.prod(shape))).reshape(shape) for key, shape in leaves.items()}
    grid = moments(build(**valid | values), captions(**CAPTIONS))
    shape = np.broadcast_shapes(*leaves.values())
    spread = {key: np.broadcast_to(x, shape) for key, x in values.items()}
    for cell in np.ndindex(shape):
        one = moments(build(**valid | {key: x[cell] for key, x in spread.items()}), captions(**CAPTIONS))
        for field in ("zz", "zu", "uu"):
            np.testing.assert_allclose(getattr(grid, field)[cell], getattr(one, field), rtol=1e-12)


@over_models
@over_maskings
def test_moments_have_the_derivatives_of_their_polynomials(name, masking):
    """Every moment is a polynomial of degree <= 2 in each leaf, so a central difference is exact."""
    model, caps = MODELS[name](), captions(**CAPTIONS, masking=masking)
    pieces = {"p_spu": model, list(model.__dataclass_fields__)[1]: model, "pi_core": caps, "pi_spu": caps}
    leaves = {leaf: getattr(piece, leaf) for leaf, piece in pieces.items()}

    @jax.jit
    def at(leaves):
        args = [
            dataclasses.replace(piece, **{k: x for k, x in leaves.items() if pieces[k] is piece})
            for piece in (model, caps)
        ]
        return jnp.stack(jax.tree.leaves(moments(*args)))

    jacobian = jax.jit(jax.jacobian(at))(leaves)
    for leaf, x in leaves.items():
        up, down = (np.asarray(at(leaves | {leaf: np.asarray(x) + step})) for step in (0.125, -0.125))
        want = (up - down) / 0.25
        np.testing.assert_allclose(jacobian[leaf], want, atol=1e-12, err_msg=leaf)

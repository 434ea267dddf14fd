"""`sims.explore`: the numbers of the page against direct calls of the library, and where they are put."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmcl_theory as mt
from sims.explore import model
from sims.explore.config import DIALS, INITIAL, MASKINGS, NAMES, Config

POINTS = 1 + len(NAMES)


def points(seed, **fixed):
    """Random positions of all dials, (POINTS, dials), with some of them fixed."""
    rng = np.random.default_rng(seed)
    found = np.stack([rng.choice(dial.values, POINTS) for dial in DIALS.values()], 1)
    for name, value in fixed.items():
        found[:, NAMES.index(name)] = value
    return found


@functools.partial(jax.jit, static_argnames=("name", "masking", "dims"))
def direct(at, name, masking, dims):
    """(POINTS, 2): the library's accuracies, with the observation in these dimensions."""
    p = dict(zip(NAMES, at.T, strict=True))
    law = mt.intra_class(p["p_spu"], p["sigma_core"], p["sigma_spu"], p["mu_core"], p["mu_spu"])
    caps = mt.captions(p["pi_core"], p["pi_spu"], masking)
    obs = mt.observation(*dims, p["sigma_image"], p["sigma_text"])
    found = {
        "mmcl": lambda: mt.theory.mmcl_accuracy(law, caps, obs, p["n"], same_class_weight=p["same_class_weight"]),
        "whitened": lambda: mt.theory.whitened_accuracy(law, caps, obs, p["theta"]),
        "ridge": lambda: mt.theory.ridge_accuracy(law, caps, obs, p["kappa"]),
        "supervised": lambda: mt.theory.supervised_accuracy(law, obs, p["n"]),
        "training": lambda: mt.theory.training_accuracy(law, caps, obs, time=p["time"], initial=INITIAL),
    }[name]()
    return jnp.stack([found.aligned, found.conflicting], 1)


# The dial that is moved to see that the comparison notices.
MOVES = {"mmcl": "n", "whitened": "theta", "ridge": "kappa", "supervised": "n", "training": "time"}
CASES = [("mean", (1000, 10)), ("named", (10, 1000)), ("zero", (100, 100))]


QUICK = [name for name in MOVES if name != "supervised"]  # which takes longest to compile


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "masking", "dims"),
    [
        pytest.param(name, *case, marks=[] if case == CASES[0] and name in QUICK else pytest.mark.slow)
        for name in MOVES
        for case in CASES
    ],
)
def test_the_numbers_are_the_librarys(name, masking, dims):
    # Noise that counts, and samples of a size at which there are predictions: SL's must be separable.
    n = min(200.0, dims[0] / 2) if name == "supervised" else 200.0
    at = points(dims[0], dim_image=dims[0], dim_text=dims[1], sigma_image=3.0, n=n)
    expected = direct(jnp.asarray(at), name, masking, dims)
    assert np.isfinite(expected).any()

    def check(at):
        shown = model.predict(jnp.asarray(at), name, masking)[:, :2]
        np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-9)

    check(at)
    dial, column = DIALS[MOVES[name]].values, NAMES.index(MOVES[name])
    at[:, column] = [dial[(dial.index(x) + 3) % len(dial)] if x in dial else dial[0] for x in at[:, column]]
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(at)


def test_arrows_point_where_the_rules_do():
    """X3's formula of the linear loss; and the whitened family begins with C."""
    at = points(1, sigma_image=3.0, n=200.0, dim_image=1000, dim_text=10, theta=0.0)
    p = dict(zip(NAMES, at.T, strict=True))
    between = 2 * (1 - p["same_class_weight"]) * p["mu_core"]
    spurious = between * (2 * p["p_spu"] - 1) * p["mu_spu"]
    linear, whitened = (np.asarray(model.predict(jnp.asarray(at), name, "mean")) for name in ("mmcl", "whitened"))
    expected = np.arctan2(spurious, p["pi_core"] * p["sigma_core"] ** 2 + between * p["mu_core"])
    known = ~np.isnan(linear[:, 2])
    assert known.any()
    np.testing.assert_allclose(linear[known, 2], expected[known], rtol=0, atol=1e-9)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(whitened[:, 2], expected, rtol=0, atol=1e-9)
    at[:, NAMES.index("same_class_weight")] = 0.5
    ordinary = np.asarray(model.predict(jnp.asarray(at), "mmcl", "mean"))
    np.testing.assert_allclose(ordinary[known, 2], whitened[known, 2], rtol=0, atol=1e-9)


@pytest.mark.costly
@pytest.mark.parametrize("name", MOVES)
def test_they_depend_on_what_is_listed_and_on_nothing_else(name):
    start = np.array(list(Config({"pi_core": 0.5, "pi_spu": 0.5, "sigma_image": 3.0, "n": 200.0}).at.values()))
    at = np.stack([start, *(start.copy() for _ in NAMES)])
    for i, dial in enumerate(DIALS.values()):
        k = dial.values.index(start[i])
        at[1 + i, i] = dial.values[k + 1 if k + 1 < len(dial.values) else k - 1]
    found = np.asarray(model.predict(jnp.asarray(at), name, "mean"))
    moved = {dial for i, dial in enumerate(NAMES) if not np.allclose(found[1 + i], found[0], rtol=0, atol=1e-9)}
    assert np.isfinite(found).all() and moved == set(model.DEPENDS[name])


@pytest.mark.costly
def test_a_rule_without_a_direction_or_a_prediction_has_no_arrow():
    """Captions that say nothing give w = 0, which guesses; X1 needs image noise."""
    at = points(0, sigma_image=0.0, pi_core=0.0, theta=0.0)
    silent, named = (np.asarray(model.predict(jnp.asarray(at), "whitened", masking)) for masking in ("zero", "mean"))
    np.testing.assert_allclose(silent[:, :2], 0.5)
    assert np.isnan(silent[:, 2]).all() and np.isfinite(named).all()
    linear, trained = (np.asarray(model.predict(jnp.asarray(at), name, "zero")) for name in ("mmcl", "training"))
    assert np.isnan(linear[:, 2]).all() and (np.isnan(linear[:, :2]) | (linear[:, :2] == 0.5)).all()
    assert np.isnan(trained).all()  # whatever it starts with
    assert np.isnan(np.asarray(model.predict(jnp.asarray(at), "supervised", "mean"))).all()


@pytest.fixture
def traced(monkeypatch):
    """Predictions that say at which point they are: the values of two dials, and the number of the learner."""

    def tell(points, times, masking):
        points, times = np.asarray(points), np.asarray(times)
        dials = points[:, [NAMES.index("p_spu"), NAMES.index("n")]]
        found = [np.concatenate([dials, np.full((len(points), 1), i)], 1) for i in range(len(model.LEARNERS))]
        return np.stack(found, 1), times[:, [NAMES.index("time"), NAMES.index("p_spu")]]

    monkeypatch.setattr(model, "predict_all", tell)


def test_every_number_is_put_where_its_dials_stand(traced):
    at = Config({"p_spu": 0.7, "n": 1000.0}).at
    found = model.view(at, "named", "n", "p_spu")
    assert found["point"].tolist() == [[0.7, 1000.0, i] for i in range(4)]
    assert found["curve"][:, 0, 0].tolist() == list(DIALS["p_spu"].values) and (found["curve"][:, :, 1] == 1000).all()
    assert found["time"].tolist() == [[t, 0.7] for t in DIALS["time"].values]
    for (i, p), (j, n) in itertools.product(enumerate(model.axis("p_spu")), enumerate(model.axis("n"))):
        assert found["plane"][i, j, 2].tolist() == [p, n, 2]
    turned = model.view(at, "named", "p_spu", "n")["plane"]
    np.testing.assert_array_equal(turned, np.swapaxes(found["plane"], 0, 1))
    assert np.isnan(model.view(at, "named", "n", "n")["plane"]).all()


@pytest.mark.parametrize("name", NAMES)
def test_planes_fit_into_the_program(name):
    values = model.axis(name)
    assert len(values) <= model.MOST and {values[0], values[-1]} == {DIALS[name].values[0], DIALS[name].values[-1]}


@pytest.mark.slow
@pytest.mark.parametrize("masking", MASKINGS)
def test_a_view_is_what_each_learner_says(masking):
    """The program of the live page against those of the file, with what lies between them."""
    config = Config({"p_spu": 0.9, "pi_core": 0.5, "sigma_image": 3.0, "n": 200.0}, masking)
    found = model.view(config.at, masking, "kappa", "sigma_spu")
    here = np.array(list(config.at.values()))
    for k, name in enumerate(model.LEARNERS):
        point = np.asarray(model.predict(here[None], name, masking))[0]
        np.testing.assert_allclose(found["point"][k], point, rtol=0, atol=1e-9)
        moved = here.copy()
        moved[[NAMES.index("kappa"), NAMES.index("sigma_spu")]] = model.axis("kappa")[3], model.axis("sigma_spu")[7]
        there = np.asarray(model.predict(moved[None], name, masking))[0]
        np.testing.assert_allclose(found["plane"][7, 3, k], there, rtol=0, atol=1e-9)
        assert not np.allclose(found["plane"][3, 7, k], there, rtol=0, atol=1e-9)


def test_a_file_has_the_start_among_its_values():
    config = Config({"p_spu": 0.83, "sigma_core": 0.5, "kappa": 20.0})
    grid = config.grid
    assert set(grid) == {name for name, dial in DIALS.items() if dial.grid}
    for name, values in grid.items():
        assert (
            config.at[name] in values and list(values) == sorted(set(values)) and len(values) == len(DIALS[name].grid)
        )
    assert grid["n"] == DIALS["n"].grid and 0.85 not in grid["p_spu"]


def test_tables_have_the_dials_in_order(monkeypatch):
    """In chunks of 4 points, the last of which is filled up; every learner as the sum of its dials' numbers."""
    monkeypatch.setattr(model, "CHUNK", 4)
    seen = []

    def told(points, name, masking):
        seen.append(len(points))
        return np.stack([np.asarray(points) @ (10.0 ** -np.arange(len(NAMES)))] * (2 if name == "training" else 3), 1)

    monkeypatch.setattr(model, "predict", told)
    grid = {"p_spu": (0.5, 1.0), "pi_core": (0.0, 0.5, 1.0), "n": (50.0, 500.0, 5000.0)}
    found = model.tables(Config().at, "named", grid)
    assert {name: table.shape for name, table in found.items()} == {
        "mmcl": (2, 3, 3, 3),
        "whitened": (2, 3, 3),
        "ridge": (2, 3, 3),
        "supervised": (2, 3, 3),
        "training": (2, 3, 2),
    }
    assert set(seen) == {4}
    at = np.array(list(dataclasses.replace(Config(), values={"p_spu": 1.0, "pi_core": 0.5, "n": 5000.0}).at.values()))
    np.testing.assert_allclose(found["mmcl"][1, 1, 2, 0], at @ (10.0 ** -np.arange(len(NAMES))))

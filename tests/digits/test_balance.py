"""Which captions and which ridge the theory predicts to be best, and the study that trains there."""

import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats

import mmcl_theory as mt
from sims.digits import balance, dial, figures, moments, studies
from sims.digits.config import BALANCED, PRESETS, parse_groups
from sims.engine.flags import DEFAULTS

pytestmark = pytest.mark.usefixtures("compiled")

KINDS = parse_groups("01234:56789")


def test_the_tilt_of_the_whitened_rule_is_that_of_the_captions():
    """An encoder that sees all scores a - b Cov(a, b) / Var(b); class means are 2.5 for a and 1.5 for b."""
    covariance, variance = 2.5 * 1.5 * (2 * 0.995 - 1), (2.5**2 + 1.5**2 + 0.5**2) / 3 + 1 / 2000
    expected = -covariance / variance * 1.5 / 2.5
    assert np.isclose(balance.tilt(KINDS, "joint", (1.0, 1.0), 0.0), expected, rtol=1e-9)
    assert not np.isclose(balance.tilt(KINDS, "joint", (1.0, 1.0), 0.0, p_spu=0.965), expected, rtol=1e-3)
    assert abs(balance.tilt(KINDS, "joint", (1.0, 1.0), 0.0, p_spu=0.5)) < 1e-9


def test_balanced_captions_are_a_root_and_the_paper_s_masking_has_none():
    kappa = 1e-3
    found = balance.balanced_pi_spu(KINDS, "separate", 1.0, kappa, masking="named")
    below, there, above = (
        balance.tilt(KINDS, "separate", (1.0, found.at + by), kappa, masking="named") for by in (-0.05, 0.0, 0.05)
    )
    assert abs(there) < 1e-6 and below > 1e-3 and above < -1e-3
    assert balance.balanced_pi_spu(KINDS, "joint", 1.0, 0.0, masking="named").at == 0
    for features in balance.FEATURES:
        none = balance.balanced_pi_spu(KINDS, features, 1.0, 0.0, masking="mean")
        assert np.isnan(none.at) and max(none.ends) < -0.5


def test_balanced_captions_are_predicted_to_keep_both_groups():
    """Against captions that name all; without a correlation there is nothing to gain."""
    kappas = np.zeros(1)

    def curve(features, pi_spu, p_spu):
        return dial.of_states(KINDS, features, (1.0, pi_spu), kappas, p_spu, "named")[0]

    for features in balance.FEATURES:
        assert curve(features, 0.0, 0.995).tolist() == [1, 1] and curve(features, 1.0, 0.995).tolist() == [0.6, 1]
        assert curve(features, 1.0, 0.5).tolist() == [1, 1]


def test_best_kappas_of_a_curve():
    kappas = np.array([0.0, 0.1, 1.0, np.inf])
    curve = np.array([[0.6, 1.0], [0.8, 0.8], [0.9, 0.7], [1.0, 0.0]])
    assert balance.best_kappa(curve, kappas, "shifted") == balance.Best(0.8, 0.0, 1.0)
    assert balance.best_kappa(curve, kappas, "worst") == balance.Best(0.8, 0.1, 0.1)


@pytest.mark.costly
def test_the_two_feature_model_s_balanced_captions_reach_the_bound():
    with jax.enable_x64(True):
        model = mt.intra_class(0.99, 1.0, 0.1, 1.0, 1.0)
        obs = mt.observation(dim_image=2, sigma_image=0.4, dim_text=2, sigma_text=0.0)
        names, *rows = balance.table_of_two_features(model, obs)
    shares = dict(zip(("rich", "ridge", "balanced"), ([float(x) for x in row[1:]] for row in rows), strict=True))
    bound = scipy.stats.norm.cdf(1 / np.sqrt(1 + 0.4**2 / 2))
    np.testing.assert_allclose(shares["balanced"], bound, atol=6e-4)
    np.testing.assert_allclose(shares["ridge"], bound, atol=6e-4)
    assert names[1:] == ["aligned", "conflicting", "P*"] and shares["rich"][2] < bound - 0.01


TINY = dataclasses.replace(
    PRESETS["paper"], study=(BALANCED,), masking="named", image_encoder="linear", embed_dim=8, train_size=64,
    batch_size=16, epochs=(1, 2), temperature_grid=(0.5, 1.0), test=40, seeds=2,
)  # fmt: skip


@pytest.mark.slow
def test_the_study_trains_at_the_balanced_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "_SAMPLES", 1024)
    with jax.enable_x64(False):
        found = studies.run(TINY, tmp_path, DEFAULTS)[BALANCED]
    assert found.sizes["arm"] == 3 and found.sizes["temperature"] == 2
    assert {"balanced.png", "summary.csv", "digits.csv"} <= {p.name for p in (tmp_path / BALANCED).iterdir()}
    np.testing.assert_allclose(
        found.measured.sel(measure="temperature").mean(("arm", "seed", "step")).squeeze(), (0.5, 1)
    )
    told = studies.text(found).splitlines()
    assert len(told) == 2 + 3 * 2 and "1.000/1.000" in told[-1] and "0.600/1.000" in told[2]
    figure = figures.balanced(found)
    assert [ax.get_xlabel() for ax in figure.axes] == [r"temperature $\tau$, fixed"] * 3
    plt.close(figure)


@pytest.mark.costly
def test_the_predictions_are_printed_without_training():
    small = dataclasses.replace(TINY, pool=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "_SAMPLES", 1024)
        patch.setattr(dial, "KAPPAS", np.array([0.0, 1.0, np.inf]))
        told = studies.predictions(small)
    assert told.count("balanced") >= 3 and "captions (1, 1), the best kappa" in told

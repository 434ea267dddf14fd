"""`sims.dynamics` at a tiny size: theory meets the linear loss, InfoNCE starts alike, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import mmcl_theory as mt
from mmcl_theory import learners, losses
from sims import show
from sims.dynamics import experiment
from sims.dynamics.config import Config
from sims.engine import statistics
from sims.engine.flags import UsageError
from tests.helpers import assert_another_run_is_refused

pytestmark = pytest.mark.usefixtures("float32")

TINY = Config(n=1000, dim_image=3, dim_text=3, batch_size=32, end=6.0, points=12, rate=0.01, seeds=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("dynamics") / "out"
    with jax.enable_x64(False):
        return out, experiment.run(TINY, out)


@pytest.mark.slow
def test_the_folder_holds_the_files(finished):
    out, data = finished
    files = [".lock", "config.json", "dynamics.pdf", "dynamics.png", "results.zarr", "summary.csv"]
    assert sorted(p.name for p in out.iterdir()) == files
    assert data.accuracy_measured.dims == ("loss", "seed", "time", "group")
    assert np.isfinite(data.accuracy_measured).all() and data.z.sel(loss="info_nce").isnull().all()
    assert show.show(out, out) == experiment.text(data)


@pytest.mark.slow
def test_theory_meets_the_linear_loss_and_no_other(finished):
    """The rate is 2.5 times the default's, so that what finite steps leave out is too."""
    _, data = finished
    samples = np.moveaxis(data.accuracy_measured.values, 1, -1)
    left_out = 2.5 * experiment.LEFT_OUT
    linear, other = (statistics.z_scores(data.accuracy_predicted.values, x, left_out).max() for x in samples[:2])
    limit = scipy.stats.norm.isf(statistics.LEVEL / (2 * data.accuracy_predicted.size))
    assert linear < limit < other
    assert statistics.z_scores(data.accuracy_predicted.values[::-1], samples[0], left_out).max() > 6


@pytest.mark.slow
def test_info_nce_starts_as_the_linear_loss_and_parts_from_it(finished):
    mean = finished[1].accuracy_measured.mean("seed").diff("loss").squeeze()
    assert np.abs(mean.isel(time=slice(0, 4))).max() < 0.01
    assert np.abs(mean.isel(time=-1)).max() > 0.05


@pytest.mark.slow
def test_small_scores_give_info_nce_the_gradient_of_the_linear_loss():
    """dL/dW = -(N-1)/(N tau) C_hat at W = 0."""
    with jax.enable_x64(True):
        key = jax.random.key(0)
        obs = mt.observation(5, 4, 0.5, 0.5)
        pairs = mt.sample_pairs(key, mt.intra_class(0.9, 1.0, 0.3), mt.captions(0.5, 0.5), obs, 40)
        for tau in (0.5, 2.0):
            gradient = jax.grad(lambda w, tau=tau: losses.info_nce(pairs.image @ w, pairs.text, temperature=tau))
            expected = -39 / 40 / tau * learners.cross_covariance(pairs.image, pairs.text)
            np.testing.assert_allclose(gradient(jnp.zeros((5, 4))), expected, atol=1e-12)


def test_recorded_times_are_sums_of_rates():
    rates, times, recorded = experiment.schedule(TINY)
    np.testing.assert_allclose(times, 4 * np.cumsum(rates))
    assert times[-1] >= TINY.end and (np.diff(recorded) > 0).all() and rates.max() <= TINY.largest_rate


@pytest.mark.slow
def test_another_run_is_refused_and_nothing_changes(finished):
    assert_another_run_is_refused(experiment, TINY, finished[0], seed=1)


@pytest.mark.parametrize(
    "change, mentioned",
    [
        ({"p_spu": 1.5}, "--p_spu must be in"),
        ({"noise": -1.0}, "--noise must be >= 0"),
        ({"rate": 0.2}, "--rate must be <="),
        ({"end": 0.0}, "--end must be > 0"),
        ({"batch_size": 10**6}, "--batch_size must be <="),
        ({"seeds": 1}, "--seeds must be >= 2"),
        ({"dim_image": 1}, "--dim_image must be >= 2"),
        ({"temperature": 0.0}, "--temperature must be > 0"),
    ],
)
def test_bad_values_are_refused(change, mentioned, tmp_path):
    with pytest.raises(UsageError) as error:
        experiment.run(Config(**change), tmp_path / "out")
    assert mentioned in str(error.value) and not (tmp_path / "out").exists()

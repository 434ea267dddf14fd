"""`sims.sweep_captions` at a tiny size: both models, both losses, the budget, and what is refused."""

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from sims import show
from sims.engine import statistics
from sims.engine.flags import UsageError
from sims.sweep_captions import experiment
from sims.sweep_captions.config import Config
from tests.helpers import assert_another_run_is_refused, quick_compilation

pytestmark = pytest.mark.usefixtures("float32")

SIZES = (("n", 3000.0), ("num_pairs", 2.0), ("dim_image", 4.0), ("dim_text", 4.0))
TINY = Config(pi_core=(0.0, 1.0), pi_spu=(0.5, 1.0), seeds=16, parameters=SIZES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("captions") / "out"
    with quick_compilation(), jax.enable_x64(False):
        return out, experiment.run(TINY, out)


@pytest.mark.slow
def test_the_folder_holds_the_files(finished):
    out, data = finished
    files = [".lock", "config.json", "results.zarr", "summary.csv", "sweep_captions.pdf", "sweep_captions.png"]
    assert sorted(p.name for p in out.iterdir()) == files
    assert data.accuracy_measured.dims == ("model", "loss", "seed", "pi_spu", "pi_core", "group")
    assert data.accuracy_measured.shape == (2, 2, 16, 2, 2, 2)
    assert len((out / "summary.csv").read_text().splitlines()) == 1 + 16
    assert show.show(out, out) == experiment.text(data)


@pytest.mark.slow
def test_measured_cells_meet_the_prediction_and_no_wrong_one(finished):
    data = finished[1].sel(model="intra_class")
    assert data.z.max() < 6
    samples = np.moveaxis(data.accuracy_measured.values, 1, -1)
    predicted = data.accuracy_predicted.values
    for wrong in (predicted[:, :, ::-1], predicted[..., ::-1], predicted[::-1]):
        assert statistics.z_scores(wrong, samples, 0.01).max() > 6


@pytest.mark.slow
def test_pi_spu_matters_under_the_whitened_rule_only(finished):
    change = finished[1].accuracy_predicted.sel(model="intra_class", pi_core=1.0).diff("pi_spu")
    assert np.abs(change.sel(loss="linear")).max() < 1e-3
    assert np.abs(change.sel(loss="whitened")).max() > 0.05


@pytest.mark.slow
def test_the_budget_is_kept_and_certified(finished):
    _, data = finished
    assert (data.best.sum("detail") <= TINY.budget + 1e-9).all()
    assert (data.kkt_residual < 1e-5).all()
    best = data.best.sel(model="intra_class", loss="linear").values
    np.testing.assert_allclose(best[0], 1.0, atol=1e-6)  # T5: only the core detail helps
    assert "best captions within the budget" in experiment.text(data)


@pytest.mark.slow
def test_the_figure_shows_every_panel(finished):
    figure = experiment.draw(finished[1])
    assert len(figure.axes) == 12 and all("core" in ax.get_xlabel() for ax in figure.axes)
    plt.close(figure)


@pytest.mark.slow
def test_another_run_is_refused_and_nothing_changes(finished):
    assert_another_run_is_refused(experiment, TINY, finished[0], budget=0.5)


@pytest.mark.parametrize(
    "change, mentioned",
    [
        ({"model": ("other",)}, "--model must be of"),
        ({"pi_core": (0.0, 2.0)}, "--pi_core must be in"),
        ({"pi_core": (0.5,)}, "--pi_core must be two or more"),
        ({"budget": -1.0}, "--budget must be >= 0"),
        ({"cost_spu": 0.0}, "--cost_spu must be > 0"),
        ({"seeds": 1}, "--seeds must be >= 2"),
        ({"parameters": (("alpha", 0.0),)}, "--alpha must be > 0"),
        ({"model": ("intra_class",), "parameters": (("alpha", 0.1),)}, "--alpha is no parameter of intra_class"),
        ({"parameters": (("num_pairs", 40.0),)}, "the number of latents"),
    ],
)
def test_bad_values_are_refused(change, mentioned, tmp_path):
    with pytest.raises(UsageError) as error:
        experiment.run(Config(**change), tmp_path / "out")
    assert mentioned in str(error.value) and not (tmp_path / "out").exists()

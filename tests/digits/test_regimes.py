"""Gains over other arms: which stages are compared, and of which kind a gain is."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sims.digits import moments, regimes, studies, training
from sims.digits.config import AXES

ARMS = ("clip", "label_only", "cross_entropy")
P_SPU, STEPS = (0.9, 0.99), (10, 20, 40)
BATCH = 128


def a_study(groups, losses, arms=ARMS, spread=0.0, seeds=4):
    """Results over P_SPU and STEPS, by arm: (aligned, conflicting), (p_spu, step, 2), and losses, (p_spu, step)."""
    coords = {axis: [0.5] for axis in AXES} | {"p_spu": list(P_SPU)}
    dims = ("arm", "seed", *AXES, "step", "measure")
    shape = (len(arms), seeds, *(len(v) for v in coords.values()), len(STEPS), len(training.MEASURES))
    labels = {"arm": list(arms), **coords, "step": list(STEPS), "measure": list(training.MEASURES)}
    measured = np.full((len(arms), seeds, len(P_SPU), len(STEPS), len(training.MEASURES)), 0.5)
    aside = spread * (np.arange(seeds) - (seeds - 1) / 2)
    for of_arm, arm in zip(measured, arms, strict=True):
        values = np.broadcast_to(groups[arm], (2, 3, 2))
        for number, name in enumerate(training.MEASURES):
            for i, group in enumerate(training.GROUPS):
                if name in {f"{readout} {group} {label}" for readout in training.READOUTS for label in training.LABELS}:
                    of_arm[..., number] = values[..., i] + aside[:, None, None]
        of_arm[..., training.MEASURES.index("loss")] = losses[arm]
    measured = xr.DataArray(measured.reshape(shape), dims=dims, coords=labels)
    config = {"study": "correlation", "batch_size": BATCH, "train_size": 2000}
    return xr.Dataset({"measured": measured}, attrs={"config": json.dumps(config)})


def of_information(*shares):
    """Losses of a contrastive arm and of a classifier with these shares of a plateau of half of what can be known."""
    shares = np.array(shares)
    return np.log(BATCH) * (1 - shares / 2), np.log(2) * (1 - shares / 2)


CONTRASTIVE, CLASSIFIER = of_information(0.5, 0.9, 1.0)
LOSSES = {"clip": CONTRASTIVE, "label_only": CONTRASTIVE, "cross_entropy": CLASSIFIER}


def test_arms_are_compared_at_equal_information():
    losses = LOSSES | {"cross_entropy": of_information(0.88, 0.97, 1.0)[1]}
    late = np.zeros((2, 3, 2)) + np.array([0.9, 0.6, 0.5])[None, :, None]  # supervised: worse and worse on P*
    groups = {"clip": (0.8, 0.7), "label_only": (0.9, 0.4), "cross_entropy": late}
    found = [cell for cell in regimes.cells(a_study(groups, losses)) if cell.over == "cross_entropy"]
    assert [(cell.step, cell.other_step) for cell in found[:3]] == [(10, 10), (20, 10), (40, 40)]
    np.testing.assert_allclose([cell.gain for cell in found[:3]], [0.75 - 0.9, 0.75 - 0.9, 0.75 - 0.5])
    np.testing.assert_allclose([cell.information for cell in found[:3]], [0.5, 0.9, 1.0])
    np.testing.assert_allclose([cell.other_information for cell in found[:3]], [0.88, 0.88, 1.0])
    assert [cell.kind for cell in found[:3]] == ["unmatched", "loss", "both groups"]  # .88 is not near .5
    np.testing.assert_allclose([cell.conflicting_images for cell in found[::3]], [200, 20])
    assert len(regimes.cells(a_study(groups, losses, ("clip", "label_only")))) == 6
    more = {"no_intra_class": (0.6, 0.5)}, {"no_intra_class": CONTRASTIVE}
    third = regimes.cells(a_study(groups | more[0], losses | more[1], (*ARMS, "no_intra_class")))
    assert {cell.over for cell in third} == {*ARMS[1:], "no_intra_class"}
    assert {round(cell.gain, 6) for cell in third if cell.over == "no_intra_class"} == {0.2}
    assert not regimes.cells(a_study(groups, losses, ("label_only", "cross_entropy")))


@pytest.mark.parametrize(
    "aligned, conflicting, kind",
    [(0.8, 0.7, "both groups"), (0.62, 0.7, "both groups"), (0.5, 0.9, "over-correction"), (0.95, 0.5, "shortcut"),
     (0.5, 0.6, "loss"), (0.6, 0.6, "none")],
)  # fmt: skip
def test_kinds_of_gain(aligned, conflicting, kind):
    assert regimes.kind_of((aligned + conflicting) / 2 - 0.6, 0.02, aligned, conflicting, 0.6) == kind
    assert regimes.kind_of((aligned + conflicting) / 2 - 0.6, 0.5, aligned, conflicting, 0.6) == "none"
    assert regimes.kind_of(np.nan, np.nan, aligned, conflicting, 0.6) == "none"


def test_a_seed_that_diverged_leaves_its_cell_out():
    dataset = a_study(dict.fromkeys(ARMS, (0.7, 0.7)), LOSSES)
    dataset.measured.loc[{"arm": "clip", "seed": 1, "step": 20, "p_spu": 0.9}] = np.nan
    found = regimes.cells(dataset)
    assert len(found) == 2 * 5 and (0.9, 20) not in {(cell.p_spu, cell.step) for cell in found}


def test_the_map_names_its_axes():
    groups = {"clip": (0.6, 0.8), "label_only": (0.9, 0.3), "cross_entropy": (0.99, 0.3)}
    figure = regimes.drawn(a_study(groups, LOSSES, spread=0.01))
    figure.draw_without_rendering()
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    assert panels[1].get_title().endswith("captions name the class only")
    assert (
        len(panels) == 4 and all(ax.get_xlabel() for ax in panels) and panels[0].get_ylabel() and panels[2].get_ylabel()
    )
    plt.close(figure)


def test_masking_mean_leaves_the_hue_in_every_caption():
    dataset = a_study(dict.fromkeys(ARMS, (0.7, 0.7)), LOSSES)
    for masking, said in (("mean", "class and hue only"), ("named", "the class only")):
        dataset.attrs["config"] = json.dumps(
            {"study": "correlation", "batch_size": BATCH, "train_size": 2000, "captions": "vectors", "masking": masking}
        )
        assert regimes._label(dataset, "label_only").endswith(said)
        assert regimes._label(dataset, "cross_entropy") == "SL, cross-entropy"


@pytest.mark.slow
def test_a_folder_gets_the_map_and_its_table(tmp_path):
    dataset = a_study(dict.fromkeys(ARMS, (0.7, 0.7)), LOSSES)
    sizes = [dataset.sizes[axis] for axis in AXES]
    names = {"theory": moments.THEORIES, "predicted_prompt": moments.PROMPTS, "group": training.GROUPS}
    shape = (len(moments.THEORIES), len(ARMS), *sizes, len(moments.PROMPTS), len(training.GROUPS))
    law = [dataset.sizes[axis] for axis in moments.LAW]
    dataset = dataset.assign(
        accuracy_predicted=(("theory", "arm", *AXES, "predicted_prompt", "group"), np.full(shape, np.nan)),
        moments=((*moments.LAW, "moment"), np.zeros((*law, len(moments.MOMENTS)))),
    ).assign_coords({name: list(values) for name, values in names.items()})
    studies.show(dataset, tmp_path)
    assert {"regimes.png", "correlation.png", "summary.csv"} <= {file.name for file in tmp_path.iterdir()}
    head, *lines = (tmp_path / "regimes.csv").read_text().splitlines()
    assert head.startswith("over,p_spu,step") and len(lines) == 2 * 2 * 3

"""The comparison's predictions against the library's theory, its intervals and processes, the command end to end."""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.special
import scipy.stats

import mmcl_theory as mt
from sims.clip import compare
from sims.clip.comparison import figures, matched
from sims.clip.comparison import runs as comparison
from sims.clip.comparison.config import Config, Run
from sims.clip.fit import speed
from sims.clip.model.encoder import Encoder
from sims.clip.records import reading
from sims.clip.scenes import generation, law, layouts
from sims.engine import processes
from sims.engine.flags import UsageError
from tests.helpers import ROOT, assert_refused, assert_refuses, csv_rows, python


@pytest.mark.slow
def test_the_rules_are_those_of_the_theory():
    """On the theory's own data: two classes, latents seen through a dictionary, one caption an image."""
    model = mt.intra_class(0.9, 1.0, 0.3)
    caps = mt.captions(0.7, 0.4)
    obs = mt.observation(dim_image=6, dim_text=4, sigma_image=0.5, sigma_text=0.4)
    seen = mt.data.draw_dictionaries(jax.random.key(2), model, obs)
    pairs = mt.sample_pairs(jax.random.key(0), model, caps, obs, 200_000, seen)
    image, text = (np.asarray(x) for x in (pairs.image, pairs.text))
    targets = np.array([[1.0], [-1.0]]) * np.asarray(seen.text)[:, 0]
    (found,) = comparison.rules(image, np.cov(image, rowvar=False), [t[None] for t in text], targets, [1e-9])
    expected = {
        "linear": mt.theory.mmcl_accuracy(model, caps, obs),
        "whitened": mt.theory.whitened_accuracy(model, caps, obs),
    }
    fresh = mt.sample_pairs(jax.random.key(1), mt.intra_class(0.5, 1.0, 0.3), caps, obs, 200_000, seen)
    for name, rule in found.items():
        score = (np.asarray(fresh.image) - image.mean(0)) @ (rule[0] - rule[1])
        right = score * np.asarray(fresh.label) > 0
        same = np.asarray(fresh.label) == np.asarray(fresh.attribute)
        for group, accuracy in ((same, expected[name].aligned), (~same, expected[name].conflicting)):
            assert right[group].mean() == pytest.approx(float(accuracy), abs=0.01), name
        other = expected["linear" if name == "whitened" else "whitened"]
        assert abs(right[~same].mean() - float(other.conflicting)) > 0.03


def test_an_interval_holds_seeds_and_images():
    """Coverage of the mean over seeds of shares that are measured on one set of images."""
    rng, inside, without = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        level = np.clip(rng.normal(0.7, 0.05, 4), 0, 1)  # seeds differ
        shared = rng.normal(0, (0.7 * 0.3 / 100) ** 0.5)  # and see the same 100 images
        values = level + shared
        mean, half = comparison.interval(values, 100)
        inside += abs(mean - 0.7) <= half
        without += abs(mean - 0.7) <= comparison.interval(values, 10**9)[1]
    low = scipy.stats.binom.ppf(1e-6, 2000, 0.95)
    assert inside >= low > without


def test_a_gap_is_told_from_zero_by_both_groups():
    mean, half = comparison.gap_interval([0.8, 0.9, 0.85], [0.4, 0.5, 0.45], 10**9)
    assert mean == pytest.approx(0.4) and half == pytest.approx(0.0, abs=1e-4)
    assert comparison.gap_interval([0.8, 0.9, 0.85], [0.5, 0.4, 0.45], 10**9)[1] > 0.1
    _, few = comparison.gap_interval([0.8] * 3, [0.5] * 3, 100)
    assert few == pytest.approx(1.959964 * (0.8 * 0.2 / 100 + 0.5 * 0.5 / 100) ** 0.5)


def test_the_ensembles_of_a_pair_differ_in_the_class_alone():
    settings = layouts.Config(pi_companion=0.5, p_companion=0.5)
    for core, spu in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5)):
        found = comparison.ensembles(settings, Run("clip", core, spu, 0))
        for k, kind in enumerate(law.CLASSES):
            own, other = (
                sorted(text.replace(law.CLASSES[c].name, "X").replace("an X", "a X") for text in found[c])
                for c in (k, kind.partner)
            )
            assert all(law.CLASSES[k].name in text for text in found[k])
            places = [c for c in law.CONTEXTS if any(re.search(rf"\b{c}\b", text) for text in own)]
            assert sorted(places) == sorted([law.CONTEXTS[k], law.CONTEXTS[kind.partner]] if spu else [])
            assert [len(t) for t in (own, other)] == [len(own)] * 2
            words = [sorted(" ".join(texts).replace("an ", "a ").split()) for texts in (own, other)]
            assert words[0] == words[1]


def test_within_a_pair_the_other_classes_do_not_count():
    for partner, right in ((0.5, True), (2.0, False)):
        scores = np.zeros((1, 10))
        scores[0, [0, law.CLASSES[0].partner, 5]] = 1.0, partner, 9.0
        assert comparison._within_pairs(scores, np.array([0])).tolist() == [right]


def table_of(measured, predicted, half=0.05):
    gap = np.array(predicted)
    return {
        "clip": {"aligned": np.array(measured), "conflicting": np.zeros_like(gap)},
        "whitened": {"gap": np.stack([gap, -gap, gap])},
        "half": np.full(gap.shape, half),
    }


def test_a_verdict_counts_the_cells_that_are_told_apart():
    told = comparison.verdict(table_of([[0.5, -0.5], [0.01, 0.3]], [[0.4, -0.1], [-0.3, -0.3]]), "whitened")
    assert "right sign in 2 (1, 2) of 3 cells" in told and "mean distance 0.35" in told
    assert "rank 0.32" in told  # scipy's, ties and all
    assert "rank" not in comparison.verdict(table_of([[0.5]], [[0.4]]), "whitened")


@pytest.mark.parametrize("aligned, conflicting, orange", [(0.9, 0.5, False), (0.4, 0.9, True)])
def test_the_caption_map_shows_aligned_minus_conflicting(aligned, conflicting, orange):
    """In the measured panel and the predicted ones; over-correction alone, which is below 0, is orange."""
    common = {"pi_core": 0.0, "pi_spu": 0.0, "set": "balanced", "scope": "pair", "step": 1, "images": 100}
    groups = {"aligned": aligned, "conflicting": conflicting}.items()
    trained = {"arm": "clip", "prompts": "ensemble"}
    rows = [{**common, **trained, "seed": seed, "group": g, "accuracy": a} for g, a in groups for seed in range(2)]
    rules = [(who, ridge) for who in comparison.THEORIES for ridge in comparison.RIDGES]
    rows += [
        {**common, "arm": who, "ridge": ridge, "group": g, "accuracy": a} for g, a in groups for who, ridge in rules
    ]
    table = figures.policy_table(rows, [0.0])
    for who in comparison.THEORIES:
        np.testing.assert_allclose(table[who]["gap"].ravel(), aligned - conflicting)
        assert "right sign in 1 (1, 1) of 1 cells" in comparison.verdict(table, who)
    drawn = figures.caption_map(table, [0.0])
    panels = [ax for ax in drawn.axes if ax.images]
    assert len(panels) == 1 + len(comparison.THEORIES)
    for ax in panels:
        (image,) = ax.images
        assert image.get_array()[0, 0] == pytest.approx(aligned - conflicting)
        red, _, blue, _ = image.cmap(image.norm(image.get_array()[0, 0]))
        assert (red > blue, red < blue) == (orange, not orange)
    assert drawn.axes[-1].get_ylabel().startswith("aligned minus conflicting accuracy")
    plt.close(drawn)


def test_steps_and_runs_of_a_comparison():
    config = Config(steps=10, stages=(0.5, 1.0), seeds=2, pi_grid=(0.0, 1.0))
    runs = config.runs()
    assert len(runs) == 2 * (6 + 4) == len({run.name for run in runs})
    assert [run.seed for run in runs] == [0] * 10 + [1] * 10
    assert config.steps_of(runs[0]) == [5, 10] and config.steps_of(runs[-1]) == [10]


def test_mfu_knows_what_it_knows(monkeypatch):
    device = types.SimpleNamespace()
    monkeypatch.setattr(speed, "_time", lambda product, x: 1.0)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    plain = 2 * 1024**3
    known = {"NVIDIA L40S": plain, "NVIDIA L4": 121e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": plain}
    for kind, expected in known.items():
        device.device_kind = kind
        assert speed.peak(True) / 2 == expected


WORK = """
import pathlib, signal, sys, time
from sims.engine.processes import mapper

def work(task):
    folder, i = task
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    (folder / f"{i}.begun").touch()
    until = time.time() + 30
    while time.time() < until and not stopped:
        time.sleep(0.02)
    (folder / f"{i}.ended").touch()
    return i

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    folder = pathlib.Path(sys.argv[1])
    with mapper(2, pinned=True, stopped=True) as mapped:
        print(list(mapped(work, [(folder, i) for i in range(8)])))
"""


@pytest.mark.slow
def test_an_interrupted_caller_ends_what_runs_and_begins_nothing(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    one = subprocess.Popen([sys.executable, str(tmp_path / "work.py"), str(tmp_path)], env=env, stderr=subprocess.PIPE)
    until = time.time() + 60
    while len(list(tmp_path.glob("*.begun"))) < 2 and time.time() < until:
        time.sleep(0.05)
    started = time.time()
    one.send_signal(signal.SIGTERM)
    one.communicate(timeout=60)
    assert one.returncode == 5 and time.time() - started < 20
    assert len(list(tmp_path.glob("*.begun"))) == len(list(tmp_path.glob("*.ended"))) == 2


def test_processes_keep_the_order():
    with processes.mapper(1) as mapped:
        assert list(mapped(abs, [-3, 2])) == [3, 2]


@pytest.mark.parametrize(
    "argument, told",
    [
        ("--study=wolves", "--study must be of arms, captions"),
        ("--arms=clap", "--arms must be of clip,"),
        ("--pi_grid=0,2", "--pi_grid must be in [0, 1], got 2"),
        ("--stages=0.5", "--stages must be in (0, 1] and end with 1"),
        ("--seeds=1", "--seeds must be in [2, 1000], got 1"),
        ("--pi_grid=0:1:100000", "--pi_grid of 100000 values and --seeds=3 make 30000000018 runs; at most 10000"),
        ("--pi_grid=0.5,0.5000001", "--pi_grid must have values that differ in six digits"),
        ("--stages=0.001:1:500", "--stages must be at most 100, got 500"),
        ("--steps=0", "--steps must be in [1,"),
        ("--workers=0", "--workers must be >= 1, got 0"),
        ("--root=/nowhere", "/nowhere"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(mmcl, tmp_path, argument, told):
    assert_refused(mmcl(compare, argument, f"--out={tmp_path}/out"), told)
    assert not (tmp_path / "out").exists()


def test_a_measurement_that_is_damaged_or_gone_is_not_made_up(tmp_path, monkeypatch):
    config, each = Config(steps=8), Run("clip", None, None, 0)
    (tmp_path / "measured").mkdir()
    steps, rows = config.steps_of(each), [{"set": "val", "accuracy": 0.5}]
    files = [tmp_path / "measured" / f"clip_0.{step}.json" for step in steps]
    for file in files:
        file.write_text(reading.sealed({"rows": rows}))
    assert comparison._measured((config, each, tmp_path)) == rows * 2
    whole = files[0].read_text()
    for content in (whole.replace("0.5", "0.6"), json.dumps(rows), "", "[" * 100_000, "\0" * 300_000):
        files[0].write_text(content)
        with pytest.raises(UsageError, match=r"clip_0\.4\.json is damaged .* trains that run again") as caught:
            comparison._measured((config, each, tmp_path))
        assert len(str(caught.value)) < 900
    # The run is at its end: its model is not that of half the steps.
    files[0].unlink()
    monkeypatch.setattr(comparison.training, "run", lambda *_: {"steps": 8})
    assert_refuses(("runs/clip_0 is past step 4, and", "is not there"), comparison._measured, (config, each, tmp_path))


def test_help_is_quick_and_whole():
    shown = python("-m", "sims.clip.compare", "--help")
    assert shown.returncode == 0 and all(f"--{f.name}:" in shown.stdout for f in dataclasses.fields(Config))
    code = "import sys, sims.clip.compare, sims.clip.train; sys.exit('jax' in sys.modules)"
    assert python("-c", code).returncode == 0


@pytest.mark.long
def test_a_comparison_from_scenes_to_figures(tmp_path):
    generation.make(tmp_path / "scenes", layouts.Config(train=300, test=2, side=32))
    given = [f"--root={tmp_path}/scenes", "--steps=4", "--batch_size=8", "--seeds=2", "--pi_grid=0,1", "--workers=2",
             "--arms=clip,supervised", "--architecture=ViT-tiny"]  # fmt: skip

    def call(out, *more):
        return python("-m", "sims.clip.compare", *given, f"--out={out}", *more)

    first = call(tmp_path / "one")
    assert first.returncode == 0, first.stderr
    assert "captions, ensemble prompts: whitened: right sign in" in first.stdout and "SL, cross-entropy" in first.stdout
    assert "Under shift, minus CLIP, at the same accuracy on val" in first.stdout
    for name in ("arms", "groups", "captions"):
        assert (tmp_path / f"one/{name}.png").stat().st_size > 10_000
    arms = {row["arm"] for row in csv_rows(tmp_path / "one/measured.csv")}
    assert arms == {"clip", "supervised", *comparison.THEORIES}
    # Measured again where a stage's numbers are lost, after the checkpoint: of the same step, the same.
    lost = tmp_path / "one/measured/clip_0.4.json"  # of the last stage; the model of an earlier one is gone
    before = lost.read_text()
    lost.unlink()
    assert call(tmp_path / "one").returncode == 0 and lost.read_text() == before
    refused = call(tmp_path / "one", "--seed=1")
    assert refused.returncode == 2 and "holds a different run (differs in seed)" in refused.stderr
    generation.make(tmp_path / "scenes", layouts.Config(train=300, test=2, side=32, seed=1), overwrite=True)
    assert "differs in scenes" in call(tmp_path / "one").stderr


def rows_on_lines(intercepts, shifts, low):
    """Rows of arms whose points are on logit lines of slope 1 on every shift; the arm's least logit on val is `low`."""
    rows = []
    for (arm, intercept), start in zip(intercepts.items(), low, strict=True):
        for seed, step in ((s, t) for s in range(3) for t in (5, 10)):
            g = start + 0.1 * seed + 0.1 * step
            common = {"arm": arm, "seed": seed, "step": step, "prompts": comparison.prompts_of(arm)}
            common |= {"pi_core": None, "pi_spu": None, "group": "all", "scope": "all"}
            common |= {"images": 10**9, "id_images": 10**9}
            values = {"val": g, **{name: g + intercept + shift for name, shift in shifts.items()}}
            rows += [
                {**common, "set": k, "id_accuracy": scipy.special.expit(g), "accuracy": scipy.special.expit(v)}
                for k, v in values.items()
            ]
    return rows


SHIFTS = {"v2": -0.2, "sketch": -2.0, "r": -1.0, "a": -1.5, "objectnet": -0.5}


@pytest.mark.costly
def test_arms_are_compared_at_matched_accuracy_on_val():
    """Where both arms are on known lines; the twin compares them as they are, which has the other sign."""
    rows = rows_on_lines({"clip": 0.0, "supervised": -0.3}, SHIFTS, (-1.0, -0.5))
    head, line = matched.table(rows, ["clip", "supervised"])
    assert head == ["", *SHIFTS, "mean"] and line[0] == "SL, cross-entropy"
    middle = (scipy.special.expit(0.0) + scipy.special.expit(0.2)) / 2  # of supervised's least, clip's most
    g = scipy.special.logit(middle)
    gaps = [scipy.special.expit(g + s - 0.3) - scipy.special.expit(g + s) for s in SHIFTS.values()]
    for cell, gap in zip(line[1:-1], gaps, strict=True):
        assert cell == f"{gap:+.2f}±0.00"
    assert float(line[-1][:5]) == pytest.approx(np.mean(gaps), abs=0.02)  # the mean of five lines is nearly one
    last = [[r["accuracy"] for r in rows if r["arm"] == arm and r["set"] == "v2"] for arm in ("clip", "supervised")]
    assert np.mean(last[1]) > np.mean(last[0])
    few = [row | {"images": 50} for row in rows]
    assert float(matched.table(few, ["clip", "supervised"])[1][1].split("±")[1]) > 0.1  # of so few images


@pytest.mark.costly
def test_matched_accuracy_beyond_an_arm_and_arms_without_a_line_are_marked():
    apart = rows_on_lines({"clip": 0.0, "supervised": -0.3}, SHIFTS, (-1.0, 1.0))
    assert all(cell.endswith("*") for cell in matched.table(apart, ["clip", "supervised"])[1][1:])
    one = [row | {"id_accuracy": 0.5} if row["arm"] == "clip" else row for row in apart]
    assert matched.table(one, ["clip", "supervised"])[1][1:6] == ["-"] * 5
    assert "-: no line" in compare._matched_table(one, ["clip", "supervised"])


@pytest.mark.costly
def test_a_model_with_text_is_judged_by_both_prompts_and_one_with_a_head_by_it(tmp_path):
    generation.make(tmp_path / "scenes", layouts.Config(train=20, test=2, side=32))
    judge = comparison.Judge(tmp_path / "scenes", generation.read_config(tmp_path / "scenes"))
    mean = lambda images: images.mean((1, 2)) - 128  # noqa: E731
    text = lambda texts: np.array([[len(t), ord(t[-1]), 1] for t in texts], np.float32)  # noqa: E731
    head = (judge.classes.names, np.eye(10, 3, dtype=np.float32), np.zeros(10, np.float32))
    for encoder, prompts in (
        (Encoder("text", 32, mean, text), {"class", "ensemble"}),
        (Encoder("head", 32, mean, head=head), {"head"}),
    ):
        rows = judge.rows(encoder, Run("clip", None, None, 0))
        assert {row["prompts"] for row in rows} == prompts
        assert {row["set"] for row in rows} == {"val", "balanced", *SHIFTS}
        assert all(0 <= row["correct"] <= row["images"] for row in rows)


def test_figures_of_plausible_numbers():
    rows, rng = [], np.random.default_rng(0)
    for arm, seed, step in itertools.product(("clip", "supervised"), range(3), (5, 10)):
        common = {"arm": arm, "seed": seed, "step": step, "pi_core": None, "pi_spu": None, "scope": "all", "images": 50}
        common |= {"prompts": comparison.prompts_of(arm), "id_images": 50}
        for name, group in (*((name, "all") for name in SHIFTS), *(("balanced", group) for group in comparison.GROUPS)):
            shares = {"accuracy": float(rng.uniform(0.2, 0.8)), "id_accuracy": float(rng.uniform(0.5, 0.9))}
            rows.append({**common, "set": name, "group": group, **shares})
    figure = figures.against_id(rows, ["clip", "supervised"], dict.fromkeys(SHIFTS, 0.1))
    assert [ax.get_title() for ax in figure.axes] == ["V2", "Sketch", "R", "A", "ObjectNet", ""]
    drawn = {text.get_text() for text in figure.axes[-1].get_legend().get_texts()}
    assert {"CLIP", "SL, cross-entropy", "chance", "no loss under shift"} <= drawn
    groups = figures.groups(rows, ["clip", "supervised"])
    assert [label.get_text() for label in groups.axes[0].get_yticklabels()] == ["CLIP", "SL, cross-entropy"]

"""Zero-shot accuracy, effective robustness, and the command `python -m sims.clip.evaluate` end to end."""

import dataclasses
import hashlib
import json
import shutil
import threading

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LogisticRegression

from sims.clip import evaluate as command
from sims.clip.model import models, weights
from sims.clip.model.encoder import Encoder
from sims.clip.model.probe import fit_probe
from sims.clip.records import images, tokenizer
from sims.clip.records.images import normalise
from sims.clip.zero_shot import evaluation, report, robustness, scatter, scoring, sets, table
from sims.clip.zero_shot.robustness import LINES, effective_robustness
from sims.clip.zero_shot.scoring import Share
from sims.engine import files
from sims.engine.flags import WorkFailed
from sims.engine.lines import Line, fit_line
from tests.clip.test_sets import CLASSES, NAMES, WNIDS, class_of, make_root, picture
from tests.helpers import assert_refused, assert_refuses, json_lines, python

# (val, V2, rho by which line): RN50 on CC12M, and OpenAI's.
CHECKS = ((0.3647, 0.3098, "logit", 4.28), (0.3647, 0.3098, "weak", 3.36), (0.598, 0.525, "logit", 5.8))


def rho(acc_id, acc_shift, name, shift="v2"):
    return 100 * float(effective_robustness(acc_id, acc_shift, LINES[shift][name]))


@pytest.mark.parametrize("acc_id, acc_shift, name, known", CHECKS)
def test_published_effective_robustness(acc_id, acc_shift, name, known):
    digits = len(str(known).split(".")[1])
    assert round(rho(acc_id, acc_shift, name), digits) == known
    for other in set(LINES["v2"]) - {name}:
        assert round(rho(acc_id, acc_shift, other), digits) != known
    assert round(rho(acc_id, acc_shift, name, "sketch"), digits) != known


def test_the_line_is_straight_on_its_axes():
    x = np.linspace(0.01, 0.99, 9)
    for lines in LINES.values():
        for line in lines.values():
            g = {"logit": lambda p: np.log(p / (1 - p)), "probit": scipy.stats.norm.ppf}[line.transform]
            np.testing.assert_allclose(g(line.at(x)), line.slope * g(x) + line.intercept, atol=1e-9)
            assert (np.diff(line.at(x)) > 0).all()


def test_rho_at_no_and_all_right_is_the_limit():
    for line in LINES["v2"].values():
        ends = effective_robustness(np.array([0.0, 1.0]), np.array([0.25, 0.75]), line)
        near = effective_robustness(np.array([1e-12, 1 - 1e-12]), np.array([0.25, 0.75]), line)
        np.testing.assert_array_equal(ends, [0.25, -0.25])
        np.testing.assert_allclose(near, ends, atol=1e-9)
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            effective_robustness(0.5, bad, line)
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            effective_robustness(bad, 0.5, line)


def test_which_line_is_the_default_and_where_it_reaches():
    assert [robustness.default_line(a) for a in (0.1, 0.399, 0.4, 0.8)] == ["weak", "weak", "logit", "logit"]
    assert robustness.default_line(0.1, "probit") == "probit"
    assert [robustness.extrapolated("weak", a) for a in (0.01, 0.05, 0.4, 0.41)] == [True, False, False, True]
    assert [robustness.extrapolated("logit", a) for a in (0.4, 0.55, 0.9, 0.91)] == [True, False, False, True]


def check_intervals(interval, level):
    for n in (1, 2, 7, 40):
        for k in range(n + 1):
            known = scipy.stats.binomtest(k, n).proportion_ci(level, "exact")
            np.testing.assert_allclose(interval(k, n, level), known, atol=1e-12)


@pytest.mark.parametrize("level", [0.95, 0.995])
def test_intervals_are_clopper_pearson(level):
    check_intervals(scoring.clopper_pearson, level)
    with pytest.raises(AssertionError):
        check_intervals(lambda k, n, level: scipy.stats.binomtest(k, n).proportion_ci(level, "wilson"), level)
    k = np.arange(8)
    low, high = scoring.clopper_pearson(k, 7, level)
    np.testing.assert_allclose(low, [scoring.clopper_pearson(i, 7, level)[0] for i in k])
    np.testing.assert_allclose(high, 1 - low[::-1])


def test_intervals_of_nothing_and_of_bad_counts():
    assert Share(0, 0).interval() == (0.0, 1.0) and np.isnan(Share(0, 0).accuracy)
    for arguments in ((-1, 3), (4, 3), (1, 3, 0.0), (1, 3, 1.0)):
        with pytest.raises(ValueError, match="correct <= images"):
            scoring.clopper_pearson(*arguments)


def test_ranks_and_counts_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    scored = ((3, 1), (0,), (4,), (5, 6, 7), (9,), (8,))
    features = rng.integers(-1, 2, (300, 2)).astype(np.float32)  # few values, so that scores tie
    weights, bias = rng.integers(-1, 2, (10, 2)).astype(np.float32), rng.integers(0, 2, 10).astype(np.float32)
    labels = rng.integers(0, 6, 300)
    labels[labels == 4] = 0  # a class without images
    found = scoring.ranks(features, labels, weights, bias, scored)
    for i in range(300):
        scores = [max(float(features[i] @ weights[c] + bias[c]) for c in group) for group in scored]
        assert sorted(range(6), key=lambda j: (-scores[j], j)).index(labels[i]) == found[i]
    groups = np.array(["", "a", "b"])[rng.integers(0, 3, 300)]
    result = scoring.result(found, labels, 6, groups)
    assert result.top1 == Share(int((found == 0).sum()), 300) and result.top5 == Share(int((found < 5).sum()), 300)
    shares = {j: Share(int((found[labels == j] == 0).sum()), int((labels == j).sum())) for j in set(labels.tolist())}
    assert result.worst[1] == shares[result.worst[0]]
    assert result.worst[1].accuracy == min(share.accuracy for share in shares.values())
    assert result.classes == len(shares) == 5
    for name in "ab":
        assert result.groups[name] == Share(int((found[groups == name] == 0).sum()), int((groups == name).sum()))
    few = scoring.result(found[labels < 4], labels[labels < 4], 4)
    assert few.top5 is None and few.groups == {}


def test_the_id_axis_is_val_over_the_shifts_classes():
    places, labels = scoring.restricted(np.array([4, 0, 1, 3, 2, 4]), ((1, 3), (4,)))
    assert places.tolist() == [0, 2, 3, 5] and labels.tolist() == [1, 0, 0, 1]


def embed(sentences):
    """A vector of a sentence that only its letters decide."""
    seeds = [int(hashlib.sha256(s.encode()).hexdigest()[:8], 16) for s in sentences]
    return np.stack([(1 + seed % 9) * np.random.default_rng(seed).normal(size=6) for seed in seeds])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_text_weights_are_means_of_directions(tmp_path):
    names, templates = ("fish", "bird", "bird", "cup"), ("a {}", "the {} there", "{}")
    each = np.stack([embed([t.replace("{}", name) for t in templates]) for name in names])
    expected = unit(unit(each).mean(1))
    for batch_size in (1, 5, 100):
        found = scoring.text_weights(embed, names, templates, batch_size=batch_size)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert found.dtype == np.float32
    assert np.abs(unit(each.mean(1)) - expected).max() > 0.01  # not the same without the first normalisation
    for change, told in ((lambda s: 0 * embed(s), "is 0"), (lambda s: embed(s) * np.nan, "not finite")):
        with pytest.raises(WorkFailed, match=told):
            scoring.text_weights(change, names, templates)


def test_text_weights_are_kept_for_the_very_same_tower_and_words(tmp_path):
    asked = []

    def counted(sentences):
        asked.append(len(sentences))
        return embed(sentences)

    def weights(encode=counted, names=("fish", "bird"), templates=("a {}", "{}")):
        asked.clear()
        return scoring.text_weights(encode, names, templates, cache=tmp_path)

    first = weights()
    assert sum(asked) == 2 + 4
    np.testing.assert_array_equal(weights(), first)
    assert sum(asked) == 2 and len(list(tmp_path.iterdir())) == 1
    np.testing.assert_allclose(weights(lambda s: counted(s)[:, ::-1]), first[:, ::-1], atol=1e-6)
    assert sum(asked) == 2 + 4
    assert (weights(names=("fish", "cup"))[1] != first[1]).any() and sum(asked) == 2 + 4
    assert (weights(templates=("the {}", "{}")) != first).any() and sum(asked) == 2 + 4
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    np.testing.assert_array_equal(weights(), first)
    assert sum(asked) == 2 + 4


def test_a_heads_rows_are_the_classes():
    rows = np.arange(6.0).reshape(3, 2)
    encoder = Encoder("sl", 8, None, head=(["cup", "fish", "bird"], rows, np.array([1.0, 2.0, 3.0])))
    weights, bias = scoring.class_weights(encoder, ("bird", "cup", "bird"), ["{}"])
    assert weights.tolist() == [[4, 5], [0, 1], [4, 5]] and bias.tolist() == [3, 1, 3]
    others, said = ("bird", "tree", "car"), "the head of sl has no class 'tree' and 1 more"
    assert_refuses(said, scoring.class_weights, encoder, others, ["{}"])
    twice = Encoder("sl", 8, None, head=(["cup", "cup", "bird"], rows, np.zeros(3)))
    assert scoring.class_weights(twice, ("cup", "cup", "bird"), ["{}"])[0].tolist() == rows.tolist()
    assert_refuses("more than once", scoring.class_weights, twice, ("cup", "bird"), ["{}"])
    bare = Encoder("sup_con", 8, None)
    assert_refuses("neither a text tower nor a head", scoring.class_weights, bare, ("cup",), ["{}"])


def overlapping(seed=0, n=120, r=4, c=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    return (rng.normal(size=(c, r))[labels] + rng.normal(size=(n, r))).astype(np.float32), labels


def gradient(features, labels, weights, bias, l2):
    scores = features @ weights.T + bias
    excess = np.exp(scores - scores.max(1, keepdims=True))
    excess = excess / excess.sum(1, keepdims=True) - np.eye(len(bias))[labels]
    return np.concatenate([(excess.T @ features / len(labels) + l2 * weights).ravel(), excess.mean(0)])


def test_the_probe_is_where_the_gradient_is_zero():
    features, labels = overlapping()
    weights, bias = fit_probe(features, labels, 3, l2=0.01)
    assert weights.dtype == bias.dtype == np.float32
    assert np.linalg.norm(gradient(features.astype(float), labels, weights, bias, 0.01)) < 1e-4
    assert np.linalg.norm(gradient(features.astype(float), labels, weights, bias, 0.02)) > 1e-3
    known = LogisticRegression(C=1 / (0.01 * len(labels)), tol=1e-10, max_iter=2000).fit(features, labels)
    np.testing.assert_allclose(weights, known.coef_, atol=2e-3)
    np.testing.assert_allclose(bias - bias.mean(), known.intercept_ - known.intercept_.mean(), atol=2e-3)


def test_what_the_probe_refuses():
    features, labels = overlapping()
    for change, told in (
        ({"labels": labels - 1}, r"labels must be in 0\.\.2, got -1"),
        ({"labels": labels + 1}, "got 1 to 3"),
        ({"labels": labels[:5]}, "needs features"),
        ({"features": features * np.inf}, "finite"),
        ({"l2": 0.0}, "l2 must be > 0"),
    ):
        given = {"features": features, "labels": labels, "num_classes": 3, "l2": 0.01} | change
        with pytest.raises(ValueError, match=told):
            fit_probe(**given)
    with pytest.raises(WorkFailed, match="did not converge"):
        fit_probe(features, labels, 3, l2=1e-4, max_steps=1)


def perfect_image(images):
    return np.eye(len(NAMES), dtype=np.float32)[class_of(images)]


def named(sentences):
    """The class whose name a sentence has: the first of the two cranes for both."""
    longest = [max(range(12), key=lambda c: (NAMES[c] in s) * len(NAMES[c])) for s in sentences]
    return np.eye(len(NAMES))[longest]


def guessed(images):
    """Nothing of the class; other values for every image, whose place decides them."""
    return np.random.default_rng(len(images)).normal(size=(len(images), 12)).astype(np.float32)


ENCODERS = {
    # The text tower cannot tell the cranes apart, a head can.
    "perfect": Encoder("perfect", 8, perfect_image, head=(NAMES, np.eye(12), np.zeros(12))),
    "text": Encoder("text", 8, lambda images: perfect_image(images) @ np.eye(12)[[*range(10), 2, 11]], named),
    "chance": Encoder("chance", 8, guessed, named),
    "fish": Encoder("fish", 8, perfect_image, head=(("trout", "carp"), np.eye(2, 12), np.zeros(2))),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("evaluated") / "root", images=2)


@pytest.fixture
def called(mmcl, monkeypatch, root, tmp_path):
    """(encoder's name, arguments) -> (exit code, stdout, stderr) of the command."""
    monkeypatch.setattr(evaluation, "load_run", lambda run, checkpoint: (run.name, ENCODERS[run.name]))

    def call(name, *args, at=root):
        given = [f"--run={name}"] if name else []
        given += [f"--root={at}"] if at else []
        given += [f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'out'}", "--batch_size=7"]
        own = {arg.partition("=")[0] for arg in args}
        given = [arg for arg in given if arg.partition("=")[0] not in own]
        return mmcl(command, *given, *args)

    return call


CRANES = (
    "warning: more than one class has the name crane, and the very same prompts: top-1 takes the first for the"
    " prediction, as published accuracies do; for the worst class either is right.\n"
)


def test_a_perfect_model(called, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda *_: None)
    code, printed, error = called("perfect")
    assert (code, error) == (0, "")
    rows = json_lines(tmp_path / "out/results.jsonl")
    assert [row["set"] for row in rows] == ["val", "balanced", "v2", "sketch", "r", "a", "objectnet"]
    for row in rows:
        assert row["accuracy"] == 1 and row["worst_class"]["accuracy"] == 1 and row["interval_95"][1] == 1
        assert row["run"] == "perfect" and row["unreadable"] == 0 and row["versions"]["numpy"]
        assert row["set"] in printed
    v2, objects = rows[2], rows[6]
    assert v2["top5"]["accuracy"] == 1 and "top5" not in rows[4]
    assert v2["rho"] == {"logit": 0.0, "probit": 0.0, "weak": 0.0}
    assert v2["line"] == "logit" and set(v2["marks"]) == {"0 or all", "other classes", "extrapolated"}
    assert (objects["images"], objects["dropped"], objects["id_images"]) == (6, 2, 8)
    assert (rows[1]["aligned"]["images"], rows[1]["conflicting"]["accuracy"]) == (12, 1)
    assert rows[1]["rho"] == {} and "aligned" in printed


def test_labelled_data_is_scored_on_its_own_classes(called, tmp_path):
    shown = (0, 1, 3, 3)
    for told, right in ((shown, 4), ((0, 1, 1, 3), 3)):
        lines = ["path,caption,label"]
        for i, (c, label) in enumerate(zip(shown, told, strict=True)):
            picture(tmp_path / f"{i}.png", c)
            lines.append(f"{i}.png,a thing,{NAMES[label]}")
        (tmp_path / "data.csv").write_text("\n".join([*lines, "4.png,no such file,broom", "5.png,none,"]))
        code, _, error = called("perfect", f"--data=csv:{tmp_path}/data.csv", f"--out={tmp_path}/{right}", at=None)
        assert code == 0 and "1 images that cannot be read" in error
        (row,) = json_lines(tmp_path / f"{right}/results.jsonl")
        assert (row["images"], row["correct"], row["unreadable"]) == (4, right, 1)
        assert row["chance"] == pytest.approx(1 / 3) and "id_accuracy" not in row
    refused = called("perfect", f"--data=csv:{tmp_path}/data.csv", "--sets=val")
    assert_refused(refused, "--data has its own images and classes; leave out --")


def test_sets_are_scored_by_the_categories_of_a_map(called, tmp_path, monkeypatch):
    """Twin: a map that takes ties for brooms."""
    weights = np.zeros((3, 12))
    weights[[0, 0, 1, 2], [4, 5, 1, 3]] = 1
    head = (("clock", "tie", "broom"), weights, np.zeros(3))
    monkeypatch.setitem(ENCODERS, "mapped", Encoder("mapped", 8, perfect_image, head=head))
    monkeypatch.setattr(report, "draw", lambda *_: None)
    for name, members in (("right", (4, 5, 1, 3)), ("wrong", (4, 5, 3, 1))):
        rows = zip(("clock", "clock", "tie", "broom"), members, strict=True)
        lines = [f"{category},{WNIDS[c]}" for category, c in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(["category,wnid", *lines]))
        code, _, error = called("mapped", f"--class_map={tmp_path}/{name}.csv", f"--out={tmp_path}/{name}")
        assert (code, error) == (0, "")
        found = {row["set"]: row for row in json_lines(tmp_path / name / "results.jsonl")}
        assert set(found) == {"val", "balanced", "v2", "sketch", "r", "a", "objectnet"}
        assert (found["val"]["images"], found["val"]["dropped"], found["val"]["chance"]) == (8, 16, 1 / 3)
        expected = {"right": (1, 1, 1), "wrong": (0.5, 0, 1 / 3)}[name]
        assert tuple(found[one]["accuracy"] for one in ("val", "r", "objectnet")) == pytest.approx(expected)
        assert found["r"]["id_accuracy"] == expected[0]
    assert_refused(called("mapped", "--class_map=coco"), "--class_map=coco has 291 classes, such as n")
    assert_refused(called("mapped", "--data=csv:x", "--class_map=coco", at=None), "leave out --class_map")


def test_words_that_name_two_classes_and_a_model_that_guesses(called, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda *_: None)
    _, printed, error = called("text", "--sets=val,v2")
    assert error == CRANES and "val: top-1 100.00 [85.8, 100.0] where either of two" in printed
    called("chance", "--sets=val,v2", "--line=standard", "--transform=probit")
    both, _, guesses, shifted = json_lines(tmp_path / "out/results.jsonl")
    # Of top-1 the first crane is the prediction for both, as published; no class is the worst by its place in the list.
    assert both["accuracy"] == 22 / 24 and both["either"]["accuracy"] == 1
    assert both["worst_class"] == both["worst_class"] | {"correct": 2, "images": 2}
    assert "either" not in guesses or guesses["either"]["correct"] >= guesses["correct"]
    assert guesses["interval_99.5"][0] <= 1 / 12 <= guesses["interval_99.5"][1]
    assert "chance" in shifted["marks"] and "chance" not in both["marks"]
    assert shifted["line"] == "probit"


def test_results_are_added_and_none_is_changed(called, tmp_path, monkeypatch):
    into = tmp_path / "table.jsonl"
    monkeypatch.setattr(report, "draw", lambda *_: None)
    called("text", "--sets=v2,val", f"--table={into}")
    before = into.read_text()
    called("text", "--sets=v2", f"--table={into}")
    called("perfect", "--sets=v2", f"--table={into}")
    assert into.read_text().startswith(before)
    rows = json_lines(into)
    assert [(row["run"], row["set"]) for row in rows] == [
        ("text", "val"), ("text", "v2"), ("text", "v2"), ("perfect", "v2")
    ]  # fmt: skip
    assert rows[1]["rule"] == rows[2]["rule"] != rows[3]["rule"]
    link = tmp_path / "link.jsonl"
    link.symlink_to(into)
    before = into.read_text()
    called("text", "--sets=v2", f"--table={link}")
    assert link.is_symlink() and len(json_lines(into)) == 5 and into.read_text().startswith(before)
    into.write_text(before + "{")
    assert_refused(called("text", "--sets=v2", f"--table={into}"), "line 5, is no JSON object")
    assert into.read_text() == before + "{"


def test_a_second_writer_waits_for_the_first(tmp_path):
    into = tmp_path / "table.jsonl"
    row = {"set": "v2", "rule": "", "accuracy": 0.5}
    writers = [threading.Thread(target=table.append, args=(into, [row | {"run": str(i)}])) for i in range(4)]
    with files.locked(into.with_name(f".{into.name}.lock")):
        for writer in writers:
            writer.start()
        writers[0].join(0.1)
        assert all(writer.is_alive() for writer in writers) and not into.exists()
    for writer in writers:
        writer.join()
    assert sorted(row["run"] for row in json_lines(into)) == ["0", "1", "2", "3"]


@pytest.mark.costly
def test_a_line_through_ones_own_models(called, tmp_path):
    accuracies = {"a": (0.2, 0.1), "b": (0.5, 0.35), "c": (0.9, 0.8)}
    models = tmp_path / "models.csv"
    lines = [f"{name},v2,{y},{x},1000,1000" for name, (x, y) in accuracies.items()]
    models.write_text("\n".join(["run,set,accuracy,id_accuracy,images,id_images", *lines]))
    code, printed, error = called("text", "--sets=val,v2,sketch", f"--models={models}", "--line=fit")
    assert code == 0 and error == CRANES
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "results.jsonl", "effective_robustness.png", "effective_robustness.pdf"
    }  # fmt: skip
    row, other = json_lines(tmp_path / "out/results.jsonl")[1:]
    assert other["line"] is None and "fit" not in other["rho"]  # of sketch the models tell nothing
    line = fit_line(*np.array(list(accuracies.values())).T, "logit")
    np.testing.assert_allclose(row["rho"]["fit"], effective_robustness(22 / 24, 22 / 24, line))
    assert row["line"] == "fit" and row["marks"] == ["extrapolated"]  # beyond 0.9, the best of the models
    assert "rho [95%] takes the fitted line as exact" in printed

    def interval(level):
        """Both shares are 22 of 24."""
        low, high = scipy.stats.binomtest(22, 24).proportion_ci(level, "exact")
        return [low - line.at(high), high - line.at(low)]

    np.testing.assert_allclose(row["rho_interval_95"], interval(0.975), atol=1e-12)
    assert np.abs(np.subtract(row["rho_interval_95"], interval(0.95))).max() > 0.01
    for text, told in (
        ("run,set,accuracy\na,v2,0.5", "has no set here with two models"),
        ("run,accuracy\na,0.5", "line 2: needs run, set and accuracy"),
        ("run,set,accuracy\na,v2,50", "line 2: needs run, set and accuracy"),
        (f"run,set,accuracy\na,v2,{'5' * 200_000}", "line 2: field larger"),
        ("run;set;accuracy\na;v2;0.5", "its fields are separated by semicolons, where commas are read"),
        ("run,set,accuracy,images\na,v2,0.5,inf", "line 2: needs run, set and accuracy"),
    ):
        models.write_text(text)
        assert_refused(called("text", "--sets=val,v2", f"--models={models}", "--line=fit"), told)


def test_images_that_cannot_be_read_are_told_and_refused_if_strict(called, tmp_path):
    root = make_root(tmp_path / "root", images=1)
    bad = next((root / "sketch" / CLASSES.wnids[0]).iterdir())
    bad.write_bytes(b"no image")
    code, _, error = called("perfect", "--sets=sketch", at=root)
    assert code == 0 and f"sketch has 1 images that cannot be read (the first {bad}:" in error
    (row,) = json_lines(tmp_path / "out/results.jsonl")
    assert (row["images"], row["unreadable"], row["marks"]) == (11, 1, ["unreadable"])
    assert_refused(called("perfect", "--sets=sketch", "--strict", at=root), "refused by --strict")
    assert len(json_lines(tmp_path / "out/results.jsonl")) == 1
    (root / "scenes.json").write_text(json.dumps({"sets": {"v2": {"images": 12, "classes": 12}}}))
    assert called("perfect", "--sets=v2", "--strict", at=root)[0] == 0
    (root / "scenes.json").write_text(json.dumps({"sets": {"v2": {"images": 13, "classes": 12}}}))
    assert "warning: v2 has 12 images of 12 classes, not 13 of 12." in called("perfect", "--sets=v2", at=root)[2]
    assert called("perfect", "--sets=v2", "--strict", at=root)[0] == 2


def test_sets_that_are_not_there_are_told_and_refused_if_strict(called, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda *_: None)
    root = make_root(tmp_path / "root", images=1)
    counts = {name: {"images": 12, "classes": 12} for name in ("val", "sketch")}
    (root / "scenes.json").write_text(json.dumps({"sets": counts}))
    for folder in ("sketch", "balanced", "imagenetv2-matched-frequency", "imagenet-r", "imagenet-a", "objectnet-1.0"):
        shutil.rmtree(root / folder)
    code, _, error = called("perfect", at=root)
    assert code == 0 and error == f"warning: --root={root} lacks sketch.\n"
    assert_refused(called("perfect", "--strict", at=root), "lacks sketch: refused by --strict")
    assert called("perfect", "--strict", "--sets=val", at=root)[::2] == (0, "")


@pytest.mark.parametrize("strict", [False, True])
def test_what_ends_between_two_sets_leaves_the_rows_before(called, tmp_path, monkeypatch, strict):
    """By Ctrl-C, or by an image that cannot be read and --strict."""
    root, into = make_root(tmp_path / "root", images=1), tmp_path / "out/results.jsonl"
    next((root / "sketch" / CLASSES.wnids[0]).iterdir()).write_bytes(b"no image")

    def interrupting(images):
        if into.exists() and len(json_lines(into)) == 2:
            raise KeyboardInterrupt
        return perfect_image(images)

    monkeypatch.setitem(ENCODERS, "ends", dataclasses.replace(ENCODERS["perfect"], encode_image=interrupting))
    name, *more = ("perfect", "--strict") if strict else ("ends",)
    code, printed, error = called(name, *more, "--sets=r,sketch,v2,val", at=root)
    assert not printed and [row["set"] for row in json_lines(into)] == ["val", "v2"]
    if strict:
        assert code == 2 and "sketch has 1 images that cannot be read" in error
    else:
        assert code == 130 and "interrupted; the rows of val, v2 are in" in error
        assert "the same command scores all sets again" in error


@pytest.mark.parametrize("width", [6, 512])
def test_twins_are_judged_alike_and_top1_is_the_first(width):
    """Scores of equal rows may round apart in a product; images of both twins, and of others, are counted by a loop."""
    rng = np.random.default_rng(width)
    names = ("missile", "cup", "Missile", "bird", "rocket", "missile ")
    weights = scoring.text_weights(lambda s: np.stack([embed([t.strip().lower()])[0] for t in s]), names, ["{}"])
    weights = np.concatenate([weights] * width, 1)[:, :width]
    bias, scored = np.zeros(6), tuple((c,) for c in range(6))
    assert scoring.twins(weights, bias, scored).tolist() == [0, 1, 0, 3, 4, 0]
    assert scoring.twins(weights, np.arange(6), scored).tolist() == list(range(6))  # told apart by the bias
    assert scoring.twins(weights, bias, ((0, 1), (3,), (1, 5), (2,))).tolist() == [0, 1, 0, 3]
    features, labels = rng.normal(size=(600, width)).astype(np.float32), rng.integers(0, 6, 600)
    plain = scoring.ranks(features, labels, weights, bias, scored)
    fair = scoring.ranks(features, labels, weights, bias, scored, scoring.twins(weights, bias, scored))
    best = (features.astype(float) @ weights[[0, 1, 3, 4]].T.astype(float)).argmax(1)
    first = np.array([0, 1, 0, 2, 3, 0])[labels] == best
    assert (fair == 0).tolist() == first.tolist()
    assert (plain == 0).tolist() == (first & ~np.isin(labels, (2, 5))).tolist()
    both = scoring.result(plain, labels, 6, fair=fair)
    shares = [(fair[labels == c] == 0).mean() for c in range(6)]
    assert both.top1.correct == (plain == 0).sum() and both.worst[1].accuracy == min(shares) > 0
    assert scoring.result(plain, labels, 6).worst[1].accuracy == 0


def test_kept_text_weights_have_a_checksum(tmp_path):
    names, whole = ("fish", "bird"), None
    for at in range(0, 300, 7):
        found = scoring.text_weights(embed, names, ["{}"], cache=tmp_path)
        whole = found if whole is None else whole
        np.testing.assert_array_equal(found, whole)
        (file,) = tmp_path.iterdir()
        damaged = bytearray(file.read_bytes())
        damaged[at] ^= 4
        file.write_bytes(damaged)


def test_wnids_and_numbers_do_not_come_into_prompts(root, called, tmp_path):
    lines = [f"{wnid} {name}, other words" for wnid, name in zip(CLASSES.wnids, NAMES, strict=True)]
    (tmp_path / "names").write_text("\n".join(lines))
    code, _, error = called("text", "--sets=val", f"--classes={tmp_path / 'names'}")
    assert code == 0 and error == CRANES and json_lines(tmp_path / "out/results.jsonl")[0]["accuracy"] == 22 / 24
    picture(tmp_path / "0.png", 0)
    (tmp_path / "t.csv").write_text("path,caption,label\n0.png,a,n01440764\n0.png,b,n01440764\n")
    refused = called("text", f"--data=csv:{tmp_path}/t.csv", at=None)
    assert_refused(refused, "the class list has the class name 'n01440764', with a wnid")


def test_the_first_image_that_cannot_be_read_is_named_with_why(called, tmp_path):
    root = make_root(tmp_path / "root", images=1)
    for path in (root / "sketch").glob("*/*"):
        path.write_bytes(b"<!DOCTYPE html>" + b"x" * 300_000)
    code, _, error = called("perfect", "--sets=sketch", at=root)
    assert code == 2 and "sketch_0.JPEG (cannot identify image file: it is an HTML page" in error and len(error) < 600


def test_the_id_axis_leaves_out_mistakes_for_other_classes(root):
    """Class 1 is R's, as are 3 and 10; class 0 is not."""

    def mistaking(other):
        seen = np.eye(12)
        seen[1, other] = 2
        encoder = dataclasses.replace(ENCODERS["perfect"], encode_image=lambda images: perfect_image(images) @ seen)
        found = sets.open_sets(root, ["val", "r"], CLASSES)
        val, r = evaluation.evaluate("x", encoder, found, CLASSES, ["{}"])
        return val["accuracy"], r["id_accuracy"], r["accuracy"]

    assert mistaking(0) == (22 / 24, 1, 1)
    assert mistaking(3) == (22 / 24, 4 / 6, 4 / 6)


def test_the_worst_class_has_the_interval_of_one_chosen_among_all(root):
    head = (NAMES, np.roll(np.eye(12), 1, 0), np.zeros(12))
    wrong = dataclasses.replace(ENCODERS["perfect"], head=head)
    row = next(evaluation.evaluate("x", wrong, sets.open_sets(root, ["val"], CLASSES), CLASSES, ["{}"]))
    for level in (0.95, 0.995):
        known = scipy.stats.binomtest(0, 2).proportion_ci(1 - (1 - level) / 12, "exact")
        found = row["worst_class"][f"interval_{100 * level:g}"]
        np.testing.assert_allclose(found, known, atol=1e-12)
        assert found[1] > Share(0, 2).interval(level)[1] + 0.01


def test_a_line_is_held_against_models_scored_alike_each_once():
    row = {"run": "own", "set": "r", "classes": "a", "classes_scored": 200, "id_accuracy": 0.5, "accuracy": 0.5}
    kept = [row | {"run": "x", "accuracy": 0.2}, row | {"run": "y", "accuracy": 0.3}]
    told = {name: row[name] for name in ("set", "id_accuracy", "accuracy")} | {"run": "elsewhere"}
    models = [
        row | {"run": "x", "rule": "other templates"}, row | {"run": "own-best"}, row | {"run": "z", "set": "a"},
        row | {"run": "z", "classes": "b"}, row | {"run": "z", "classes_scored": 100}, *kept,
        {name: value for name, value in row.items() if name != "id_accuracy"} | {"run": "w"},
        row | {"run": "y-best"}, told,
    ]  # fmt: skip

    def by_run(rows):
        return sorted(rows, key=lambda row: row["run"])

    assert by_run(evaluation.of_shift(models, row)) == [told, *kept]
    best = row | {"run": "own-best"}
    assert by_run(evaluation.of_shift(models, best)) == [told, kept[0], row | {"run": "y-best"}]


def test_a_table_is_read_line_by_line_whatever_the_texts_hold(tmp_path):
    row = {"run": "a\u2028b", "set": "v2", "accuracy": 0.5}
    path = tmp_path / "t.jsonl"
    path.write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n" + json.dumps(row) + "\n")
    assert table.read(path, "--table") == [row, row]
    (tmp_path / "t.csv").write_text('\ufeffrun,set,accuracy,classes_scored\n"a\nb",v2,.5,200\nc,v2,2,\n')
    assert_refuses("line 4: needs", table.read, tmp_path / "t.csv", "--models")
    (tmp_path / "t.csv").write_text('\ufeffrun,set,accuracy,classes_scored\n"a\nb",v2,.5,200\n')
    assert table.read(tmp_path / "t.csv", "--models") == [row | {"run": "a\nb", "classes_scored": 200}]


def test_a_file_is_read_no_further_than_an_image_may_reach(root, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 60)
    paths = sorted(root.glob("val/*/*"))[:2]
    assert all(path.stat().st_size > 60 for path in paths)
    found = scoring.image_features(ENCODERS["text"], paths)
    assert len(found.kept) == 0 and set(found.bad) == {str(path) for path in paths}


def test_embeddings_that_are_not_finite_end_it(root):
    encoder = Encoder("broken", 8, lambda images: perfect_image(images) * np.nan)
    with pytest.raises(WorkFailed, match="not finite"):
        scoring.image_features(encoder, sorted(root.glob("val/*/*")))


def test_features_do_not_depend_on_batches_and_threads(root):
    paths = sorted(root.glob("val/*/*"))
    for batch_size, threads in ((1, 1), (5, 2), (100, 3)):
        found = scoring.image_features(ENCODERS["perfect"], paths, batch_size=batch_size, threads=threads)
        assert found.values.argmax(1).tolist() == np.repeat(range(12), 2).tolist()
        assert found.kept.tolist() == list(range(24)) and not found.bad


@pytest.mark.parametrize(
    "name, args, told",
    [
        ("", (), "needs one of --run=DIR and --weights=FILE"),
        ("text", ("--weights=x.npz",), "needs one of --run=DIR and --weights=FILE"),
        ("", ("--weights=x.npz", "--architecture=RN50"), "--weights needs --architecture and --vocabulary"),
        ("text", ("--architecture=RN50",), "belong to --weights"),
        ("text", ("--line=probit",), "--line must be of auto, standard, weak, fit, got 'probit'"),
        ("text", ("--transform=log",), "--transform must be of logit, probit, got 'log'"),
        ("text", ("--checkpoint=first",), "--checkpoint must be of last, best"),
        ("", ("--weights=x.npz", "--architecture=RN50", "--vocabulary=x", "--checkpoint=best"), "--checkpoint belongs"),
        ("text", ("--table=x.csv",), "--table=x.csv would be written as JSON lines"),
        ("text", ("--line=weak", "--transform=probit"), "--line=weak has no probit line"),
        ("text", ("--line=fit",), "--line=fit needs --models"),
        ("text", ("--models=/nowhere.csv",), "--models=/nowhere.csv is not there"),
        ("text", ("--batch_size=0",), "--batch_size must be >= 1, got 0"),
        ("text", ("--threads=0",), "--threads must be >= 1, got 0"),
        ("text", ("--sets=v2,imagenet",), "--sets must be of val,"),
        ("text", ("--root=/nowhere",), "--root=/nowhere is not there"),
        ("text", ("--root=runs/scenes",), "python -m sims.clip.make_scenes makes the default"),
        ("text", ("--classes=/nowhere.json",), "--classes=/nowhere.json cannot be read"),
        ("text", ("--templates=/nowhere",), "--templates=/nowhere cannot be read"),
        ("text", ("--out=/dev/null/out",), "--out=/dev/null/out cannot be used"),
        ("text", ("--table=/dev/null/t.jsonl",), "--table=/dev/null/t.jsonl cannot be used"),
        ("fish", (), "the head of fish has no class 'tench' and 11 more"),
        ("text", ("extra",), "unexpected argument"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(called, tmp_path, monkeypatch, name, args, told):
    monkeypatch.chdir(tmp_path)
    assert_refused(called(name, *args), told)
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_flag_without_jax():
    code = "import sys, sims.clip.evaluate; sys.exit('jax' in sys.modules)"
    assert python("-c", code).returncode == 0
    shown = python("-m", "sims.clip.evaluate", "--help")
    assert shown.returncode == 0
    for flag in ("run", "weights", "root", "classes", "strict", "models", "line", "transform", "table"):
        assert f"--{flag}:" in shown.stdout or f"--[no]{flag}:" in shown.stdout


def test_the_figure_shows_line_points_and_intervals():
    fit, axes = Line(0.9, -0.1), plt.subplots()[1]
    points = [
        scatter.Point("other", 0.5, 0.4, (0.45, 0.55), (float("nan"), float("nan")), False),
        scatter.Point("run", 0.7, 0.0, (0.6, 0.8), (0.0, 0.1), True),
    ]
    band = scatter.Band(np.array([0.5, 0.7]), np.array([0.3, 0.4]), np.array([0.5, 0.6]))
    scatter.against_val(axes, points, "logit", ("standard", LINES["v2"]["logit"]), ("mine", fit), band, chance=0.2)
    drawn = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    for name, line in (("standard", LINES["v2"]["logit"]), ("mine", fit), ("y = x", Line(1, 0))):
        np.testing.assert_allclose(drawn[name][:, 1], line.at(drawn[name][:, 0]))
    assert drawn["chance"][0][1] == 0.2
    shown = {c.get_label(): c.lines[0].get_xydata()[0] for c in axes.containers}
    np.testing.assert_allclose(shown["other models, 99.5%"], [0.5, 0.4])
    assert shown["run, 99.5%"][0] == 0.7 and 0 < shown["run, 99.5%"][1] < 1e-3  # moved in, or it would not be seen
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    assert x0 < 0.45 and x1 > 0.8 and y0 <= shown["run, 99.5%"][1] and y1 > 0.4
    ticks = axes.get_xticks()
    assert len(ticks) >= 3 and axes.xaxis.get_major_formatter()(ticks[0], 0) == f"{100 * ticks[0]:g}"
    plt.close("all")


@pytest.mark.slow
def test_imported_weights_are_evaluated(called, tmp_path, monkeypatch, float32, root):
    """A small tower from a file: what it embeds is what the model does; another vocabulary is refused."""
    text = dataclasses.replace(models.ARCHITECTURES["RN-tiny"].text, vocabulary_size=300, context_length=16)
    arch = dataclasses.replace(models.ARCHITECTURES["RN-tiny"], name="small", text=text)
    monkeypatch.setitem(models.ARCHITECTURES, "small", arch)
    shapes = models.variable_shapes(arch)
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    variables = jax.tree.map(lambda x: 0.2 * abs(jax.random.normal(next(keys), x.shape)) + 0.1, shapes)
    file = tmp_path / "tower.npz"
    np.savez(file, **weights.export_state_dict(variables, arch))
    captions = [f"a {a} and a {b}" for a in NAMES for b in NAMES]
    tokenizer.train_tokenizer(captions, 300, 16).save(tmp_path / "right.json")
    tokenizer.train_tokenizer(captions, 290, 16).save(tmp_path / "wrong.json")
    (tmp_path / "templates").write_text("a {}")
    loaded = []
    load = evaluation.load_weights
    monkeypatch.setattr(evaluation, "load_weights", lambda *args: loaded.append(load(*args)) or loaded[-1])
    flags = [f"--weights={file}", "--sets=v2", f"--templates={tmp_path / 'templates'}"]
    code, _, error = called("", *flags, "--architecture=small", f"--vocabulary={tmp_path / 'right.json'}")
    assert code == 0 and error.count("\n") == 1 and "more than one class has the name crane" in error
    ((name, encoder),) = loaded
    assert [row["run"] for row in json_lines(tmp_path / "out/results.jsonl")] == [name]
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    expected = jax.jit(lambda x: models.CLIP(arch).apply(variables, normalise(x), False, method="encode_image"))(images)
    np.testing.assert_allclose(encoder.encode_image(images), expected, rtol=1e-3, atol=1e-4)
    texts = encoder.encode_text([*["a broom", "a teapot"] * 6])
    assert (texts[0] == texts[2]).all() and (texts[0] != texts[1]).any()
    for architecture, words, told in (
        ("small", "wrong.json", "has 290 tokens and texts of 16, small 300"),
        ("RN51", "right.json", "--architecture must be of RN50"),
    ):
        assert_refused(called("", *flags, f"--architecture={architecture}", f"--vocabulary={tmp_path / words}"), told)

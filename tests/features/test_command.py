"""`sims.diagnose`: what it reads, what it writes, and what it refuses."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import sklearn.linear_model

import mmcl_theory as mt
from mmcl_theory.features import Advice, Diagnosis, Estimate, Outcome
from sims.diagnose import __main__ as diagnose
from sims.diagnose import heads, report
from sims.engine import reading
from sims.features.config import Config
from tests.helpers import assert_refused, assert_refuses, contents

GROUPS = [("cat", "grass"), ("cat", "sofa"), ("dog", "grass"), ("dog", "sofa")]


@pytest.fixture(scope="module")
def arrays():
    """120 pairs in four groups; the first feature tells the class, the second the attribute."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), [20, 40, 45, 15])
    sign = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])[group]
    image = np.c_[sign + 0.5 * rng.normal(size=(120, 2)), rng.normal(size=(120, 2))]
    text = image[:, :3] + 0.3 * rng.normal(size=(120, 3))
    names = np.array(GROUPS)[group]
    return {"image": image, "text": text.astype(np.float16), "labels": names[:, 0], "attributes": names[:, 1]}


@pytest.fixture
def files(arrays, tmp_path):
    """The arrays in one file of each kind, and the labels in a table."""
    np.savez(tmp_path / "all.npz", **arrays)
    np.save(tmp_path / "image.npy", arrays["image"])
    rows = ["class,place,x", *(f"{c},{a},1" for c, a in zip(arrays["labels"], arrays["attributes"], strict=True))]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


VALUES = dict.fromkeys(("data", *diagnose.NEEDED, "prompts", "units"))


def test_sources_of_all_kinds_give_the_arrays(files, arrays):
    st = pytest.importorskip("safetensors.numpy")
    st.save_file({"t": np.asarray(arrays["text"])}, files / "t.safetensors")
    names = dict(image="image.npy", text="t.safetensors:t", labels="table.csv:class", attributes="table.csv:place")
    for given in ({"data": "all.npz"}, names):
        values = {flag: str(files / name) for flag, name in given.items()}
        found = diagnose.load({**VALUES, **values})
        assert set(found) == set(arrays)
        assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    np.savez(files / "more.npz", **arrays, prompts=np.zeros((2, 3)))
    assert diagnose.load({**VALUES, "data": str(files / "more.npz")})["prompts"].shape == (2, 3)


def test_columns_of_lists_are_features(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pd.DataFrame({"image": [[1.0, 2.0], [3.0, 4.0]], "labels": [0, 1]}).to_parquet(tmp_path / "t.parquet")
    np.testing.assert_array_equal(reading.read("image", str(tmp_path / "t.parquet"), "image"), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "make, flag, source, said",
    [
        ("x,y\nNA,1\n1,\n", "labels", "bad.csv:y", "row 1 has no value"),
        ("x,y\n1,2\n", "labels", "bad.csv:z", "has no 'z'; it has x, y; give one as "),
        ("nonsense", "image", "bad.npy", "cannot be read ("),
        ("nonsense", "image", "bad.npz:image", "cannot be read ("),
        ("nonsense", "image", "bad.safetensors", "cannot be read ("),
        ("nonsense", "image", "bad.pt", "must be a file of .npy, .npz, .safetensors, .csv, .parquet"),
        (None, "image", "absent.npy", "cannot be read (No such file or directory)"),
    ],
)
def test_bad_files_are_one_line(tmp_path, make, flag, source, said):
    if make is not None:
        (tmp_path / source.split(":")[0]).write_text(make)
    assert assert_refuses(said, reading.read, flag, str(tmp_path / source), flag).startswith(f"--{flag}")


def test_pickled_objects_are_never_loaded(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    objects = np.empty(1, object)
    objects[0] = Harm()
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", image=objects)
    for name in ("a.npy", "a.npz:image"):
        assert_refuses("cannot be read", reading.read, "image", str(tmp_path / name), "image")
    assert not (tmp_path / "harm").exists()


@pytest.mark.costly
def test_the_command_writes_a_report(files, mmcl):
    code, out, err = mmcl(diagnose, f"--data={files / 'all.npz'}", f"--out={files / 'out'}", "--folds=5", "--noadvice")
    assert code == 0 and out.rstrip().endswith("report.html") and "MMCL, linear loss: P, as in training" in out
    assert err.splitlines() == [
        "warning: group (cat, grass) has 20 samples, fewer than 30: its intervals are wide.",
        "warning: group (dog, sofa) has 15 samples, fewer than 30: its intervals are wide.",
    ]
    assert (files / "out" / "report.html").exists()


@pytest.mark.costly
def test_trained_heads_stand_beside_the_closed_forms(files, mmcl):
    flags = "--folds=3", "--noadvice", "--learners=mmcl", "--head_epochs=20", "--head_layers=1", "--head_width=8"
    code, out, _ = mmcl(diagnose, f"--data={files / 'all.npz'}", f"--out={files / 'out'}", "--heads=clip", *flags)
    assert code == 0 and "trained head, CLIP loss: P, as in training" in out
    content = json.loads((files / "out" / "diagnosis.json").read_text())
    at = {row["learner"]: row["accuracy"] for row in content["accuracies"] if row["group"] == "train"}
    assert list(at) == ["mmcl", "clip head"]
    assert content["settings"]["heads"] == ["clip"] and content["settings"]["head_epochs"] == 20


def _training(n, seed, swapped=False):
    """Images whose first two features tell the class, and captions that tell it; or the other class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    image = np.c_[(2 * label - 1)[:, None] + 0.7 * rng.normal(size=(n, 2)), rng.normal(size=(n, 3))]
    told = 1 - label if swapped else label
    text = np.c_[2 * told - 1 + 0.3 * rng.normal(size=n), rng.normal(size=(n, 2))]
    prompts = np.array([[-1.0, 0, 0], [1, 0, 0]])
    return mt.features.Training(image, text, label, np.arange(n) // 2, prompts, 0)


def test_a_linear_head_is_logistic_regression():
    config = Config(width=(5,), layers=1, epochs=(100,), batch_size=50, learning_rate=0.02)
    train, test = _training(301, 0), _training(333, 1)  # sizes that are no multiples
    scores = heads.fit("supervised", config, train)(test.image)
    assert scores.shape == (333, 2)
    wanted = sklearn.linear_model.LogisticRegression(C=np.inf).fit(train.image, train.label)
    assert np.corrcoef(scores[:, 1] - scores[:, 0], wanted.decision_function(test.image))[0, 1] > 0.99
    agree = (scores.argmax(1) == wanted.predict(test.image)).mean()
    assert agree > 0.97 > 0.6 > (scores.argmax(1) == wanted.predict(test.image[::-1])).mean()


@pytest.mark.costly
def test_a_clip_head_learns_the_class_that_captions_tell():
    config = Config(width=(4,), layers=1, epochs=(20,), batch_size=50, learning_rate=0.02)
    test = _training(400, 2)
    scores = [heads.fit("clip", config, _training(300, 1, swapped))(test.image) for swapped in (False, True)]
    right = [(each.argmax(1) == test.label).mean() for each in scores]
    assert right[0] > 0.9 > 0.1 > right[1], right


def test_bad_input_writes_nothing(files, mmcl, arrays):
    np.savez(files / "nan.npz", **{**arrays, "image": np.where(arrays["image"] > 1.5, np.nan, arrays["image"])})
    np.savez(files / "one.npz", **{**arrays, "labels": np.zeros(120, int)})
    data = f"--data={files / 'all.npz'}"
    cases = [
        ([f"--data={files / 'nan.npz'}"], "image features must be finite, got another value in row"),
        ([f"--data={files / 'one.npz'}"], "labels must have at least two values, got 1."),
        ([data, f"--labels={files / 'table.csv'}:x"], "labels must have at least two values, got 1."),
        ([data, f"--prompts={files / 'image.npy'}"], "prompts must have shape (2, 3), got (120, 4)."),
        ([data, "--shifted_weight=0.5,0.5"], "shifted_weight must have one entry for each of 4 groups"),
        ([data, "--heads=whitened"], "--heads must be of clip, clip_no_intra, clip_labels, siglip, supervised,"),
        ([data, "--head_layers=0"], "--head_layers must be >= 1, got 0."),
        ([data, "--rank=9"], "rank of mmcl must be at most the number of features, 3, got 9."),
        (["--image=x.npy"], "--image=x.npy: cannot be read (No such file or directory)."),
        ([], "--image must name a file, or --data one that has image, text, labels, attributes."),
    ]
    for arguments, said in cases:
        assert_refused(mmcl(diagnose, *arguments, f"--out={files / 'out'}"), said)
    assert not (files / "out").exists()


def test_the_report_has_everything_in_one_file(arrays, tmp_path):
    with pytest.warns(UserWarning, match="fewer than 30"):
        found = mt.diagnose(**arrays, folds=5, knobs={"attribute": [0.0], "minority": [4.0]})
    report.write(found, {"folds": 5}, ["group (dog, sofa) has 15 samples"], tmp_path)
    assert {path.name for path in contents(tmp_path)} == {
        "report.html", "accuracies.csv", "advice.csv", "diagnosis.json", "diagnose.png", "diagnose.pdf"
    }  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and "Warning: group (dog, sofa)" in page
    assert 'src="http' not in page and "<script" not in page and "href" not in page
    content = json.loads((tmp_path / "diagnosis.json").read_text())
    assert [g["samples"] for g in content["groups"]] == [20, 40, 45, 15]
    rows = {(r["learner"], r["group"]): r["accuracy"] for r in content["accuracies"]}
    assert rows["mmcl", "shifted"] == pytest.approx(found.outcomes["mmcl"].by_group.mean())
    assert content["regimes"]["supervised"] == found.regime("supervised")
    said = report.text(found)
    assert said.startswith("120 pairs: 20 cat, grass, 40 cat, sofa, 45 dog, grass, 15 dog, sofa")
    assert f"of {len(found.advice)} settings have evidence" in said


def diagnosed(n, outcomes, advice=()):
    model = mt.intra_class(p_spu=0.9, sigma_core=1.0, sigma_spu=0.3).as_mixture()
    return Diagnosis(("a", "b"), ("x", "y"), np.full(4, n), outcomes, advice, (), model, np.zeros(2))


def an_outcome(measured, predicted, n):
    """Answers of four groups of n samples, in ten folds alike."""
    size = np.full((10, 4), n / 10)
    equal = np.full(4, 0.25)
    return Outcome(size * measured, size, size.sum(0), equal, equal, np.array(predicted), equal, equal)


@pytest.mark.parametrize(
    "predicted, n, said",
    [
        ([0.9, 0.7, 0.71, 0.9], 4000, "they agree in every group"),
        ([0.9, 0.7, 0.75, 0.9], 4000, "they disagree in b, x, they agree elsewhere"),
        ([0.9, 0.7, 0.75, 0.9], 40, "too few samples to tell in a, x; a, y; b, x; b, y"),
        ([np.nan] * 4, 4000, "Gaussian scores are not computed for so many classes"),
    ],
)
def test_the_report_says_where_gaussian_scores_agree(predicted, n, said):
    outcomes = {"mmcl": an_outcome([0.9, 0.7, 0.7, 0.9], predicted, n)}
    assert said in report._gaussian(diagnosed(n, outcomes), "mmcl")


@pytest.mark.parametrize("learners", [1, 4, 11])
def test_learners_keep_to_their_column_of_the_figure(learners):
    outcomes = {str(i): an_outcome([0.9, 0.7, 0.7, 0.9], [0.8] * 4, 100) for i in range(learners)}
    figure = report.draw(diagnosed(100, outcomes))
    places = [line.get_xdata() for line in figure.axes[0].lines if line.get_color() == "black"]
    assert len(places) == learners and np.ptp(places, axis=0).max() < 0.9
    assert learners == 1 or np.ptp(places, axis=0).min() > 0.3
    plt.close(figure)


def test_the_best_gain_and_the_worst_loss_of_a_knob_are_shown():
    def change(knob, setting, shifted, worst=0.0):
        return Advice("ridge", knob, setting, *(Estimate(x, 0.01, x - 0.02, x + 0.02) for x in (shifted, worst)))

    gains, losses = [change("kappa", 0.1, 0.05), change("kappa", 1.0, 0.03)], [change("kappa", 10.0, -0.09)]
    worst, nothing = change("attribute", 0.0, 0.01, 0.2), change("detail", 0.0, 0.01, -0.01)
    found = diagnosed(1, {}, (*gains, *losses, worst, nothing))
    assert report.changes_with_evidence(found, 9) == [losses[0], gains[0], worst]


def test_names_are_escaped(arrays, tmp_path):
    labels = np.where(arrays["labels"] == "cat", "<b>cat</b>", "dog $5^$")
    with pytest.warns(UserWarning, match="fewer than 30"):
        one = {"mmcl": mt.features.Learner("mmcl")}
        found = mt.diagnose(**{**arrays, "labels": labels}, folds=5, knobs={}, learners=one)
    report.write(found, {}, [], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<b>cat" not in page and "&lt;b&gt;cat" in page


def test_a_ridge_is_told_as_the_temperature_that_gives_it():
    """By the square root, from the ridge that the learner has; not where that is 0."""
    nothing = Estimate(0.0, 0.1, -0.2, 0.2)

    def said(now):
        return report.described(Advice("ridge", "kappa", 4.0, nothing, nothing, now))

    assert said(1.0).endswith("ridge kappa 4, as 2 times the temperature gives")
    assert said(100.0).endswith("as 0.2 times the temperature gives") and said(0.0).endswith("ridge kappa 4")

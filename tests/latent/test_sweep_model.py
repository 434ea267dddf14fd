"""`sims.sweep_model` at a tiny size: what a model file may hold, its axes by path, and its predictions."""

import copy
import dataclasses
import json

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

import mmcl_theory as mt
from sims.engine import statistics
from sims.engine.flags import UsageError
from sims.sweep_model import cells, experiment, paths
from sims.sweep_model.config import Config, axis
from sims.sweep_model.model_file import read
from tests.helpers import ROOT, assert_another_run_is_refused, quick_compilation

EXAMPLES = ROOT / "examples" / "models"
FILE = {
    "groups": [
        {"class": 0, "weight": 0.4, "mean": [-1, -1], "variance": [1, 0.1]},
        {"class": 0, "weight": 0.1, "mean": [-1, 1], "variance": [1, 0.1]},
        {"class": 1, "weight": 0.15, "mean": [1, -1], "covariance": [[1, 0.1], [0.1, 0.2]]},
        {"class": 1, "weight": 0.35, "mean": [1, 1], "variance": [0.5, 0.1], "captions": {"mention": [0.5, 1]}},
    ],
    "captions": {"mention": 0.8, "wrong": [0, 0.2]},
    "observation": {"dim_image": 4, "dim_text": 4, "sigma_image": 0.5, "sigma_text": 0.5},
    "n": 400,
    "names": {"coordinates": ["core", "place"]},
}


def changed(*where, to):
    """The file with another value at a place; None removes it."""
    content = copy.deepcopy(FILE)
    at = content
    for key in where[:-1]:
        at = at[key]
    if to is None:
        del at[where[-1]]
    else:
        at[where[-1]] = to
    return content


@pytest.fixture
def written(tmp_path):
    """Writes text, or content as JSON, and gives the path."""

    def write(content, suffix=".json"):
        file = tmp_path / f"model{suffix}"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file)

    return write


def config_of(model, x="groups.1.weight=0.05,0.3", **more):
    return Config(model=model, x=axis(x), **more)


def refusal(config):
    with pytest.raises(UsageError) as error:
        config.check()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_yaml_and_json_are_read_alike(written):
    pytest.importorskip("yaml")
    inline = json.dumps(FILE).replace("0.15", "1.5e-1").replace("[1, 0.1]}", "[1e0, 1e-1]}")
    assert read(written(inline, ".yaml")) == read(written(FILE))
    assert read(written(inline.replace("0.35", "0.36"), ".yaml")) != read(written(FILE))


@pytest.mark.parametrize(
    "content, said",
    [
        (changed("groups", 2, "mean", to=[1.0, 2.0, 3.0]), "groups[2].mean: must have 2 numbers, got 3."),
        (changed("groups", 0, "weight", to=0.5), "groups: weight: must sum to 1, got 1.1."),
        (changed("groups", 0, "weight", to=-0.4), "groups[0].weight: must be >= 0, got -0.4."),
        (
            changed("groups", 1, "class", to=3),
            "groups: classes must be 0, 1, ... without a gap and at least two, got [0, 1, 3].",
        ),
        (changed("groups", 3, "class", to=0.5), "groups[3].class: must be a whole number, got 0.5."),
        (changed("groups", 1, "variance", 0, to=-1), "groups[1].variance[0]: must be >= 0, got -1."),
        (changed("groups", 1, "variance", to=None), "groups[1]: needs covariance (a matrix) or variance"),
        (changed("groups", 2, "covariance", 0, 1, to=0.5), "groups[2].covariance: must be symmetric."),
        (changed("groups", 2, "covariance", 1, 1, to=0.001), "groups[2].covariance: must be positive semi-definite"),
        (changed("groups", 0, "shifted_weight", to=1), "groups: shifted_weight must be given for all groups"),
        (changed("groups", 3, "captions", "mention", 0, to=1.5), "groups[3].captions.mention[0]: must be in [0, 1]"),
        (changed("captions", "base", to="other"), "captions.base: must be numbers or of named, mean, zero, got"),
        (changed("captions", "blur", to=True), "captions.blur: must be a number, got True."),
        (changed("captions", "often", to=1), "captions: has the unknown key 'often'"),
        (changed("prompts", to=[[1, 2]]), "prompts: must have 2 rows, one for each class, got 1."),
        (changed("n", to=1e9), "n: must be finite and at most 1e+06 in size"),
        (changed("observation", "dim_text", to=1), "observation.dim_text: must be a whole number >= 2, got 1."),
        (changed("names", "coordinates", 0, to="0"), "names.coordinates[0]: must be letters"),
        (changed("groups", to=None), "the file: needs groups."),
        ('{"n": 3, "n": 4}', "the file: the key 'n' is there twice."),
        ('{"n": NaN}', "groups"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_bad_entry_is_named(written, content, said):
    message = refusal(config_of(written(content)))
    assert message.startswith("--model=") and said in message
    config_of(written(FILE)).check()


@pytest.mark.parametrize(
    "text, said",
    [
        ("n: !!float 3", "line 1: a tag is not allowed."),
        ("n: &a 3", "line 1: an anchor is not allowed."),
        ("groups: 1\nn: *a", "line 2: an alias is not allowed."),
        ("n: 3\nn: 4", "line 2: the key 'n' is there twice."),
        ("captions: {wrong: 1, wrong: 0}", "line 1: the key 'wrong' is there twice."),
        ("1: 2", "line 1: a key must be plain text."),
        ("n: [1", "is no YAML"),
        ("n: 2020-01-01", "the file: needs groups."),
        ("", "the file: must have the keys"),
        ("a: 1\n---\nb: 2", "is no YAML"),
    ],
)
def test_yaml_beyond_plain_values_is_refused(written, text, said):
    pytest.importorskip("yaml")
    assert said in refusal(config_of(written(text, ".yaml")))


@pytest.mark.parametrize(
    "x, said",
    [
        ("groups.4.weight=0,1", "'4' is none of 0..3"),
        ("groups.1.weight=0.1,0.6", "groups.1.weight: must be in [0, 0.5], got 0.6."),
        (
            "captions.mention.place=0.5,2",
            "at captions.mention.place = 2: captions.mention[1]: must be in [0, 1], got 2.",
        ),
        ("captions.base.0=0,1", "is 'named' in the file; numbers there can be swept."),
        ("groups.0.shifted_weight=0,1", "the file gives no shifted_weight."),
        ("groups.0.covariance.0.1=0,1", "the group has a variance"),
        ("groups.0.class=0,1", "groups.0.class is no number of the model; its paths are"),
        ("n=10.5,20", "n: must be a whole number >= 2, got 10.5."),
        ("embed_dim=1,3", "embed_dim: must be a whole number in [1, 2], got 3."),
    ],
)
def test_an_axis_that_does_not_fit_is_refused(written, x, said):
    assert said in refusal(config_of(written(FILE), x))


def test_two_axes_of_the_same_weights_are_refused(written):
    file = written(FILE)
    both = {"curves": axis("groups.0.weight=0.1,0.2")}
    assert "change the same weights" in refusal(config_of(file, **both))
    config_of(file, curves=axis("groups.2.weight=0.1,0.2")).check()


def weights(spec, path, value, key="weight"):
    return [group[key] for group in paths.at(spec, {path: value})["groups"]]


def test_a_weight_changes_at_the_weight_of_its_class(written):
    spec = read(written(FILE))
    np.testing.assert_allclose(weights(spec, "groups.1.weight", 0.3), [0.2, 0.3, 0.15, 0.35])
    np.testing.assert_allclose(weights(spec, "classes.1.weight", 0.8), [0.16, 0.04, 0.24, 0.56])
    alone = changed("groups", 1, "class", to=1)
    np.testing.assert_allclose(weights(read(written(alone)), "groups.0.weight", 0.7), [0.7, 0.05, 0.075, 0.175])


def test_a_path_sets_its_numbers_and_no_others(written):
    spec = read(written(FILE))

    def values(path):
        cell = paths.at(spec, {path: 0.25})
        found = [(g, key, j) for g, group in enumerate(cell["groups"]) for key in ("mean", "variance")
                 for j, x in enumerate(group.get(key, ())) if x == 0.25]  # fmt: skip
        return found, cell

    assert values("groups.1.mean.place")[0] == [(1, "mean", 1)]
    assert values("groups.*.mean.0")[0] == [(g, "mean", 0) for g in range(4)]
    assert values("groups.0.variance")[0] == [(0, "variance", 0), (0, "variance", 1)]
    assert values("groups.2.covariance.0.1")[1]["groups"][2]["covariance"] == [[1.0, 0.25], [0.25, 0.2]]
    cell = values("captions.mention.core")[1]
    assert cell["captions"]["mention"] == [0.25, 0.8] and cell["groups"][3]["captions"]["mention"] == [0.5, 1.0]
    cell = values("groups.0.captions.mention.0")[1]
    assert cell["groups"][0]["captions"]["mention"] == [0.25, 0.8] and cell["captions"]["mention"] == [0.8, 0.8]
    assert spec == read(written(FILE))


@pytest.mark.parametrize(
    "axes",
    [
        {"groups.1.weight": [0.05, 0.3], "captions.mention.place": [0.2, 0.9]},
        {"classes.1.weight": [0.1, 0.7], "groups.2.covariance.0.1": [0.0, 0.3]},
        {"groups.1.variance.core": [0.0, 2.0], "groups.3.captions.mention": [0.0, 0.5]},
        {"n": [10.0, 300.0], "observation.sigma_text": [0.0, 1.0]},
    ],
)
def test_many_cells_at_once_are_the_cells_one_by_one(written, axes):
    """Arrays of numbers give each cell's model, and a cell out of range is named as it is alone."""
    (x, xs), (curves, values) = axes.items()
    config = Config(model=written(FILE), x=(x, tuple(xs)), curves=(curves, tuple(values)))
    config.check()
    built = cells.build(config)
    for cell, (second, first) in enumerate([(v, u) for v in values for u in xs]):
        alone = cells.build(Config(model=config.model, x=(x, (first,)), curves=(curves, (second,))))
        pairs = list(zip(built.leaves, alone.leaves, strict=True))
        assert all(np.array_equal(many[cell], one[0]) for many, one in pairs), cell
        assert not all(np.array_equal(many[cell - 1], one[0]) for many, one in pairs), cell


def test_the_first_cell_out_of_range_is_named(written):
    said = refusal(config_of(written(FILE), "captions.mention.core=0.5,1,1.5,2", curves=axis("n=10,20")))
    assert "at n = 10, captions.mention.core = 1.5: captions.mention[0]: must be in [0, 1], got 1.5." in said


@pytest.mark.parametrize(
    "more, said",
    [
        ({"y": axis("n=10,20"), "curves": axis("theta=0,1")}, "--curves and --y are both a second axis"),
        ({"y": axis("groups.1.weight=0.1,0.2")}, "--y must be another path than --x"),
        ({"y": axis("n=10")}, "--x and --y must have at least 2 values each for a map, got 1."),
        ({"fine": 1}, "--fine must be"),
    ],
)
def test_axes_of_a_map_that_do_not_fit_are_refused(written, more, said):
    assert said in refusal(config_of(written(FILE), **more))
    config_of(written(FILE), y=axis("n=10,20"), fine=2).check()


def model_of(built, cell):
    leaves = [jax.numpy.asarray(x[cell]) for x in built.leaves]
    return jax.tree.unflatten(built.tree, leaves)


def test_the_cells_are_the_library_s_models(written):
    """Of the file and of the same model as a function; the base of unmentioned coordinates follows the weights."""
    built = cells.build(config_of(written(FILE), "classes.1.weight=0.5,0.8"))
    covariance = np.array([np.diag([1, 0.1]), np.diag([1, 0.1]), [[1, 0.1], [0.1, 0.2]], np.diag([0.5, 0.1])])
    mean = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    model = mt.mixture([0.16, 0.04, 0.24, 0.56], mean, covariance, [0, 0, 1, 1])
    mention = [[0.8, 0.8]] * 3 + [[0.5, 1.0]]
    caps = mt.group_captions(model, mention=np.array(mention), wrong=[0.0, 0.2])
    wanted = jax.tree.leaves((model, caps, model.prompts()))

    def agrees(cell):
        found = jax.tree.leaves(model_of(built, cell)[:3])
        return all(np.allclose(a, b, atol=1e-12) for a, b in zip(found, wanted, strict=True))

    assert agrees(1) and not agrees(0)


FUNCTION = """
import mmcl_theory as mt
GROUPS = ["left", "right"]
def model(distance=1.0, *, share=0.5, note=None):
    return mt.mixture([share, 1 - share], [[-distance, 0.0], [distance, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [0, 1]), None
"""


def test_a_function_has_its_parameters_as_paths(written):
    config = config_of(written(FUNCTION, ".py"), "share=0.25,0.5", curves=axis("distance=1,2"))
    config.check()
    built = cells.build(config)
    model = model_of(built, 2)[0]
    np.testing.assert_allclose(model.weight, [0.25, 0.75])
    np.testing.assert_allclose(model.mean[:, 0], [-2.0, 2.0])
    assert cells.group_names(config, built) == ["left", "right"]


@pytest.mark.parametrize(
    "text, x, said",
    [
        (FUNCTION, "note=0,1", "note is no number of the model; its paths are distance, share,"),
        (FUNCTION, "share=0.5,1.5", "ValueError: weight must be >= 0, got -0.5."),
        (FUNCTION, "embed_dim=2,3", "embed_dim: must be a whole number in [1, 2], got 3."),
        (FUNCTION.replace("distance=1.0", "distance"), "share=0,1", "every parameter needs a default value"),
        (FUNCTION.replace("share", "theta"), "theta=0,1", "model(theta): is a name of the command's own"),
        (FUNCTION.replace(", None", ""), "share=0.2,0.5", "TypeError: "),
        (FUNCTION.replace("mt.mixture", "list"), "share=0.2,0.5", "TypeError: "),
        ("def other(): pass", "share=0,1", "has no function model"),
        ("def model(:", "share=0,1", "line 1: is no Python"),
    ],
)
def test_a_function_that_does_not_fit_is_refused(written, tmp_path, text, x, said):
    with pytest.raises(UsageError) as error:
        experiment.run(config_of(written(text, ".py"), x), tmp_path / "out")
    assert said in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_time_that_takes_too_long_steps_is_refused(written, tmp_path):
    """Descent would bounce, or diverge, and the measured rule be another: the largest singular value is near 2."""
    config = config_of(written(FILE), "time=5,100", learners=("early_stopped",))
    cells.build(config)
    strong = changed("groups", 0, "mean", to=[-9, -1])
    with pytest.raises(UsageError, match=r"^time: must be <= [0-9.]+ for early_stopped .* got 100\.$"):
        experiment.run(config_of(written(strong), "time=5,100", learners=("early_stopped",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    cells.build(config_of(written(strong), "time=5,100", learners=("mmcl",)))


def test_max_margin_is_refused_for_three_classes():
    three = config_of(str(EXAMPLES / "three_classes.yaml"), "n=100,200", learners=("supervised",))
    assert "2 classes only, the model has 3" in refusal(three)
    dataclasses.replace(three, learners=("mmcl",)).check()


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.*")), ids=lambda file: file.name)
def test_the_examples_commands_are_whole(file):
    """The command in a file's first lines names the file and a figure of docs/, which its page shows with it."""
    lines = file.read_text().split("\n")
    command = " ".join(line.removeprefix("# ").strip().rstrip("\\").strip() for line in lines[:2])
    assert command.startswith(f"python -m sims.sweep_model --model=examples/models/{file.name} --x=")
    flags = dict(part.removeprefix("--").split("=", 1) for part in command.split()[3:])
    named = ("x", "curves")
    learners = tuple(flags["learners"].split(","))
    Config(model=str(file), learners=learners, **{k: axis(flags[k]) for k in named if k in flags}).check()
    page = (ROOT / "docs" / "models.md").read_text()
    figure = f"model_{file.stem}.png"
    assert figure in page and (ROOT / "docs" / figure).is_file() and f"--x={flags['x']}" in page


TINY = {"x": axis("groups.1.weight=0.05,0.3"), "learners": ("whitened",), "seeds": 24}


def assert_met(data, order):
    """The cells meet the prediction, and none with the cells, groups or learners swapped. order: of the learners."""
    assert data.z.max() < 6
    samples, predicted = np.moveaxis(data.accuracy_measured.values, 1, -1), data.accuracy_predicted.values
    for wrong in (predicted[:, ::-1], predicted[..., [1, 0, 3, 2, 4, 5]], *([predicted[order]] if order else [])):
        assert statistics.z_scores(wrong, samples, experiment.LEFT_OUT).max() > 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "pair.json").write_text(json.dumps(FILE))
    config = Config(model=str(folder / "pair.json"), **TINY)
    with quick_compilation(), jax.enable_x64(False):
        return folder, config, experiment.run(config, folder / "out")


@pytest.mark.costly
def test_measured_cells_meet_the_prediction_and_no_wrong_one(finished):
    data = finished[2]
    assert data.accuracy_measured.dims == ("learner", "seed", "x", "accuracy_in")
    assert_met(data, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "learners, changed, order",
    [
        (("mmcl", "probe", "ridge"), (), [1, 2, 0]),
        (("mmcl", "probe"), (("embed_dim", 1.0),), [1, 0]),
        (("mmcl",), (("same_class_weight", 0.9),), None),
        (("mmcl", "early_stopped"), (("time", 4.0), ("n", 4000.0)), [1, 0]),
        (("supervised",), (("n", 80.0), ("dim_image", 160.0), ("sigma_image", 2.0)), None),
    ],
)
def test_every_learner_meets_its_prediction(written, tmp_path, learners, changed, order):
    with quick_compilation(), jax.enable_x64(False):
        config = config_of(written(FILE), learners=learners, seeds=40, parameters=changed)
        assert_met(experiment.run(config, tmp_path / "out"), order)


@pytest.mark.slow
def test_data_that_no_plane_separates_have_no_max_margin(written, tmp_path):
    config = config_of(written(FILE), learners=("supervised",), seeds=2, parameters=(("n", 60.0),))
    with quick_compilation(), jax.enable_x64(False):
        data = experiment.run(config, tmp_path / "out")
    assert data.accuracy_measured.isnull().all() and "4 runs not separable" in experiment.text(data)


@pytest.mark.slow
def test_sizes_and_curves_are_axes(written, tmp_path):
    config = config_of(written(FILE), "n=100,400", curves=axis("theta=0,1"), learners=("whitened",), seeds=4)
    with quick_compilation(), jax.enable_x64(False):
        data = experiment.run(config, tmp_path / "out")
    assert data.accuracy_predicted.dims == ("learner", "curve", "x", "accuracy_in")
    spread = data.accuracy_measured.std("seed").mean(("learner", "curve", "accuracy_in"))
    assert spread[0] > 1.3 * spread[1]
    assert (tmp_path / "out" / "summary.csv").read_text().startswith("learner,theta,n,")


def test_a_map_is_predicted_in_batches(written, monkeypatch):
    """Batches of one program give every cell the prediction that it has alone."""
    config = config_of(written(FILE), y=axis("captions.mention.place=0,1"), fine=5, learners=("whitened",))
    fine = config.drawn()
    assert [len(values) for values in fine.values()] == [5, 5]
    with quick_compilation():
        whole = experiment.predictions(config, fine)
        monkeypatch.setattr(experiment, "_BATCH", 10)
        np.testing.assert_array_equal(experiment.predictions(config, fine), whole)
        turned = experiment.predictions(config, {"y": fine["y"][::-1], "x": fine["x"]})
    np.testing.assert_allclose(turned[:, ::-1], whole, rtol=1e-12)
    assert np.abs(turned - whole).max() > 0.01


@pytest.mark.slow
def test_a_map_is_drawn_with_its_cells(written, tmp_path):
    config = config_of(written(FILE), y=axis("captions.mention.place=0,1"), fine=5, learners=("whitened",), seeds=24)
    with quick_compilation(), jax.enable_x64(False):
        data = experiment.run(config, tmp_path / "out")
    assert data.accuracy_curve.dims == ("learner", "y_fine", "x_fine", "accuracy_in")
    assert_met(data, None)
    figure = experiment.draw(data)
    for ax, name in zip(figure.axes, ["train", "shifted"], strict=False):
        measured = data.accuracy_measured.mean("seed").sel(accuracy_in=name)[0]
        np.testing.assert_allclose(np.sort(ax.collections[-1].get_array()), np.sort(measured.values.ravel()))
    assert (tmp_path / "out" / "summary.csv").read_text().startswith("learner,captions.mention.place,groups.1.weight,")
    plt.close(figure)


def test_the_folder_holds_the_files(finished):
    out = finished[0] / "out"
    files = [".lock", "config.json", "model_pair.pdf", "model_pair.png", "results.zarr", "summary.csv"]
    assert sorted(p.name for p in out.iterdir()) == files
    header, *rows = (out / "summary.csv").read_text().splitlines()
    assert header.startswith("learner,groups.1.weight,group 0 (class 0)_predicted,") and len(rows) == 2


def test_another_model_in_the_folder_is_refused(finished):
    folder, config, _ = finished
    other = changed("captions", "wrong", to=[0, 0.3])
    (folder / "other").mkdir()
    (folder / "other" / "pair.json").write_text(json.dumps(other))
    model = str(folder / "other" / "pair.json")
    assert_another_run_is_refused(experiment, config, folder / "out", model=model)


def test_the_figure_shows_every_group(finished):
    figure = experiment.draw(finished[2])
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == ["training distribution P", "shifted distribution P*"] and len(titles) == 6
    lines = [len(ax.get_lines()) for ax in figure.axes]
    assert min(lines) >= 2 and figure.get_supxlabel() == "training weight of group 1 (class 0)"
    plt.close(figure)

"""The study `shares`: its settings, its sets, arms at matched ID, and whole runs on scenes and real layouts."""

import csv
import dataclasses
import json
import os

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from sims import lines
from sims.clip import compare
from sims.clip.comparison import runs, shares
from sims.clip.comparison.config import PRESETS, SIX, Share, Shares
from sims.clip.config import ARMS
from sims.clip.config import Config as Training
from sims.clip.fit import prepare, trained
from sims.clip.model import models
from sims.clip.records import class_maps, sources
from sims.clip.scenes import generation, layouts
from sims.clip.zero_shot.prompts import TEMPLATES
from sims.engine import processes
from sims.engine.flags import UsageError
from tests.clip.test_training import NANO
from tests.helpers import assert_refused, assert_refuses, contents, csv_rows

TINY = Training(architecture="nano", context_length=8, batch_size=16, epochs=1.0, held_out=8, warm_up=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Scenes, few and small."""
    out = tmp_path_factory.mktemp("scenes") / "scenes"
    generation.make(out, layouts.Config(train=120, test=2, side=32))
    return out


@pytest.fixture
def nano(float32, monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, "nano", NANO)
    monkeypatch.setattr(processes, "cores", lambda: 1)  # so that no process is started to decode
    shares._found.cache_clear()


def test_the_papers_sizes():
    for name in ("paper_coco", "paper_cc"):
        config = PRESETS[name]
        assert config.preset == name and config.percent == (25, 50, 75, 100) and config.at == (20,)
        assert config.arms == ("clip", "clip_no_intra") and config.seeds == 1
        recipe = config.training
        assert (recipe.architecture, recipe.epochs, recipe.batch_size, recipe.steps) == ("RN50", 100, 512, None)
        whole = dataclasses.replace(config, root="r", training=dataclasses.replace(recipe, data="coco:d"))
        if name == "paper_coco":
            whole.check()
            assert whole.validation == 0
    cc = dataclasses.replace(whole, training=dataclasses.replace(recipe, data="tars:x"))
    cc.check()
    assert cc.validation == 0.3 and cc.of_run(cc.runs()[0], None).validation == 0.3


def test_runs_of_the_study():
    config = dataclasses.replace(Shares(), seeds=2, percent=(25.0, 100.0), training=Training(seed=5, epochs=2.0))
    every = config.runs()
    assert len({each.name for each in every}) == len(every) == 2 * 2 * 2
    assert [each.seed for each in every] == [0] * 4 + [1] * 4 and every[0].name == "clip_25_0"
    last = config.of_run(every[-1], "words.json")
    assert (last.arm, last.percent, last.seed, last.vocabulary) == ("clip_no_intra", 100, 6, "words.json")
    assert last.data == "coco:runs/scenes/coco" and last.validation == 0 and last.epochs == 2
    others = (
        {"percent": (50.0, 100.0)}, {"classes": "c"}, {"class_map": "coco"}, {"at": (20.0,)}, {"arms": ("clip",)},
        {"training": dataclasses.replace(config.training, classes="c")},
        {"training": dataclasses.replace(config.training, epochs=3.0)},
    )  # fmt: skip
    assert all(config.flat() != dataclasses.replace(config, **other).flat() for other in others)


COCO, FEW = ("--preset=paper_coco", "--data=coco:ROOT/coco"), ("--root=ROOT", "--held_out=8", "--batch_size=8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--percent=0,50"], "--percent must be in [1, 100], got 0"),
        (["--percent=50,101"], "--percent must be in [1, 100], got 101"),
        (["--percent=50,50.00001"], "--percent must have values that differ in six digits"),
        (["--arms=clap"], "--arms must be of clip,"),
        (["--at=0"], "--at must be inside (0, 100), in percent, got 0"),
        (["--seeds=0"], "--seeds must be in [1, 1000], got 0"),
        (["--epochs=0"], "--epochs must be > 0, got 0"),
        (["--steps=5"], "--steps is of the studies arms and captions"),
        (["--pi_grid=1"], "--pi_grid is of the studies arms and captions"),
        (["--study=arms,shares"], "--study=shares stands alone"),
        (["--study=arms", "--percent=50"], "--percent is of --study=shares; leave it out"),
        (["--study=arms", "--preset=paper_cc"], "--preset is of --study=shares; leave it out"),
        (["--preset=paper"], "--preset must be of scenes, paper_coco, paper_cc, got 'paper'"),
        (["--preset=paper_coco"], "--preset=paper_coco needs --data=coco:DIR."),
        (["--preset=paper_coco", "--data=tars:x"], "needs --data=coco:DIR, got 'tars:x'"),
        ([*COCO], "--preset=paper_coco needs --root"),
        (["--preset=paper_cc", "--data=coco:d"], "needs --data=tars:GLOB or csv:FILE or parquet:FILE, got 'coco:d'"),
        (["--data=coco:d:val2017"], "--data must be coco:DIR, as ID accuracy is that on its val2017"),
        (["--root=/nowhere"], "/nowhere"),
        ([*COCO, "--root=/nowhere"], "--root=/nowhere is not there"),
        ([*COCO, "--root=ROOT/coco"], "lacks val, imagenetv2"),
        ([*COCO, "--root=ROOT"], "has 288 classes, such as n01514668, that the"),
        (
            [*COCO, "--root=ROOT", "--class_map=none"],
            "has 120 usable records; --batch_size and --held_out need 2560",
        ),
        (["--root=ROOT", "--held_out=8", "--batch_size=60"], "--percent=25 leaves 28 of the 112 records"),
        (["--root=ROOT", "--architecture=RN51"], "--architecture must be of RN50"),
        ([*FEW, "--class_map=/no.csv"], "--class_map=/no.csv cannot be read"),
        ([*FEW, "--vocabulary=/no.gz"], "/no.gz"),
        ([*FEW, "--templates=/no.txt"], "/no.txt"),
        ([*FEW, "--data=csv:ROOT/bare.csv"], "too few labelled records"),
    ],
)
def test_what_is_missing_or_bad_is_one_line_and_nothing_is_written(mmcl, root, tmp_path, arguments, said):
    (root / "bare.csv").write_text("path,caption\nx.png,a picture\n")
    study = [] if any(a.startswith(("--study", "--preset")) for a in arguments) else ["--study=shares"]
    given = [a.replace("ROOT", str(root)) for a in arguments]
    assert_refused(mmcl(compare, *study, *given, "--workers=1", f"--out={tmp_path}/out"), said)
    assert not (tmp_path / "out").exists()


def rows_of(intercepts, percent, seeds, images=10**9):
    """Rows of arms whose OOD sets are on a probit line of slope 1; the second arm is better in distribution by .3."""
    rows = []
    for k, (arm, intercept) in enumerate(intercepts.items()):
        for seed in range(seeds):
            for p in percent:
                g = -1.5 + p / 100 + 0.3 * k + 0.05 * seed
                for name in (shares.ID, *SIX):
                    right = round(images * scipy.stats.norm.cdf(g if name == shares.ID else g + intercept))
                    rows.append({"arm": arm, "percent": p, "seed": seed, "records": 10, "steps": 5, "set": name,
                                 "images": images, "correct": right, "accuracy": right / images})  # fmt: skip
    return rows


STUDY = dataclasses.replace(Shares(), seeds=3, at=(20.0,), training=TINY)


@pytest.mark.costly
def test_arms_are_read_at_matched_id():
    """On known lines; the twin compares them as they are, which has the other sign, as in the paper."""
    rows = rows_of({"clip": -0.5, "clip_no_intra": -0.7}, STUDY.percent, 3)
    result = shares.at_matched_id(rows, STUDY)
    line, _ = result.rows
    both = [scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.2) + x) for x in (-0.5, -0.7)]
    assert line["reading"] == "line"
    np.testing.assert_allclose([line["first_ood"], line["second_ood"]], 100 * np.array(both), rtol=1e-6)
    assert line["low"] == pytest.approx(line["difference"], abs=0.01) and line["difference"] > 1
    assert line["covers"] == "seeds, test items" and not line["extrapolated"]
    last = [np.mean([r["accuracy"] for r in rows if r["arm"] == a and r["percent"] == 100 and r["set"] != "id"])
            for a in STUDY.arms]  # fmt: skip
    assert last[1] > last[0]
    few = shares.at_matched_id(rows_of({"clip": -0.5, "clip_no_intra": -0.7}, STUDY.percent, 3, 200), STUDY)
    assert few.rows[0]["high"] - few.rows[0]["low"] > 1  # of so few images
    shown = shares.text(rows, result, STUDY)
    assert "CLIP - CLIP, no same-class negatives, at ID 20.0, line" in shown and shown.count("%") >= 8


def test_points_are_the_means_over_six_sets_with_their_images():
    """A set without a right answer counts as half an image; twin: the mean of five sets is another."""
    rows = rows_of({"clip": 0.0, "clip_no_intra": 0.0}, STUDY.percent, 3, 40)
    for row in rows:
        if row["set"] == "a":
            row |= {"correct": 0, "images": 10}
    first = shares.points(rows, STUDY)[0]
    share = rows[1]["accuracy"]
    assert first.acc_ood == pytest.approx((5 * share + 0.05) / 6) and first.acc_ood != pytest.approx(share, rel=0.01)
    assert first.acc_id == rows[0]["accuracy"]
    assert first.id_images == 40 and [n for _, n in first.ood_sets] == [40, 40, 40, 40, 10, 40]
    assert first.seed == "0" and shares.points(rows, dataclasses.replace(STUDY, seeds=1))[0].seed is None


@pytest.mark.slow
def test_an_arm_of_one_id_accuracy_has_no_line(tmp_path):
    rows = rows_of({"clip": -0.5, "clip_no_intra": -0.7}, STUDY.percent, 3)
    flat = [r | {"correct": r["images"] // 5} if r["arm"] == "clip" else r for r in rows]
    result = shares.at_matched_id(flat, STUDY)
    assert result.without == ("CLIP",) and result.rows == []
    assert "CLIP: no line, as all its runs have one ID accuracy." in shares.text(flat, result, STUDY)
    none = shares.at_matched_id([r | {"correct": r["images"] // 5} for r in rows], STUDY)
    shares.write(none, STUDY, tmp_path)
    assert not none.arms and not (tmp_path / "shares.png").exists() and (tmp_path / "lines.csv").exists()
    shares.write(shares.at_matched_id(rows, STUDY), STUDY, tmp_path)
    assert (tmp_path / "shares.png").stat().st_size > 10_000


def test_the_interval_of_a_mean_over_sets():
    values, images = [[0.2, 0.3, 0.4], [0.6, 0.5, 0.7]], [50, 200]
    mean, half = runs.mean_interval(values, images)
    means = np.mean(values, 0)
    of_seeds = scipy.stats.t.ppf(0.975, 2) ** 2 * np.var(means, ddof=1) / 3
    spread = [np.mean([p * (1 - p) for p in v]) / n for v, n in zip(values, images, strict=True)]
    assert mean == pytest.approx(0.45) and half == pytest.approx((of_seeds + 1.959964**2 * sum(spread) / 4) ** 0.5)
    assert runs.mean_interval([values[0]], [50]) == runs.interval(values[0], 50)
    assert half < runs.interval(means, 50)[1]


def test_a_map_of_the_datas_own_names():
    found = class_maps.of_names(("sports car", "dog", "tench"), "--data=x")
    assert found.categories == ("sports car", "dog", "tench")
    assert found.of == {"n04285008": 0, "n01440764": 2}  # no one class has the name dog
    with pytest.raises(UsageError, match=r"--data=x: 'T-shirt' and 'jersey' are both names of n03595614"):
        class_maps.of_names(("T-shirt", "jersey"), "--data=x")
    assert_refuses("0 of the 2 class names are ImageNet's", class_maps.of_names, ("dog", "sports"), "--data=x")


def coco(folder, names, count=2):
    """COCO's layout with these categories, `count` images of each in both splits."""
    pixel = Image.new("RGB", (8, 8))
    for split, start in (("train2017", 1), ("val2017", 1001)):
        (folder / split).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        images = [{"id": start + i, "file_name": f"{start + i:012d}.jpg"} for i in range(count * len(names))]
        for image in images:
            pixel.save(folder / split / image["file_name"])
        told = [{"image_id": x["id"], "caption": f"a {names[i % len(names)]}"} for i, x in enumerate(images)]
        found = [{"id": i, "image_id": x["id"], "category_id": i % len(names), "area": 9} for i, x in enumerate(images)]
        kinds = [{"id": i, "name": name} for i, name in enumerate(names)]
        files = {"captions": {"images": images, "annotations": told},
                 "instances": {"categories": kinds, "annotations": found}}  # fmt: skip
        for name, content in files.items():
            (folder / "annotations" / f"{name}_{split}.json").write_text(json.dumps(content))


def imagenet(folder):
    """The six sets of 1000 classes in their layouts, of few images; the class list is the package's."""
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "one.png")
    names = (class_maps._MAPS / "imagenet_names.txt").read_text()
    (folder / "names.txt").write_text(names)
    wnids = [line.split()[0] for line in names.splitlines()]
    places = [f"imagenetv2-matched-frequency-format-val/{i}" for i in range(1000)]
    for name in ("val", "sketch", "imagenet-r", "imagenet-a"):  # Chihuahua, kite (a bird), tench
        places += [f"{name}/{wnid}" for wnid in ("n02085620", "n01608432", "n01440764")]
    places += ["objectnet-1.0/images/car", "objectnet-1.0/images/fish"]
    for place in places:
        (folder / place).mkdir(parents=True)
        os.link(folder / "one.png", folder / place / "one.png")
    (folder / "objectnet-1.0/mappings").mkdir()
    mappings = {
        "folder_to_objectnet_label": {"car": "Car", "fish": "Fish"},
        "objectnet_to_imagenet_1k": {"Car": "minivan; sports car", "Fish": "tench"},
    }
    for name, content in mappings.items():
        (folder / f"objectnet-1.0/mappings/{name}.json").write_text(json.dumps(content))
    return wnids


def test_the_papers_sets_are_scored_by_cocos_categories(tmp_path):
    """In the true layouts, of 80 categories and 1000 classes; twins: other categories, and a set that is missing."""
    categories = class_maps.read_map("coco").categories
    coco(tmp_path / "coco", categories)
    wnids = imagenet(tmp_path / "sets")
    recipe = dataclasses.replace(PRESETS["paper_coco"].training, data=f"coco:{tmp_path}/coco")
    given = {"root": str(tmp_path / "sets"), "classes": str(tmp_path / "sets/names.txt")}
    config = dataclasses.replace(PRESETS["paper_coco"], training=recipe, **given)
    config.check()
    source = sources.open_source(config.data)
    found = shares.open_sets(config, source)
    assert list(found.ood) == list(SIX) and found.ood_classes.names == categories == found.id_classes.names
    assert found.id["id"].labels.tolist() == [*range(80)] * 2 and "val2017" in str(found.id["id"].paths[0])
    dog, bird, car = (categories.index(name) for name in ("dog", "bird", "car"))
    for name in ("val", "sketch", "r", "a"):
        assert found.ood[name].labels.tolist() == [bird, dog] and found.ood[name].dropped == 1  # a tench is none
    assert found.ood["objectnet"].labels.tolist() == [car] and len(found.ood["v2"].paths) == 291
    assert all(one.chance == 1 / 80 for one in (*found.ood.values(), found.id["id"]))
    assert len(wnids) == 1000 and found.shortfalls[0] == "val has 3 images of 3 classes, not 50000 of 1000"
    coco(tmp_path / "other", categories[:-1])
    other = dataclasses.replace(config, training=dataclasses.replace(recipe, data=f"coco:{tmp_path}/other"))
    with pytest.raises(UsageError, match=r"has no class 'toothbrush', by which --root=.* is scored \(1 such classes\)"):
        shares.open_sets(other, sources.open_source(other.data))
    (tmp_path / "sets/imagenet-a").rename(tmp_path / "sets/elsewhere")
    assert_refuses("lacks imagenet-a; OOD accuracy is the mean over all six sets", shares.open_sets, config, source)


def cc_table(root, folder):
    """The scenes' training images as a table with machine labels, as one would write of Conceptual Captions."""
    source = sources.open_source(f"coco:{root}/coco")
    with (folder / "cc.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "label"])
        for i in range(len(source)):
            label = source.classes[source.labels[i]] if i % 7 else ""
            writer.writerow([f"{root}/coco/train2017/{source.ids[i]}", source.captions(i)[0], label])
    return f"csv:{folder}/cc.csv"


def by_hand(config, out, each):
    """Right answers on the ID set, by the definition: the class whose mean unit text embedding is the nearest."""
    encoder = trained.load(out / "runs" / each.name)
    source = sources.open_source(config.data)
    if config.validation:
        which = [(source, int(i)) for i in prepare.validation(source.labels, 0.3)]
    else:
        val = sources.open_source(f"{config.data}:val2017")
        which = [(val, i) for i in range(len(val)) if val.labels[i] >= 0]
    texts = runs.TEMPLATES if config.preset == "scenes" else TEMPLATES
    rows = []
    for name in source.classes:
        each_text = np.array(encoder.encode_text([t.replace("{}", name) for t in texts]), float)
        mean = (each_text / np.linalg.norm(each_text, axis=1, keepdims=True)).mean(0)
        rows.append(mean / np.linalg.norm(mean))
    seen = encoder.encode_image(np.stack([s[i].image for s, i in which]))
    return int((np.argmax(seen @ np.array(rows).T, 1) == [s.labels[i] for s, i in which]).sum()), len(which)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["scenes", "paper_coco", "paper_cc"])
def test_the_study_from_data_to_the_figure(nano, root, tmp_path, preset, monkeypatch):
    """Every preset's whole way, at a tiny size; its counts are those by hand, and a second call trains nothing."""
    given = {"scenes": "scenes", "paper_coco": f"coco:{root}/coco", "paper_cc": cc_table(root, tmp_path)}
    training = dataclasses.replace(TINY, data=given[preset], image_size=32, vocabulary_size=400)
    config = dataclasses.replace(PRESETS[preset], training=training, root=str(root), percent=(50.0, 100.0), seeds=1)
    if preset == "paper_coco":
        table = tmp_path / "map.csv"
        listed = json.loads((root / "classes.json").read_text()).values()
        table.write_text("category,wnid\n" + "".join(f"{name.replace('_', ' ')},{wnid}\n" for wnid, name in listed))
        config = dataclasses.replace(config, class_map=str(table))
    out = tmp_path / "out"
    rows = shares.run(config, out)
    expected = 112
    if preset == "paper_cc":
        source = sources.open_source(config.data)
        labelled = int((source.labels >= 0).sum())
        expected = labelled - len(prepare.validation(source.labels, 0.3)) - 8
        assert expected < 112 - 17 - 20
    for each in config.runs():
        mine = [row for row in rows if (row["arm"], row["percent"]) == (each.arm, each.percent)]
        count = round(expected * each.percent / 100)
        assert [row["set"] for row in mine] == ["id", *SIX]
        assert {(row["records"], row["steps"]) for row in mine} == {(count, count // 16)}
        assert (mine[0]["correct"], mine[0]["images"]) == by_hand(config, out, each)
        assert all(row["accuracy"] == row["correct"] / row["images"] for row in mine)
    assert len(csv_rows(out / "measured.csv")) == 4 * 7
    shares.write(shares.at_matched_id(rows, config), config, out)
    assert (out / "lines.csv").exists()
    before = contents(out / "runs")
    monkeypatch.setattr(shares.training, "run", None)
    assert shares.run(config, out) == rows and contents(out / "runs") == before
    other = dataclasses.replace(config, percent=(25.0, 100.0))
    assert_refuses("holds a different run (differs in percent)", shares.run, other, out)
    damaged = out / "measured" / f"{config.runs()[0].name}.json"
    damaged.write_text(damaged.read_text().replace('"correct": ', '"correct": 1'))
    assert_refuses(("is damaged", "remove", ", and the same command measures that run again"), shares.run, config, out)


@pytest.mark.slow
def test_the_papers_points_lie_under_the_figure(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(lines, "draw", lambda *given: drawn.update(given=given))
    monkeypatch.setattr("sims.engine.runs.save_figure", lambda *_: None)
    config = dataclasses.replace(STUDY, preset="paper_coco")
    rows = rows_of({"clip": -0.5, "clip_no_intra": -0.7}, STUDY.percent, 3)
    shares.write(shares.at_matched_id(rows, config), config, tmp_path)
    arms, at, _, unit, overlay = drawn["given"]
    assert list(arms) == ["coco"] and list(arms["coco"]) == [ARMS[a].label for a in STUDY.arms]
    assert (at, unit) == ([0.2], 100) and sum(p.panel == "coco" for p in overlay) == 8


def test_the_names_of_runs_are_their_own():
    assert Share("clip", 25.0, 1).name == "clip_25_1" != Share("clip", 2.5, 1).name

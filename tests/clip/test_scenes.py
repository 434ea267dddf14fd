"""The generated scenes: their law, their captions, their pictures, and the folder that holds them."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from sims.clip import make_scenes
from sims.clip.records import classes
from sims.clip.scenes import generation, layouts, shapes, sheet
from sims.clip.scenes import law as scenes
from sims.clip.scenes.law import CLASSES, CONTEXTS, Law
from sims.clip.scenes.layouts import Config, splits
from sims.clip.zero_shot import sets
from sims.engine.flags import UsageError, WorkFailed
from tests.helpers import ROOT, assert_refused, assert_refuses, csv_rows

ALPHA = 1e-6
N = 8000
TINY = Config(train=40, test=2, side=32, captions=3)
LEAST = Config(train=3, test=1, side=24, captions=1)


@pytest.fixture(scope="module")
def seen():
    return scenes.sample(np.random.default_rng(0), N, Law(0.95, 0.25))


def assert_share(hits, expected):
    """An exact binomial test; a true claim fails w.p. 1e-6."""
    hits = np.asarray(hits, bool)
    p = scipy.stats.binomtest(int(hits.sum()), hits.size, expected).pvalue
    assert p > ALPHA, f"share {hits.mean():.4f} is not {expected}"


def assert_uniform(values, options):
    counts = np.array([sum(v == o for v in values) for o in options])
    assert counts.sum() == len(values), "a value is of no option"
    assert scipy.stats.chisquare(counts).pvalue > ALPHA, f"counts {counts} are not even"


def refuses(check, *args):
    with pytest.raises(AssertionError, match=r"is not|are not|is of no"):
        check(*args)


def test_classes_are_five_pairs_in_the_order_of_wnids():
    assert [k.wnid for k in CLASSES] == sorted({k.wnid for k in CLASSES}) and len(CLASSES) == len(CONTEXTS) == 10
    for k, kind in enumerate(CLASSES):
        assert kind.partner != k and CLASSES[kind.partner].partner == k


def test_contexts_are_homes_with_p_spu(seen):
    aligned = [s.group == "aligned" for s in seen]
    assert_share(aligned, 0.95)
    refuses(assert_share, aligned, 0.92)
    refuses(assert_share, aligned, 0.98)
    assert all(s.context == (s.label if s.group == "aligned" else CLASSES[s.label].partner) for s in seen)
    for p_spu, group in ((1.0, "aligned"), (0.0, "conflicting"), (None, "")):
        assert {s.group for s in scenes.sample(np.random.default_rng(1), 200, Law(p_spu))} == {group}


def test_details_are_even_and_independent_of_class_and_group(seen):
    details = {"label": range(10), "colour": scenes.COLOURS, "fill": scenes.FILLS, "size": scenes.SIZES}
    details |= {"pose": scenes.POSES, "shade": scenes.SHADES}
    for name, options in details.items():
        assert_uniform([getattr(s, name) for s in seen], list(options))
    refuses(assert_uniform, [s.colour for s in seen], list(scenes.COLOURS)[1:])
    refuses(assert_uniform, ["red" if s.fill == "plain" and s.size == "small" else s.colour for s in seen],
            list(scenes.COLOURS))  # fmt: skip

    def dependence(a, b):
        table = scipy.stats.contingency.crosstab([getattr(s, a) for s in seen], [getattr(s, b) for s in seen]).count
        return scipy.stats.chi2_contingency(table).pvalue

    for name in ("colour", "fill", "size", "pose", "shade"):
        assert dependence(name, "label") > ALPHA and dependence(name, "group") > ALPHA
    assert dependence("context", "label") < ALPHA


def test_companions_are_of_other_pairs_and_there_with_p_companion(seen):
    there = [s.companion >= 0 for s in seen]
    assert_share(there, 0.25)
    refuses(assert_share, there, 0.22)
    assert all(s.companion not in (s.label, CLASSES[s.label].partner) for s in seen)
    balloons = [s.companion for s in scenes.sample(np.random.default_rng(2), 2000, Law(0.5, 1.0), label=1)]
    assert_uniform(balloons, [k for k in range(10) if k not in (1, CLASSES[1].partner)])
    refuses(assert_uniform, balloons, range(10))


def test_laws_at_one_seed_differ_only_where_they_must():
    a, b = (scenes.sample(np.random.default_rng(3), 300, law) for law in (Law(0.9, 0.2), Law(0.6, 0.2)))
    moved = [x != y for x, y in zip(a, b, strict=True)]
    assert_share(moved, 0.3)
    assert all(dataclasses.replace(y, context=x.context) == x for x, y in zip(a, b, strict=True))
    (first,) = scenes.sample(np.random.default_rng(3), 1, Law(0.9, 0.2))
    assert first == a[0]


def test_sets_have_their_laws():
    config = Config(train=2000, test=150, p_spu=0.95)
    found = {name: [s.scene(i) for i in range(s.count)] for name, s in splits(config).items()}
    groups = {name: [s.group == "aligned" for s in some] for name, some in found.items()}
    for name, share in {"train2017": 0.95, "val2017": 0.95, "val": 0.95, "balanced": 0.5, "objectnet": 0.5}.items():
        assert_share(groups[name], share)
    assert_share(groups["v2"], 0.86)
    refuses(assert_share, groups["v2"], 0.95)
    refuses(assert_share, groups["balanced"], 0.6)
    assert {s.group for s in found["a"]} == {"conflicting"} and {s.size for s in found["a"]} == {"small"}
    assert {s.group for name in ("sketch", "r") for s in found[name]} == {""}
    assert {s.style for s in found["r"]} == {"cartoon", "poster", "painting"}
    for name, count in {"val": 10, "v2": 10, "sketch": 10, "r": 6, "a": 6, "objectnet": 9}.items():
        labels = [s.label for s in found[name]]
        assert np.bincount(labels)[sorted(set(labels))].tolist() == [150] * count, name
    assert_uniform([int(s.angle // 60) for s in found["objectnet"]], range(6))
    refuses(assert_uniform, [int(s.angle % 360 // 60) for s in found["val"]], range(6))
    assert not {s.seed for s in found["val"]} & {s.seed for s in found["balanced"]}


ARTICLES = re.compile(r"\b(an?)\b")


def told(text, scene):
    """What a caption names, read from its words alone."""
    words = set(re.findall(r"[a-z]+", text))
    size = {"small": "small", "little": "small", "large": "large", "big": "large"}
    names = {
        "colour": words & set(scenes.COLOURS),
        "fill": words & set(scenes.FILLS),
        "size": {size[w] for w in words & set(size)},
        "pose": words & set(scenes.POSES),
        "shade": words & set(scenes.SHADES),
        "context": words & {c.split()[0] for c in CONTEXTS},
    }
    named = {k for k, kind in enumerate(CLASSES) if re.search(rf"\b{kind.name}\b", text)}
    names["companion"] = named - {scene.label}
    assert scene.label in named
    return names


def mentions(some, *chances, key=4):
    """(n, 6) of colour, fill, size, pose, context, companion named; what is named must be true, the shade with it."""
    rng, rows = np.random.default_rng(key), []
    for scene in some:
        found = told(scenes.caption(scene, rng, *chances), scene)
        true = dict(context=CONTEXTS[scene.context].split()[0], companion=scene.companion)
        for name, values in found.items():
            assert values <= {true.get(name, getattr(scene, name))}, (name, values)
        assert bool(found["shade"]) == bool(found["context"])
        rows.append([bool(found[k]) for k in ("colour", "fill", "size", "pose", "context", "companion")])
    return np.array(rows)


def test_captions_name_each_detail_with_its_chance(seen):
    some = [s for s in seen if s.companion >= 0] + seen[:2000]
    found = mentions(some, 0.7, 0.4, 0.6)
    for k in range(4):
        assert_share(found[:, k], 0.7)
        refuses(assert_share, found[:, k], 0.62)
    assert_share(found[:, 4], 0.4)
    there = np.array([s.companion >= 0 for s in some])
    assert_share(found[there, 5], 0.6)
    assert not found[~there, 5].any()
    both = found[:, :5].astype(float)
    limit = scipy.stats.norm.isf(ALPHA / 20) / len(some) ** 0.5
    assert np.abs(np.corrcoef(both.T)[np.triu_indices(5, 1)]).max() < limit  # mentions are independent
    both[:, 4] = np.where(found[:, 3], 1.0, both[:, 4])
    assert np.abs(np.corrcoef(both.T)[3, 4]) > limit


def test_captions_name_nothing_that_is_forbidden_and_all_that_is_due(seen):
    some = [s for s in seen[:1500] if s.companion >= 0]
    for chances in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        found = mentions(some, *chances)
        assert (found == np.repeat(chances, (4, 1, 1)).astype(bool)).all(), chances


def test_phrasings_tell_nothing_of_the_scene(seen):
    """At the same random numbers a caption that names the class alone is the same for any scene, but for the class."""

    def bare(scene, k, *chances):
        text = scenes.caption(scene, np.random.default_rng(k), *chances)
        return ARTICLES.sub("a", text.replace(CLASSES[scene.label].name, "X"))

    some = seen[:400]
    assert all(bare(s, k, 0, 0, 0) == bare(some[0], k, 0, 0, 0) for k, s in enumerate(some))
    assert len({bare(s, k, 0, 0, 0) for k, s in enumerate(some)}) >= 5
    assert any(bare(s, k, 0, 0.5, 0) != bare(some[0], k, 0, 0.5, 0) for k, s in enumerate(some))


def test_captions_are_good_english(seen):
    rng = np.random.default_rng(6)
    for scene in seen[:500]:
        text = scenes.caption(scene, rng, 0.5, 0.5, 0.5)
        assert text == " ".join(text.split()) and text == text.lower() and ", ," not in text
        for article, letter in re.findall(r"\b(an?) (\w)", text):
            assert (article == "an") == (letter in "aeiou"), text


def test_pictures_are_a_pure_function_of_the_scene(seen):
    a, b = (scenes.draw(seen[0], side) for side in (64, 64))
    assert a.dtype == np.uint8 and a.shape == (64, 64, 3) and scenes.draw(seen[0], 48).shape == (48, 48, 3)
    np.testing.assert_array_equal(a, b)
    other = scenes.draw(dataclasses.replace(seen[0], seed=seen[0].seed + 1), 64)
    assert (a != other).any()


@pytest.mark.parametrize("field, values", [
    ("colour", list(scenes.COLOURS)), ("fill", scenes.FILLS), ("size", scenes.SIZES), ("pose", scenes.POSES),
    ("shade", scenes.SHADES), ("context", (0, 2)), ("companion", (-1, 4)), ("cover", (0.0, 0.2)),
    ("style", scenes.STYLES),
])  # fmt: skip
def test_every_detail_is_seen(field, values):
    """Each value of a detail makes another picture where the noise is the same, and by more than the noise."""
    (scene,) = scenes.sample(np.random.default_rng(7), 1, Law(1.0), label=0)
    geometry = {"size": ("scale", (0.23, 0.4)), "pose": ("angle", (0.0, 30.0))}.get(field)

    def drawn(k, noise=0.0):
        more = {geometry[0]: geometry[1][k]} if geometry else {}
        return scenes.draw(dataclasses.replace(scene, noise=noise, **{field: values[k]}, **more), 32).astype(float)

    def differ(one, two):
        return (np.abs(one - two).max(-1) > 40).sum() >= 10

    pictures = [drawn(k) for k in range(len(values))]
    for i, one in enumerate(pictures):
        assert all(differ(one, two) for two in pictures[:i])
    noisy = drawn(0, Law(1.0).noise)
    assert (noisy != pictures[0]).any() and not differ(noisy, pictures[0])


def test_outlines_are_the_objects_and_the_largest_is_the_labels():
    for scene in scenes.sample(np.random.default_rng(8), 150, Law(0.9, 1.0)):
        found = layouts.outlines(scenes.masks(scene, 32))
        assert found[0]["label"] == scene.label and found[1]["label"] == scene.companion
        assert found[0]["area"] > found[1]["area"] > 0
        for (_, mask), outline in zip(scenes.masks(scene, 32), found, strict=True):
            left, top, wide, high = outline["bbox"]
            box = np.zeros_like(mask)
            box[top : top + high, left : left + wide] = True
            assert not (mask & ~box).any() and outline["area"] == mask.sum() <= wide * high
            runs = outline["segmentation"]["counts"]
            flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
            np.testing.assert_array_equal(flat.reshape(32, 32, order="F"), mask)


def test_a_mask_is_where_the_object_is_painted():
    scene = dataclasses.replace(scenes.sample(np.random.default_rng(9), 1, Law(1.0), label=5)[0], noise=0.0)
    mask = scenes.masks(scene, 64)[0][1]
    changed = np.zeros((64, 64), bool)
    for colour in ("red", "blue"):
        for other in ("white", "green"):
            a, b = (scenes.draw(dataclasses.replace(scene, colour=c, fill="plain"), 64) for c in (colour, other))
            changed |= (np.abs(a.astype(int) - b).max(-1) > 30)  # fmt: skip
    body = changed & mask
    assert body.sum() > 0.5 * mask.sum() and (changed & ~mask).sum() < 0.15 * mask.sum()
    assert (changed & ~np.roll(mask, 20, 1)).sum() > 0.15 * mask.sum()


def digest(root, kinds=(".jpg", ".jpeg", ".png", ".csv", ".json", "_v2")):
    """Contents by name, but for the sheet, whose bytes hold matplotlib's version."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and p.name != "scenes.png")
    paths = (p for p in files if p.name.lower().endswith(kinds))
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


IMAGES = (".jpg", ".jpeg", ".png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("clip") / "scenes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "sheet", functools.partial(sheet.sheet, columns=1))
        assert generation.make(root, TINY)
    return root


@pytest.fixture
def no_sheet(monkeypatch):
    """The sheet takes most of a small folder's time."""

    class Blank:
        def savefig(self, file, **_):
            Image.new("RGB", (1, 1)).save(file, "png")

    monkeypatch.setattr(generation, "sheet", lambda _: Blank())


@pytest.mark.costly
def test_layout_and_counts(made):
    wnids = [k.wnid for k in CLASSES]
    per = TINY.test
    done = json.loads((made / "scenes.json").read_text())
    assert Config(**done["config"]) == TINY == generation.read_config(made)
    listed = {str(k): [kind.wnid, kind.name.replace(" ", "_")] for k, kind in enumerate(CLASSES)}
    assert json.loads((made / "classes.json").read_text()) == listed
    for name, suffix, folders in (
        ("val", ".JPEG", wnids), ("balanced", ".JPEG", wnids), ("sketch", ".JPEG", wnids),
        ("imagenetv2-matched-frequency", ".jpeg", [str(k) for k in range(10)]),
        ("imagenet-r", ".jpg", None), ("imagenet-a", ".jpg", None),
    ):  # fmt: skip
        inside = {p.name: list(p.iterdir()) for p in (made / name).iterdir() if p.is_dir()}
        if folders is None:
            assert len(inside) == 6 and set(inside) < set(wnids)
        else:
            assert set(inside) == set(folders)
        assert all(len(files) == per and {p.suffix for p in files} == {suffix} for files in inside.values()), name
        assert done["sets"][name]["images"] == per * len(inside) and done["sets"][name]["classes"] == len(inside)
        if "v2" not in name:
            assert done["sets"][name]["counts"] == {k: per for k in sorted(inside)}
    assert (made / "scenes.png").stat().st_size > 10_000
    assert not list(made.rglob("*.new")) and not (made / ".scenes.begun.json").exists()


def test_the_evaluation_reads_all_sets_and_finds_what_was_made(made, tmp_path):
    listed = classes.read_classes(made)
    found = sets.open_sets(made, None, listed)
    assert tuple(found) == sets.SETS
    for name, one in found.items():
        assert one.expected == one.counts and one.shortfall() is None and one.counts[0] > 0, name
        assert (one.groups is None) == (name in ("sketch", "r"))
        rows = table(made, sets.FOLDERS[name])
        assert len(rows) == one.counts[0] + one.dropped
        for path, label in zip(one.paths, one.labels, strict=True):
            assert rows[path]["wnid"] in [listed.wnids[c] for c in one.scored[label]]
    assert set(found["balanced"].groups) <= {"aligned", "conflicting"}
    assert len(found["objectnet"].scored) == 6 and found["objectnet"].dropped == 2 * TINY.test
    less = shutil.copytree(made, tmp_path / "scenes")
    next((less / "val").rglob("*.JPEG")).unlink()
    lacking = sets.open_sets(less, ["val"], listed)["val"].shortfall()
    assert f"val has {10 * TINY.test - 1} images" in lacking


def table(made, folder):
    return {made / folder / row["path"]: row for row in csv_rows(made / folder / "scenes.csv")}


def test_every_image_has_its_line_and_is_the_scene_it_tells(made):
    for split in splits(TINY).values():
        lines = table(made, split.folder)
        if split.folder != "coco":
            assert set(lines) == {p for p in (made / split.folder).rglob("*") if p.suffix.lower() in IMAGES}
            turned = split.name == "objectnet"
            assert all((row["pose"] == "") == turned for row in lines.values())
        for i in (0, split.count - 1):
            scene = split.scene(i)
            path = made / split.folder / split.path(i, scene)
            assert lines[path]["wnid"] == CLASSES[scene.label].wnid and lines[path]["group"] == scene.group
            stored, drawn = np.asarray(Image.open(path).convert("RGB")).astype(int), scenes.draw(scene, TINY.side)
            if split.name == "objectnet":
                assert (stored[:2] == (255, 0, 0)).all() and (stored[:, -2:] == (255, 0, 0)).all()
                np.testing.assert_array_equal(stored[2:-2, 2:-2], drawn)
            else:
                near, far = (np.abs(stored - x).mean() for x in (drawn, drawn[:, ::-1]))
                assert near < 12 and (near < far or far < 12)


def annotations(made, name):
    return json.loads((made / f"coco/annotations/{name}.json").read_text())


def test_coco_is_complete(made):
    for name, count in (("train2017", TINY.train), ("val2017", 10 * TINY.test)):
        captions, instances = (annotations(made, f"{kind}_{name}") for kind in ("captions", "instances"))
        assert set(captions) == {"info", "images", "licenses", "annotations"}
        assert set(instances) == {*captions, "categories"}
        files = {p.name for p in (made / "coco" / name).iterdir()}
        assert {im["file_name"] for im in captions["images"]} == files and len(files) == count
        assert all(im["file_name"] == f"{im['id']:012d}.jpg" for im in captions["images"])
        for key in (captions, instances):
            assert len({a["id"] for a in key["annotations"]}) == len(key["annotations"])
        by_image = {im["id"]: [] for im in captions["images"]}
        for a in captions["annotations"]:
            by_image[a["image_id"]].append(a["caption"])
        assert {len(texts) for texts in by_image.values()} == {TINY.captions}
        largest = {}
        for a in instances["annotations"]:
            assert set(a) == {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}
            largest[a["image_id"]] = max(largest.get(a["image_id"], (0, 0)), (a["area"], a["category_id"]))
        names = {c["id"]: c["name"] for c in instances["categories"]}
        wnids = {path.name: row["wnid"] for path, row in table(made, "coco").items()}
        of = {kind.name: kind.wnid for kind in CLASSES}
        for im in captions["images"]:
            name_of = names[largest[im["id"]][1]]
            assert wnids[im["file_name"]] == of[name_of] and all(name_of in text for text in by_image[im["id"]])
    train, val = ({im["id"] for im in annotations(made, f"captions_{k}")["images"]} for k in ("train2017", "val2017"))
    assert not train & val


def test_objectnets_mappings_are_in_its_format(made):
    folder = made / "objectnet-1.0/mappings"
    names = ("folder_to_objectnet_label", "objectnet_to_imagenet_1k", "pytorch_to_imagenet_2012_id")
    label, to, number = (json.loads((folder / f"{name}.json").read_text()) for name in names)
    lines = (folder / "imagenet_to_label_2012_v2").read_text().splitlines()
    shot = {p.name for p in (made / "objectnet-1.0/images").iterdir()}
    assert shot == set(label) and len(set(label.values()) - set(to)) == 2
    index = {v: int(k) for k, v in number.items()}
    assert sorted(number.values()) == list(range(10)) != list(number.values())
    synonyms = {kind.synonyms: k for k, kind in enumerate(CLASSES)}
    assert [synonyms[line] for line in lines] == [index[n] for n in range(10)]
    named = [name for text in to.values() for name in text.split("; ")]
    assert len(named) == len(set(named)) == 7 and set(named) < set(synonyms)


def test_captions_change_with_the_policy_and_images_do_not(tmp_path, no_sheet):
    one, two, three = (tmp_path / name for name in "abc")
    generation.make(one, LEAST)
    generation.make(two, dataclasses.replace(LEAST, pi_core=1.0, pi_spu=0.0))
    generation.make(three, dataclasses.replace(LEAST, seed=1))
    assert len(digest(one, IMAGES)) == 3 + 10 + 4 * 10 + 6 + 6 + 9
    assert digest(two, IMAGES) == digest(one, IMAGES) and digest(two, (".csv",)) == digest(one, (".csv",))
    assert not set(digest(three, IMAGES).values()) & set(digest(one, IMAGES).values())
    names = [f"coco/annotations/{k}_val2017.json" for k in ("instances", "captions")]
    assert [(two / n).read_bytes() == (one / n).read_bytes() for n in names] == [True, False]


def test_write_captions_names_what_the_policy_says(made, tmp_path):
    own, silent, rich, again = (tmp_path / f"{k}/c.json" for k in "abcd")
    generation.write_captions(made, 0.5, 0.5, 0.5, own)
    assert own.read_bytes() == (made / "coco/annotations/captions_train2017.json").read_bytes()
    generation.write_captions(made, 0, 0, 0, silent)
    generation.write_captions(made, 1, 1, 1, rich)
    generation.write_captions(made, 1, 1, 1, again, seed=5)
    texts = [[a["caption"] for a in json.loads(p.read_text())["annotations"]] for p in (own, silent, rich, again)]
    assert len({len(t) for t in texts}) == 1 and texts[2] != texts[3]
    split = splits(TINY)["train2017"]
    for found, there in ((texts[1], False), (texts[2], True), (texts[3], True)):
        for k, text in enumerate(found):
            scene = split.scene(k // TINY.captions)
            named = told(text, scene)
            assert all(bool(named[d]) == there for d in ("colour", "fill", "size", "pose", "context", "shade"))
            assert bool(named["companion"]) == (there and scene.companion >= 0)
    assert_refuses("--pi_spu must be in [0, 1], got 2", generation.write_captions, made, 0, 2, 0, tmp_path / "no.json")
    assert not (tmp_path / "no.json").exists()


@pytest.mark.costly
def test_what_was_stopped_is_finished_and_what_is_done_is_left(made, tmp_path, no_sheet, monkeypatch):
    root, draw, drawn = tmp_path / "s", scenes.draw, []

    def interrupted(scene, side):
        if len(drawn) == 70:
            raise KeyboardInterrupt
        drawn.append(scene)
        return draw(scene, side)

    monkeypatch.setattr(scenes, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generation.make(root, TINY)
    assert not (root / "scenes.json").exists() and len(digest(root, IMAGES)) == 70
    assert_refuses("no scenes.json: no scenes, or unfinished ones", generation.read_config, root)
    with pytest.raises(UsageError, match="holds scenes with --seed=0; name another folder, or --overwrite"):
        generation.make(root, dataclasses.replace(TINY, seed=2))
    monkeypatch.setattr(scenes, "draw", lambda scene, side: drawn.append(scene) or draw(scene, side))
    assert generation.make(root, TINY)
    assert len(drawn) == len(digest(root, IMAGES)) and digest(root) == digest(made)
    assert not generation.make(root, TINY) and len(drawn) == len(digest(root, IMAGES))
    generation.default(root)
    assert generation.read_config(root) == TINY


@pytest.mark.costly
def test_overwrite_removes_its_own_files_only(tmp_path, no_sheet, monkeypatch):
    root, few = tmp_path / "s", dataclasses.replace(LEAST, train=20)
    generation.make(root, few)
    (root / "notes.txt").write_text("mine")
    other = dataclasses.replace(LEAST, seed=4)
    with monkeypatch.context() as patch:
        patch.setattr(generation, "_remove", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generation.make(root, other, overwrite=True)
    (root / "scenes.json").unlink()  # the first that is removed
    for config in (few, other):  # half removed, it is of no settings
        assert_refuses("is damaged; make the scenes again, with --overwrite", generation.make, root, config)
    assert generation.make(root, other, overwrite=True)
    fresh = tmp_path / "fresh"
    generation.make(fresh, other)
    assert digest(root) == digest(fresh) and (root / "notes.txt").read_text() == "mine"


def test_a_second_command_waits_for_the_first_and_finds_it_done(tmp_path, no_sheet, monkeypatch, capsys):
    root, draw, count = tmp_path / "s", scenes.draw, 3 + 10 + 4 * 10 + 6 + 6 + 9
    at_it, go_on, drawn, found = threading.Event(), threading.Event(), [], {}

    def slow(scene, side):
        drawn.append(scene)
        at_it.set()
        go_on.wait(60)
        return draw(scene, side)

    monkeypatch.setattr(scenes, "draw", slow)
    calls = dict.fromkeys(("first", "second"), lambda: generation.make(root, LEAST))
    calls["default"] = lambda: generation.default(root)
    threads = {name: threading.Thread(target=lambda n=name, c=c: found.update({n: c()})) for name, c in calls.items()}
    threads["first"].start()
    assert at_it.wait(60)
    for name in ("second", "default"):
        threads[name].start()
        threads[name].join(0.1)
        assert threads[name].is_alive()
    assert len(drawn) == 1
    go_on.set()
    for thread in threads.values():
        thread.join()
    assert found == {"first": True, "second": False, "default": None}
    assert len(drawn) == len(digest(root, IMAGES)) == count
    assert capsys.readouterr().err.count("waiting for another process, which makes scenes in") == 2


def test_foreign_folders_are_refused_whatever_the_flags(tmp_path):
    (tmp_path / "val").mkdir()
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds other files; name an empty or a new folder"):
            generation.make(tmp_path, TINY, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["val"]
    (tmp_path / "file").write_text("")
    assert_refuses("is a file; name a folder", generation.make, tmp_path / "file", TINY)


def test_a_full_disk_is_one_line_and_what_is_there_stays(tmp_path, monkeypatch, no_sheet):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(generation, "_write_csv", full)
        with pytest.raises(WorkFailed, match=r"No space left on device.*; the same command goes on"):
            generation.make(tmp_path / "s", LEAST)
    assert len(digest(tmp_path / "s", IMAGES)) == 13 and generation.make(tmp_path / "s", LEAST)


@pytest.mark.parametrize(
    "argument, told",
    [
        ("--p_spu=1.2", "--p_spu must be in [0, 1], got 1.2"),
        ("--pi_core=-0.5", "--pi_core must be in [0, 1], got -0.5"),
        ("--p_companion=nan", "p_companion"),
        ("--train=0", "--train must be in [1, 1000000], got 0"),
        ("--test=0", "--test must be in [1, 10000], got 0"),
        ("--side=8", "--side must be in [24, 512], got 8"),
        ("--captions=0", "--captions must be in [1, 100], got 0"),
        ("--seed=-1", "--seed must be in [0, 4294967295], got -1"),
        ("--workers=0", "--workers must be >= 1, got 0"),
        ("--out=", "out"),
        ("--captions_to=x.json", "has no scenes.json: no scenes, or unfinished ones"),
        ("extra", "unexpected argument"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(mmcl, tmp_path, argument, told):
    out = tmp_path / "out"
    assert_refused(mmcl(make_scenes, f"--out={out}", argument), told)
    assert not out.exists()


def test_out_is_needed_and_captions_keep_the_images(mmcl, made, tmp_path):
    assert_refused(mmcl(make_scenes), "--out is needed")
    to = tmp_path / "c.json"
    assert_refused(mmcl(make_scenes, f"--out={made}", f"--captions_to={to}", "--p_spu=0.7"), "leave out --p_spu")
    assert not to.exists()


def run_command(*args, **options):
    call = [sys.executable, "-m", "sims.clip.make_scenes", *args]
    return subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
def test_killed_at_once_and_by_processes_it_comes_to_the_same(made, tmp_path):
    out = tmp_path / "s"
    args = [f"--out={out}", "--train=40", "--test=2", "--side=32", "--captions=3"]
    big = [*args, "--workers=2"]
    for kill, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
        before, running = len(digest(out, IMAGES)), run_command(*big)
        while running.poll() is None and len(list(out.rglob("*.[jJp]*"))) <= before + 5:
            time.sleep(0.005)
        os.kill(running.pid, kill)
        _, error = running.communicate(timeout=60)  # its processes hold the pipe, and have ended too
        assert running.returncode == code and "Traceback" not in error and not (out / "scenes.json").exists()
    running = run_command(*big)
    printed, error = running.communicate(timeout=120)
    assert running.returncode == 0 and not error, error
    assert digest(out) == digest(made) and str(out) in printed
    again, _ = run_command(*args).communicate(timeout=60)
    assert "Nothing to do" in again


def features(some):
    images = np.stack([scenes.draw(s, 32) for s in some]).astype(float) / 255
    pooled = images.reshape(len(some), 8, 4, 8, 4, 3).mean((2, 4)).reshape(len(some), -1)
    return np.column_stack([pooled, np.ones(len(some))])


@pytest.mark.slow
def test_the_context_is_easier_to_see_than_the_class():
    """Ridge regression on 8 x 8 pixels reads contexts, and under P* takes the class from them."""
    train = scenes.sample(np.random.default_rng(10), 700, Law(0.95))
    test = scenes.sample(np.random.default_rng(11), 400, Law(0.5))
    x, seen = features(train), features(test)

    def predicted(targets):
        gram = x.T @ x + 1.0 * np.eye(x.shape[1])
        return (seen @ np.linalg.solve(gram, x.T @ np.eye(10)[targets])).argmax(1)

    context, label = ([s.context for s in some] for some in (train, test)), [s.label for s in train]
    of_train, of_test = context
    right = predicted(of_train) == of_test
    assert right.mean() > 0.9
    shuffled = np.random.default_rng(12).permutation(of_train)
    assert (predicted(shuffled) == of_test).mean() < 0.3
    hit = predicted(label) == [s.label for s in test]
    aligned = np.array([s.group == "aligned" for s in test])
    gap = hit[aligned].mean() - hit[~aligned].mean()
    assert gap > 0.4, gap


def test_shapes_have_all_classes_and_stay_in_their_square():
    assert set(shapes.SHAPES) == {kind.name for kind in CLASSES}
    for make in shapes.SHAPES.values():
        for u in (np.zeros(3), np.ones(3), -np.ones(3)):
            points = np.concatenate([p for _, p in make(u)])
            assert np.abs(points).max() < 1.2 and np.ptp(points, axis=0).max() > 1.5
            assert any(colour is shapes.BODY for colour, _ in make(u))


@pytest.mark.slow
def test_the_sheet_shows_each_set_and_tells_conflicting_training_images(made):
    figure = sheet.sheet(made)
    assert len(figure.axes) == 64 and sum(len(ax.images) for ax in figure.axes) >= 60
    captions = annotations(made, "captions_train2017")["annotations"]
    groups = [row["group"] for path, row in table(made, "coco").items() if path.parent.name == "train2017"]
    wanted = min(groups.count("conflicting"), 2)  # a third of eight
    shown = [ax.get_title().replace("\n", " ").rstrip("]").split(" [") for ax in figure.axes[:8]]
    assert [group for _, group in shown] == ["aligned"] * (8 - wanted) + ["conflicting"] * wanted and wanted > 0
    assert {text for text, _ in shown} <= {a["caption"] for a in captions}

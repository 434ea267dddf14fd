"""The evaluation sets on disk: labels, scored classes, counts, and what is refused."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sims.clip.records.classes import Classes, read_classes
from sims.clip.zero_shot import sets
from sims.clip.zero_shot.prompts import TEMPLATES, prompts, read_templates
from tests.helpers import assert_refuses

NAMES = ("tench", "bow tie", "crane", "broom", "analog clock", "digital clock", "teapot", "umbrella", "daisy", "yawl",
         "crane", "candle")  # fmt: skip
WNIDS = tuple(f"n{2 * i + 1440764:08d}" for i in range(len(NAMES)))
CLASSES = Classes(WNIDS, NAMES, NAMES)
RENDERED = (1, 3, 10)
# folder, ObjectNet's label, its classes; None: not in ImageNet
OBJECTS = (
    ("clock", "Clock", "digital clock, with a display; analog clock"),
    ("tie", "Bow tie (worn)", "bow tie, bow-tie, bowtie"),
    ("spoon", "Spoon", None),
    ("broom", "Broom", "broom"),
)
OBJECT_CLASSES = ((5, 4), (1,), (3,))
BORDER = sets.OBJECTNET_BORDER


def picture(path, c, border=0):
    """A file of one colour, the class's; the border is another's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8 + 2 * border, 8 + 2 * border, 3), 255, np.uint8)
    pixels[border : border + 8, border : border + 8] = 20 * c
    with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


def class_of(image):
    """Of pixels (..., h, w, 3) read from such a file."""
    return np.asarray(image)[..., 0, 0, 0].astype(int) // 20


def make_root(root, images=2):
    """Every set in its layout, `images` a class; the balanced one tells groups."""
    for c, wnid in enumerate(WNIDS):
        for i in range(images):
            picture(root / f"val/{wnid}/ILSVRC2012_val_{c:04d}{i:04d}.JPEG", c)
            picture(root / f"balanced/{wnid}/{i}.jpg", c)
            picture(root / f"imagenetv2-matched-frequency/{c}/{i}.jpeg", c)
            picture(root / f"sketch/{wnid}/sketch_{i}.JPEG", c)
            for folder in ("imagenet-r", "imagenet-a") if c in RENDERED else ():
                picture(root / f"{folder}/{wnid}/{i}.jpg", c)
    for folder, _, synonyms in OBJECTS:
        members = OBJECT_CLASSES[["clock", "tie", "broom"].index(folder)] if synonyms else (0,)
        for i in range(images):
            picture(root / f"objectnet-1.0/images/{folder}/{i}.png", members[i % len(members)], BORDER)
    mappings = root / "objectnet-1.0/mappings"
    mappings.mkdir()
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps({f: label for f, label, _ in OBJECTS}))
    known = {label: synonyms for _, label, synonyms in OBJECTS if synonyms}
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(known))
    (root / "imagenet-r/README.txt").write_text("not an image")
    with open(root / "balanced/scenes.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "wnid", "group"])
        for wnid in WNIDS:
            writer.writerows([f"{wnid}/{i}.jpg", wnid, ("aligned", "conflicting")[i % 2]] for i in range(images))
    index = {str(i): [wnid, name.replace(" ", "_")] for i, (wnid, name) in enumerate(zip(WNIDS, NAMES, strict=True))}
    (root / "classes.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root", images=1)


def wrong_labels(found, labels=None):
    """Share of images whose colour is of no class that the label scores."""
    labels = found.labels if labels is None else labels
    wrong = []
    for path, label in zip(found.paths, labels, strict=True):
        with Image.open(path) as image:
            pixels = np.asarray(image)[found.crop :, found.crop :]
        wrong.append(class_of(pixels) not in found.scored[label])
    return np.mean(wrong)


def test_labels_are_the_images_classes(shared):
    found = sets.open_sets(shared, None, read_classes(shared))
    assert tuple(found) == sets.SETS
    for name, one in found.items():
        assert wrong_labels(one) == 0, name
    everything = tuple((c,) for c in range(12))
    assert {name: one.scored for name, one in found.items()} == {
        **dict.fromkeys(("val", "balanced", "v2", "sketch"), everything),
        **dict.fromkeys(("r", "a"), tuple((c,) for c in RENDERED)),
        "objectnet": (OBJECT_CLASSES[2], OBJECT_CLASSES[0], OBJECT_CLASSES[1]),
    }
    assert {one.crop for name, one in found.items() if name != "objectnet"} == {0}
    assert found["objectnet"].crop == 2 and found["objectnet"].dropped == 2 and found["objectnet"].counts == (6, 3)
    assert found["v2"].chance == 1 / 12 and found["r"].chance == 1 / 3


def test_v2_folders_in_the_order_of_strings_are_other_labels(shared):
    found = sets.open_sets(shared, ["v2"], CLASSES)["v2"]
    folders = sorted({path.parent.name for path in found.paths})
    assert wrong_labels(found, np.array([folders.index(path.parent.name) for path in found.paths])) > 0.5


def test_without_the_crop_objectnets_border_is_seen(shared):
    found = sets.open_sets(shared, ["objectnet"], CLASSES)["objectnet"]
    with Image.open(found.paths[0]) as image:
        assert class_of(image) not in found.scored[found.labels[0]]


def test_groups_are_those_of_the_scenes(shared):
    found = sets.open_sets(shared, ["balanced", "val"], CLASSES)
    assert found["val"].groups is None
    expected = ["aligned" if path.stem == "0" else "conflicting" for path in found["balanced"].paths]
    assert found["balanced"].groups.tolist() == expected


@pytest.mark.parametrize("form", ["{file} {wnid}", "{stem},{wnid} 1 2 3 4", "{file}\t{number}"])
def test_flat_val_with_a_list(root, form):
    lines = []
    for path in sorted((root / "val").rglob("*.JPEG")):
        number = WNIDS.index(path.parent.name)
        lines.append(form.format(file=path.name, stem=path.stem, wnid=WNIDS[number], number=number))
        path.rename(root / "val" / path.name)
        path.parent.rmdir()
    assert_refuses("neither class folders nor a list of labels; put val.txt", sets.open_sets, root, ["val"], CLASSES)
    (root / "val.txt").write_text("\n".join([*reversed(lines), ""]))
    found = sets.open_sets(root, ["val"], CLASSES)["val"]
    assert wrong_labels(found) == 0 and len(found.paths) == 12
    (root / "val.txt").write_text("\n".join([*lines, f"x.JPEG {WNIDS[0]}"]))
    absent = sets.open_sets(root, ["val"], CLASSES)["val"]
    assert absent.shortfall() == "val has 1 listed images that are not there" and found.shortfall() is None
    twin = root / "val" / f"{found.paths[0].stem}.png"
    twin.touch()
    assert_refuses("which a list does not tell apart", sets.open_sets, root, ["val"], CLASSES)
    twin.unlink()
    for change, told in (
        (lines[1:], "no label for 1 images"),
        ([*lines, lines[0]], ("line 13: ", " listed twice")),
        (["65"], "line 1: needs a file's name and its wnid"),
        (["x.JPEG 12"], "line 1: needs a file's name and its wnid"),
    ):
        (root / "val.txt").write_text("\n".join(change))
        assert_refuses(told, sets.open_sets, root, ["val"], CLASSES)


def test_counts_beside_those_expected(root):
    (root / "scenes.json").write_text(json.dumps({"sets": {"val": {"images": 12, "classes": 12}}}))
    found = sets.open_sets(root, ["val", "sketch"], CLASSES)
    assert found["val"].shortfall() is None and found["sketch"].expected == (None, 12)
    assert found["sketch"].shortfall() is None
    assert found["val"].shortfall(unreadable=1) == (
        "val has 11 images of 12 classes, not 12 of 12 and 1 images that cannot be read"
    )
    assert "1 images" in found["sketch"].shortfall(unreadable=1)
    next((root / "val" / WNIDS[3]).iterdir()).unlink()
    lacking = sets.open_sets(root, ["val"], CLASSES)["val"]
    assert lacking.shortfall() == "val has 11 images of 11 classes, not 12 of 12"
    (root / "scenes.json").unlink()
    lacking = sets.open_sets(root, ["val"], CLASSES)["val"]
    assert lacking.shortfall() == "val has 11 images of 11 classes, not 12"
    assert sets.open_sets(root, ["r"], CLASSES)["r"].expected is None  # which has images of some classes alone
    assert lacking.chance == 1 / 12  # a class without images is still one to be mistaken for
    (root / "scenes.json").write_text("{}")
    assert_refuses("scenes.json is damaged", sets.open_sets, root, ["val"], CLASSES)


def test_a_thousand_classes_are_held_against_the_published_counts(root):
    wnids = tuple(sorted({*WNIDS, *(f"n{i + 2000000:08d}" for i in range(988))}))
    classes = Classes(wnids, wnids, wnids)
    found = sets.open_sets(root, ["r", "sketch"], classes)
    assert found["r"].shortfall() == "r has 3 images of 3 classes, not 30000 of 200"
    assert found["sketch"].expected == (50_889, 1000)


def test_v2_may_bear_its_archives_name(root):
    (root / "imagenetv2-matched-frequency").rename(root / "imagenetv2-matched-frequency-format-val")
    assert tuple(sets.open_sets(root, None, CLASSES)) == sets.SETS
    assert wrong_labels(sets.open_sets(root, ["v2"], CLASSES)["v2"]) == 0


def test_sets_that_a_whole_root_has_and_this_one_has_not(root):
    thousand = tuple(f"n{i + 2000000:08d}" for i in range(1000))
    for folder in ("sketch", "balanced", "imagenet-a"):
        shutil.rmtree(root / folder)
    assert sets.absent(root, CLASSES) == ()
    assert sets.absent(root, Classes(thousand, thousand, thousand)) == ("sketch", "a")
    counts = {"images": 12, "classes": 12}
    (root / "scenes.json").write_text(json.dumps({"sets": {"val": counts, "balanced": counts}}))
    assert sets.absent(root, CLASSES) == ("balanced",)


def test_lists_may_begin_with_a_byte_order_mark(root, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\ufeffa {}\n")
    assert read_templates(file) == ("a {}",)
    for path in (root / "classes.json", root / "balanced/scenes.csv"):
        path.write_text("\ufeff" + path.read_text())
    assert read_classes(root) == CLASSES
    assert sets.open_sets(root, ["balanced"], CLASSES)["balanced"].groups is not None


def test_class_lists(root, tmp_path):
    assert read_classes(root) == CLASSES
    names, ids = tmp_path / "names.txt", tmp_path / "wnids.txt"
    ours = ["a fish", *("missile" for _ in range(2)), *NAMES[3:]]
    names.write_text("\n".join(ours))
    ids.write_text("\n".join(WNIDS))
    assert read_classes(root, str(names), str(ids)) == Classes(WNIDS, tuple(ours), tuple(ours))
    names.write_text(json.dumps(ours))
    assert read_classes(root, str(names), str(root / "classes.json")) == Classes(WNIDS, tuple(ours), NAMES)
    for text, given, told in (
        (json.dumps(ours), None, "has names alone: give --wnids"),
        (json.dumps(ours[1:]), str(ids), ("11 names and ", " 12 wnids")),
        ('{"0": ["n01440764", "tench"], "2": ["n01440768", "x"]}', None, "keys 0, 1, 2 and so on"),
        ('{"0": ["tench", "n01440764"]}', None, "which is no wnid"),
        ('{"0": ["n01440768", "b"], "1": ["n01440764", "a"]}', None, "in the order of the"),
        ('{"0": ["n01440764", "tench"]}', None, "has one class"),
        ("{", None, "must be"),
        ("", str(ids), "is empty"),
    ):
        names.write_text(text)
        assert_refuses(told, read_classes, root, str(names), given)
    assert_refuses("cannot be read", read_classes, root, str(tmp_path / "none"))
    (root / "classes.json").unlink()
    assert_refuses("has no classes.json; give --classes=FILE", read_classes, root)


@pytest.mark.parametrize("form", ["{0} {1}, {2}", "{0}\t{1}", "{0},{1},{2}", "{0}: {1}", '{0} "{1}, {2}"', "{0} {3}"])
def test_class_lists_with_wnids_in_their_lines(tmp_path, form):
    file = tmp_path / "list"
    rows = [(wnid, name, "other words", name.replace(" ", "_")) for wnid, name in zip(WNIDS, NAMES, strict=True)]
    lines = [form.format(*row) for row in rows]
    for text in ("\n".join(lines), json.dumps(lines), json.dumps({row[0]: f"{row[3]}, {row[2]}" for row in rows})):
        file.write_text(text)
        assert read_classes(tmp_path, str(file)) == CLASSES
    names = tmp_path / "names"
    names.write_text("\n".join(f"a {name}" for name in NAMES))
    assert read_classes(tmp_path, str(names), str(file)) == Classes(WNIDS, tuple(f"a {n}" for n in NAMES), NAMES)
    file.write_text("\n".join(lines[::-1]))
    assert_refuses("in the order of their wnids", read_classes, tmp_path, str(file))


@pytest.mark.parametrize(
    "form, told", [("{1} ({0})", "with a wnid"), ("{0}", "with a wnid"), ("{2}: {1}", "numbers its names")]
)
def test_names_that_are_no_names_are_refused(tmp_path, form, told):
    rows = zip(WNIDS, NAMES, range(12), strict=True)
    (tmp_path / "names").write_text("\n".join(form.format(*row) for row in rows))
    (tmp_path / "wnids").write_text("\n".join(WNIDS))
    assert_refuses(told, read_classes, tmp_path, str(tmp_path / "names"), str(tmp_path / "wnids"))


def test_objectnets_classes_are_found_by_name():
    def named(synonyms, names=NAMES):
        return sets._named(synonyms, sets._by_name(Classes(WNIDS, NAMES, names)), "mapping")

    assert named("candle, taper, wax light") == 11
    assert named("Broom, besom") == named("besom, broom") == 3
    assert named("daisy, umbrella") == 8  # the first synonym goes before the others
    assert named("Crane", ("Crane", *NAMES[1:])) == 0
    cases = {"crane, whooper": "several classes", "spoon": "no class's name", "x, crane": "several"}
    for synonyms, told in cases.items():
        assert_refuses(told, named, synonyms)


def makes(folder):
    return lambda root: (root / folder).mkdir()


def writes(file, content):
    return lambda root: (root / file).write_text(content)


def removes(pattern):
    return lambda root: [path.unlink() for path in root.glob(pattern)]


V2, TABLE = "imagenetv2-matched-frequency", "balanced/scenes.csv"
MAPPING = "objectnet-1.0/mappings/objectnet_to_imagenet_1k.json"


def cut_by_a_line(root):
    (root / TABLE).write_text("\n".join((root / TABLE).read_text().splitlines()[:-1]))


BROKEN = {
    "wnid": (makes("val/tench"), "tench is no class folder: its name is no wnid"),
    "foreign": (makes("sketch/n99999999"), "n99999999 is of no class of the list of 12"),
    "v2": (removes(f"{V2}/7/*"), "is incomplete: 1 of its 12 class folders are missing or empty, the first 7"),
    "v2_name": (makes(f"{V2}/012"), "is no class folder of V2: their names are the numbers 0 to 11"),
    "mappings": (removes(MAPPING), "has no mappings/objectnet_to_imagenet_1k.json"),
    "mapping": (writes(MAPPING, '["a"]'), "must be a JSON object"),
    "mapped_twice": (writes(MAPPING, '{"Clock": "broom", "Broom": "broom"}'), "gives the class 'broom' to two"),
    "object": (makes("objectnet-1.0/images/ladle"), "it is no folder of ObjectNet"),
    "empty": (removes("imagenet-a/**/*.jpg"), "imagenet-a has no images"),
    "scenes": (cut_by_a_line, "has no line for"),
    "scenes_field": (writes(TABLE, f"path,group\n{'x' * 200_000},aligned\n"), "is no table"),
    "scenes_columns": (writes(TABLE, "file,group\n1,aligned\n"), "must have columns path and group"),
    "semicolons": (writes(TABLE, "path;group\na;b\n"), "its fields are separated by semicolons"),
    "deep": (writes(MAPPING, "[" * 100_000), "must be a JSON object"),
    "deep_scenes": (writes("scenes.json", '{"sets":' * 100_000), "is damaged"),
}


@pytest.mark.parametrize("change, said", BROKEN.values(), ids=BROKEN)
def test_what_is_not_laid_out_right_is_refused(root, change, said):
    sets.open_sets(root, None, CLASSES)
    change(root)
    assert_refuses(said, sets.open_sets, root, None, CLASSES)


def test_sets_that_are_not_there_are_refused(root, tmp_path):
    assert_refuses(("--sets must be of val,", ", got 'vals'"), sets.open_sets, root, ["vals"], CLASSES)
    assert_refuses("has no evaluation set", sets.open_sets, tmp_path, None, CLASSES)
    assert_refuses("has no folder sketch", sets.open_sets, tmp_path, ["sketch"], CLASSES)


def test_templates(tmp_path):
    assert read_templates(None) == TEMPLATES and len(set(TEMPLATES)) == 10
    assert prompts("{0} {name}", ["a {}", "{} {}"]) == ["a {0} {name}", "{0} {name} {0} {name}"]
    file = tmp_path / "templates"
    file.write_text("one {}\n\n  two {}\n")
    assert read_templates(file) == ("one {}", "two {}")
    file.write_text('["one {}"]')
    assert read_templates(file) == ("one {}",)
    for text, told in (
        ("one\n", "template 1, 'one', has no {}"),
        ("", "is empty"),
        ("[1]", "must be"),
        ("[", "cannot be read"),
        ("[" * 100_000, "nested too deeply"),
        ("<!DOCTYPE html>", "HTML page"),
        ("x" * 300_000, f"template 1, '{'x' * 99}... (300002 characters), has no {{}}"),
    ):
        file.write_text(text)
        assert_refuses(told, read_templates, file)
    for content, told in ((b"\xff", "no UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\x1f\x8b\x08", "gzip")):
        file.write_bytes(content)
        assert_refuses(told, read_templates, file)

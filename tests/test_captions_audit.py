"""`sims.captions_audit`: what counts as a name, the rates by group, bits and false negatives."""

import functools
import json
import math

import numpy as np
import pytest

from sims import captions_audit
from sims.captions_audit import Names, audit, tokens, wilson
from tests.helpers import assert_refused, contents

CAPTIONS = ["A dog on grass.", "Two dogs, a red ball", "cats", "a CAT on the sofa", "a bird", "A dog on grass."]
LABELS = ["dog", "dog", "cat", "cat", "cat", "dog"]
PLACES = ["grass", "sofa", "grass", "sofa", "sofa", "grass"]


@pytest.mark.parametrize(
    "caption, found",
    [
        ("a dog", {"dog"}),
        ("DOGS!", {"dog"}),
        ("hotdog, doggy", set()),
        ("traffic-lights and a traffic jam", {"traffic light"}),
        ("light traffic", set()),
        ("two buses", {"bus"}),
        ("a puppy", set()),
    ],
)
def test_a_name_is_whole_words_or_its_plural(caption, found):
    assert Names(["dog", "traffic light", "bus"], {}).named(tokens(caption)) == found


def test_other_words_take_the_place_of_the_name():
    names = Names(["dog", "sofa"], {"dog": ["puppy", "hound dog"]})
    assert names.named(tokens("two puppys, a hound dog")) == {"dog"}
    assert names.named(tokens("a dog on a sofa")) == {"sofa"}


def test_rates_by_group_are_counts():
    found = audit(CAPTIONS, LABELS, PLACES, {}, batch_size=3, least=1)
    rows = {(row["class"], row["attribute"]): row for row in found.groups}
    sizes = {("dog", "grass"): 2, ("dog", "sofa"): 1, ("cat", "grass"): 1, ("cat", "sofa"): 2}
    assert {group: rows[group]["captions"] for group in sizes} == sizes
    assert rows["dog", "grass"]["names_class"] == 1 and rows["dog", "grass"]["names_attribute"] == 1
    assert rows["dog", "grass"]["repeated"] == 1 and rows["cat", "sofa"]["repeated"] == 0
    assert rows["cat", "sofa"]["names_class"] == 0.5 and rows["cat", "sofa"]["names_attribute"] == 0.5
    assert rows["dog", "sofa"]["other_words"] == 4 and rows["cat", "grass"]["no_other_words"] == 1
    assert found.totals["names_class"] == pytest.approx(5 / 6)
    # An anchor has 2 others in its batch; of the 30 ordered pairs 2 have one caption, and 12 one class.
    assert found.totals["false_negatives"] == pytest.approx(2 * 2 / 30)
    assert found.totals["same_class"] == pytest.approx(2 * 12 / 30)


def test_naming_only_another_class_counts_as_such():
    found = audit(["a cat", "a cat and a dog", "a dog"], ["dog"] * 2 + ["cat"], ["x"] * 3, {}, least=1)
    rows = {row["class"]: row for row in found.groups}
    assert rows["dog"]["other_class"] == 0.5 and rows["cat"]["other_class"] == 1 and rows["dog"]["names_class"] == 0.5


def test_bits_are_mutual_information():
    """A word in all captions of one of two equal classes tells one bit; within classes it tells nothing."""
    captions = ["bark"] * 20 + ["purr"] * 20
    labels, places = ["dog"] * 20 + ["cat"] * 20, ["in", "out"] * 20
    rows = {row["word"]: row for row in audit(captions, labels, places, {}).words}
    assert rows["bark"]["class_bits"] == pytest.approx(1.0) and rows["bark"]["class_p"] < 1e-9
    assert rows["bark"]["attribute_bits"] == pytest.approx(0.0, abs=1e-12) and rows["bark"]["attribute_p"] == 1
    swapped = {row["word"]: row for row in audit(captions, places, labels, {}).words}
    assert swapped["bark"]["class_bits"] == pytest.approx(0.0, abs=1e-12)
    assert swapped["bark"]["attribute_bits"] == pytest.approx(1.0)
    share = np.array([0.75, 0.25])
    half = audit(["bark"] * 15 + ["hm"] * 5 + ["bark"] * 5 + ["hm"] * 15, labels, places, {}).words[0]["class_bits"]
    assert half == pytest.approx(1 + (share * np.log2(share)).sum())


def test_words_that_tell_nothing_are_seldom_significant():
    """The p-values hold over all words together: at random labels one is below .05 in about 5 of 100 audits."""
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(12)]

    def least_p(telling):
        labels = rng.choice(["a1", "b1"], 400)
        use = rng.uniform(size=(400, 12)) < np.where((labels == "a1") & telling, 0.6, 0.4)[:, None]
        captions = [" ".join(w for w, used in zip(vocabulary, row, strict=True) if used) for row in use]
        return min(row["class_p"] for row in audit(captions, labels.tolist(), ["x"] * 400, {}).words)

    false = sum(least_p(False) < 0.05 for _ in range(60))
    assert false <= 10  # P(more) < 1e-3 at 5%
    assert all(least_p(True) < 0.05 for _ in range(5))


def test_the_interval_is_wilson_s():
    low, high = wilson(np.array([0.0, 0.5]), np.array([10, 10]))
    np.testing.assert_allclose(low, [0, 0.2366], atol=1e-4)
    np.testing.assert_allclose(high, [0.2775, 0.7634], atol=1e-4)


@pytest.fixture
def command(mmcl, monkeypatch, tmp_path):
    """(arguments) -> (exit code, stdout, stderr), in a folder with a table and a file of words."""
    monkeypatch.chdir(tmp_path)
    rows = [f'"{c}",{y},{a},{i}' for i, (c, y, a) in enumerate(zip(CAPTIONS, LABELS, PLACES, strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(["caption,class,place,number", *rows]))
    (tmp_path / "words.json").write_text(json.dumps({"cat": ["cat", "bird"]}))
    return functools.partial(mmcl, captions_audit)


TABLE = ("--captions=t.csv:caption", "--labels=t.csv:class", "--attributes=t.csv:place")


def test_the_command_writes_tables_and_figure(command, tmp_path):
    code, out, err = command(*TABLE, "--words=words.json", "--least=1", "--out=out")
    assert (code, err) == (0, "") and out.startswith("6 captions, 5 distinct; they name the class in 100.0%")
    names = {path.name for path in contents(tmp_path / "out")}
    assert names == {"groups.csv", "words.csv", "audit.json", "captions_audit.png", "captions_audit.pdf"}
    written = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert written["totals"]["names_class"] == pytest.approx(1) and len(written["groups"]) == 4
    assert (tmp_path / "out" / "groups.csv").read_text().startswith("class,attribute,captions,names_class,")
    assert not any(math.isnan(v) for row in written["words"] for v in row.values() if isinstance(v, float))


def test_without_attributes_the_classes_alone_are_counted(command, tmp_path):
    """As with them, but for what is NaN; no words of attributes, and no marks for them in the figure."""
    both = audit(CAPTIONS, LABELS, PLACES, {}, least=1)
    alone = audit(CAPTIONS, LABELS, None, {}, least=1)
    assert [row["attribute"] for row in alone.groups] == ["", ""] and math.isnan(alone.totals["names_attribute"])
    for name in ("names_class", "other_class", "repeated"):
        assert alone.totals[name] == pytest.approx(both.totals[name])
    bits, known = ({row["word"]: row["class_bits"] for row in found.words} for found in (alone, both))
    assert bits == pytest.approx(known)
    assert all(math.isnan(row["attribute_bits"]) for row in alone.words)
    assert any(row["attribute_bits"] for row in both.words)
    lines = [len(captions_audit.draw(found).axes[0].get_legend().get_texts()) for found in (both, alone)]
    assert lines == [2, 1]
    code, out, err = command(*TABLE[:2], "--least=1", "--out=out")
    assert (code, err) == (0, "") and "attribute" not in out and "nan" not in out
    found = json.loads((tmp_path / "out" / "audit.json").read_text(), parse_constant=pytest.fail)
    assert found["totals"]["names_attribute"] is None


def test_coco_and_tables_of_images_are_read(command, tmp_path):
    """The class is that of COCO's largest instance; images without one are counted and left out."""
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "train2017").mkdir()
    number = {"cat": 7, "dog": 9}
    told = [{"image_id": i, "caption": c} for i, c in enumerate(CAPTIONS)]
    told += [{"image_id": 6, "caption": "a tree"}, {"image_id": 0, "caption": "a dog, not a cat"}]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(7)]
    area = [
        {"id": 10 * i + k, "image_id": i, "category_id": number[c], "area": 5.0 - k}
        for i, y in enumerate(LABELS)
        for k, c in enumerate([y, *(x for x in number if x != y)])
    ]
    kinds = [{"id": i, "name": name} for name, i in number.items()]
    for name, content in (
        ("captions", {"images": images, "annotations": told}),
        ("instances", {"categories": kinds, "annotations": area}),
    ):
        (tmp_path / "coco" / "annotations" / f"{name}_train2017.json").write_text(json.dumps(content))
    code, out, err = command("--data=coco:coco", "--least=1", "--out=out")
    assert code == 0 and err == "note: 1 of 7 images have no class or attribute and are left out.\n"
    rows = json.loads((tmp_path / "out" / "audit.json").read_text())["groups"]
    whole = audit([*CAPTIONS, "a dog, not a cat"], [*LABELS, LABELS[0]], None, {}, least=1).groups
    for row, known in zip(rows, whole, strict=True):
        assert (row["class"], row["captions"]) == (known["class"], known["captions"])
        assert row["names_class"] == pytest.approx(known["names_class"])
    lines = [f'{i}.png,"{c}",{y},{a}' for i, (c, y, a) in enumerate(zip(CAPTIONS, LABELS, PLACES, strict=True))]
    (tmp_path / "images.csv").write_text("\n".join(["path,caption,label,attribute", *lines]))
    code, out, err = command("--data=csv:images.csv", "--least=1", "--out=table")
    assert (code, err) == (0, "")
    columns = command(*TABLE, "--least=1", "--out=columns")
    assert out.split("\n\n")[0] == columns[1].split("\n\n")[0]
    (tmp_path / "images.csv").write_text("path,caption,label,attribute\n0.png,a cat,cat,\n1.png,a dog,dog,\n")
    code, out, err = command("--data=csv:images.csv", "--least=1", "--out=none")
    assert (code, err) == (0, "") and "attribute" not in out  # an empty column is none


def test_bad_input_is_one_line(command, tmp_path):
    (tmp_path / "images.csv").write_text("path,caption\n0.png,a cat\n")
    for arguments, said in [
        (TABLE[:1], "--labels must name a file, such as --labels=table.csv:labels, or --data images."),
        ([*TABLE, "--classes=words.json"], "--classes goes with --data"),
        ([*TABLE, "--data=coco:."], "--data has captions and classes of its own; leave out --captions."),
        (["--data=coco:."], "captions_train2017.json"),
        (["--data=csv:images.csv"], "--data=csv:images.csv has no classes; give --classes=FILE with their names."),
        (["--captions=t.csv:number", *TABLE[1:]], "--captions must be a column of text."),
        (["--captions=t.csv:other", *TABLE[1:]], "has no 'other'; it has caption, class, place, number"),
        ([*TABLE, "--words=none.json"], "--words=none.json cannot be read (No such file or directory)."),
        ([*TABLE, "--batch_size=1"], "--batch_size must be >= 2, got 1."),
    ]:
        assert_refused(command(*arguments, "--out=out"), said)
    for words, said in (
        ('{"cow": ["cow"]}', "'cow' is none of the classes and attributes cat, dog, grass,"),
        ('{"cat": []}', "'cat' must have a list of phrases, got []."),
    ):
        (tmp_path / "words.json").write_text(words)
        assert_refused(command(*TABLE, "--words=words.json"), said)
    assert not (tmp_path / "out").exists()

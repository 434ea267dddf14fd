"""ImageNet's classes as COCO's categories, free labels as ImageNet's classes, and sets that are scored by a map."""

import collections
import dataclasses

import numpy as np
import pytest

from sims.clip.records import class_maps, make_maps
from sims.clip.records.classes import Classes, read_classes
from sims.clip.zero_shot import sets
from tests.helpers import assert_refuses

COCO = class_maps.read_map("coco")


def category_of(wnid):
    return COCO.categories[COCO.of[wnid]] if wnid in COCO.of else None


def test_cocos_categories_and_their_sizes():
    assert len(COCO.categories) == 80 == len(make_maps.COCO) and len(COCO.of) == 291
    assert COCO.categories == tuple(make_maps.COCO)
    sizes = collections.Counter(COCO.categories[i] for i in COCO.of.values())
    assert len(sizes) == 57
    assert {name: sizes[name] for name in ("dog", "bird", "car", "cat", "giraffe")} == {
        "dog": 118, "bird": 59, "car": 10, "cat": 5, "giraffe": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wnid", "category"),
    [
        ("n02085620", "dog"),  # Chihuahua
        ("n02123045", "cat"),  # tabby
        ("n01608432", "bird"),  # kite, which COCO's kite is not
        ("n03770679", "car"),  # minivan: a van too, and so a truck, from farther
        ("n07697537", "hot dog"),  # a sandwich too, from farther
        ("n02504458", "elephant"),  # African elephant
        ("n03793489", "mouse"),  # of a computer
        ("n02115641", None),  # dingo: a wild dog
        ("n02125311", None),  # cougar: a cat, but no domestic one
        ("n01440764", None),  # tench
    ],
)
def test_known_classes_have_their_category_by_hypernym(wnid, category):
    assert category_of(wnid) == category


def test_the_bundled_files_are_of_the_same_classes():
    classes = read_classes(class_maps._MAPS, str(class_maps._MAPS / "imagenet_names.txt"))
    assert len(classes.wnids) == 1000 and set(COCO.of) < set(classes.wnids)
    assert classes.names[:2] == ("tench", "goldfish")


def test_a_label_names_the_class_that_has_it_as_a_name():
    for label, wnid in (
        ("tench", "n01440764"), ("Tinca tinca", "n01440764"), ("sports car", "n04285008"), ("Sport_car", "n04285008"),
        ("T shirt", "n03595614"), ("jersey", "n03595614"), ("T-Shirt", "n03595614"), ("crane", None), ("dog", None),
        ("sports", None), ("", None),
    ):  # fmt: skip
        assert class_maps.wnid_of_label(label) == wnid, label


NOUNS = """  1 This is the license.
00000001 03 n 01 thing 0 000 | all
00000002 03 n 02 fruit 0 edible_fruit 0 001 @ 00000001 n 0000 | a gloss | with a bar
00000003 03 n 01 pome 0 002 @ 00000002 n 0000 %p 00000001 n 0000 | a kind
00000004 03 n 01 Fuji 0 001 @i 00000003 n 0000 | an instance
00000005 03 n 01 both 0 002 @ 00000003 n 0000 @ 00000001 n 0000 | two above
"""


def test_the_nearest_synset_above_owns_a_class(tmp_path):
    """By WordNet's own format; twins: parts are not above, and two that are as near are refused."""
    (tmp_path / "data.noun").write_text(NOUNS)
    names, above = make_maps.read_nouns(tmp_path / "data.noun")
    assert names["n00000002"] == ["fruit", "edible fruit"] and above["n00000003"] == ["n00000002"]
    assert make_maps.nearest("n00000004", above, {"n00000002": "fruit", "n00000001": "thing"}) == "fruit"
    assert make_maps.nearest("n00000002", above, {"n00000002": "fruit"}) == "fruit"
    assert make_maps.nearest("n00000005", above, {"n00000002": "fruit", "n00000001": "thing"}) == "thing"
    assert make_maps.nearest("n00000001", above, {"n00000002": "fruit"}) is None
    with pytest.raises(ValueError, match="as near to pome as to thing"):
        make_maps.nearest("n00000005", above, {"n00000003": "pome", "n00000001": "thing"})
    (tmp_path / "data.noun").write_text("no WordNet\n")
    assert_refuses("no data.noun of WordNet", make_maps.read_nouns, tmp_path / "data.noun")


CLASSES = Classes(("n01", "n02", "n03", "n04"), ("a", "b", "c", "d"), ("a", "b", "c", "d"))
BY = class_maps.ClassMap("mine", ("y", "x", "z"), {"n01": 1, "n03": 1, "n04": 0})


def evaluation_set(scored, labels):
    paths = tuple(f"{i}.png" for i in range(len(labels)))
    groups = np.array(["aligned", "conflicting"] * len(labels))[: len(labels)]
    return sets.EvaluationSet("val", paths, np.array(labels), scored, "rule", expected=(5, 4), groups=groups, dropped=2)


def test_a_set_is_labelled_by_the_categories_of_its_classes():
    """Twin: an object of two categories is dropped, as is a class without any."""
    plain = evaluation_set(((0,), (1,), (2,), (3,)), [0, 1, 2, 3, 3])
    objects = evaluation_set(((0, 2), (2, 3), (3,)), [0, 1, 2, 0])
    found, classes = sets.mapped({"val": plain, "objectnet": objects}, CLASSES, BY)
    assert classes == Classes(("y", "x", "z"), ("y", "x", "z"), ("y", "x", "z"))
    one, two = found.values()
    assert one.paths == ("0.png", "2.png", "3.png", "4.png") and list(one.labels) == [1, 1, 0, 0]
    assert list(one.groups) == ["aligned", "aligned", "conflicting", "aligned"]
    assert two.paths == ("0.png", "2.png", "3.png") and list(two.labels) == [1, 0, 1]
    assert one.scored == two.scored == ((0,), (1,), (2,)) and (one.dropped, two.dropped) == (3, 3)
    assert one.rule == "rule; as 2 of the 3 categories of mine" and one.chance == 1 / 3


def test_a_map_that_does_not_belong_to_the_classes_is_refused():
    one = evaluation_set(((1,),), [0])
    assert_refuses("val has no image of a category of --class_map=mine", sets.mapped, {"val": one}, CLASSES, BY)
    by = dataclasses.replace(BY, of=BY.of | {"n09": 0})
    assert_refuses("has 1 classes, such as n09, that the class list has not", sets.mapped, {"val": one}, CLASSES, by)


def test_a_map_is_read_from_a_table(tmp_path):
    file = tmp_path / "map.csv"
    file.write_text("category,wnid\nb,n00000002\na,\nb,n00000001\n")
    found = class_maps.read_map(str(file))
    assert found.categories == ("b", "a") and found.of == {"n00000002": 0, "n00000001": 0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("", "must be a CSV file with the columns category and wnid"),
        ("category,id\na,b\n", "must be a CSV file with the columns"),
        ("category,wnid\na,dog\nb,\n", "it needs a category, and a wnid such as n01440764"),
        ("category,wnid\n,n00000001\n", "it needs a category"),
        ("category,wnid\na\n", "it needs a category, and a wnid"),
        ("category,wnid\na,n00000001\nb,n00000001\n", "has n00000001 in two categories"),
        ("category,wnid\na,n00000001\n", "has 1 categories and 1 classes"),
        ("category,wnid\na,\nb,\n", "has 2 categories and 0 classes"),
    ],
)
def test_a_table_that_is_no_map_is_refused(tmp_path, text, said):
    file = tmp_path / "map.csv"
    if text is not None:
        file.write_text(text)
    assert assert_refuses(said, class_maps.read_map, str(file)).startswith(f"--class_map={file}")

"""Records from disk: what each layout gives, what is refused, and images that strangers wrote."""

import csv
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from sims.clip.records import images, sources, tars
from sims.clip.records.images import BadImage, decode
from sims.clip.records.sources import open_source
from sims.engine.flags import UsageError, WorkFailed
from tests.helpers import assert_refuses, python


def picture(i, size=(12, 10)):
    """(h, w, 3), of one colour that tells it from others."""
    return np.full((size[1], size[0], 3), ((i * 40) % 256, 255 - (i * 40) % 256, 128), np.uint8)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


COCO = {
    "images": [{"id": 9, "file_name": "a.png"}, {"id": 4, "file_name": "b.png"}, {"id": 7, "file_name": "c.png"}],
    "annotations": [
        {"image_id": 4, "caption": "a dog\non grass "},
        {"image_id": 9, "caption": "a cat"},
        {"image_id": 4, "caption": "the dog"},
    ],
}
INSTANCES = {
    "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    "annotations": [
        {"id": 3, "image_id": 4, "category_id": 18, "area": 2.5, "segmentation": [[1.0, 2.0]]},
        {"id": 1, "image_id": 4, "category_id": 18, "area": 9.0},
        {"id": 0, "image_id": 4, "category_id": 17, "area": 9.0},
    ],
}


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    for i, name in enumerate("abc"):
        (tmp_path / "train2017" / f"{name}.png").write_bytes(encoded(picture(i)))
    write(tmp_path, "captions", COCO)
    write(tmp_path, "instances", INSTANCES)
    return tmp_path


def write(folder, which, content):
    (folder / "annotations" / f"{which}_train2017.json").write_text(json.dumps(content))


def test_coco_gives_captions_images_and_the_largest_instance(coco):
    source = open_source(f"coco:{coco}")
    assert len(source) == 2 and source.name == "coco:train2017" and source.classes == ("cat", "dog")
    assert source.captions(0) == ("a cat",) and source.captions(1) == ("a dog on grass", "the dog")
    np.testing.assert_array_equal(source[1].image, picture(1))
    # The tie of areas goes to instance 0, a cat; the image without instances has no label.
    assert source.labels.tolist() == [-1, 0] and source.labels.dtype == np.int32 and source[1].label == 0
    assert source[1].id == "b.png"
    again = pickle.loads(pickle.dumps(source))
    assert again[1].captions == source[1].captions and (again[1].image == source[1].image).all()


def test_coco_takes_other_captions_and_does_without_instances(coco):
    other = coco / "mine.json"
    other.write_text(json.dumps(COCO | {"annotations": [{"image_id": 7, "caption": "a hot dog"}]}))
    os.unlink(coco / "annotations" / "instances_train2017.json")
    source = open_source(f"coco:{coco}:train2017", captions_file=str(other), classes=["dog", "hot dog"])
    assert len(source) == 1 and source[0].id == "c.png" and source[0].label == 1
    assert open_source(f"coco:{coco}").labels.tolist() == [-1, -1]


@pytest.mark.parametrize(
    "which, content, told",
    [
        ("captions", {"images": COCO["images"]}, 'has no list "annotations"'),
        ("captions", {"annotations": COCO["annotations"]}, 'has no list "images"'),
        ("captions", [], 'has no list "images"'),
        ("captions", COCO | {"annotations": [{"image_id": 5, "caption": "x"}]}, "a caption for image 5"),
        ("captions", COCO | {"annotations": [{"image_id": 4}]}, 'entry 0 of "annotations" has no proper "caption"'),
        ("captions", COCO | {"annotations": []}, "has no captioned image"),
        ("captions", COCO | {"images": [{"id": 4, "file_name": "../../etc/x"}]}, "a name inside train2017"),
        ("captions", COCO | {"images": [{"id": 4, "file_name": "/etc/x"}]}, "a name inside train2017"),
        ("captions", COCO | {"images": [COCO["images"][0]] * 2}, "image id 9 twice"),
        ("instances", {"annotations": []}, 'has no list "categories"'),
        ("instances", INSTANCES | {"categories": INSTANCES["categories"][:1]}, "of category 17"),
        ("instances", INSTANCES | {"annotations": [INSTANCES["annotations"][1] | {"area": "2"}]}, '"area"'),
    ],
)
def test_bad_coco_is_refused_in_a_line(coco, which, content, told):
    write(coco, which, content)
    assert_refuses(told, open_source, f"coco:{coco}")


def test_absent_parts_of_coco_are_named(coco):
    assert_refuses("captions_val2017.json", open_source, f"coco:{coco}:val2017")
    assert_refuses("nothing.json", open_source, f"coco:{coco}", captions_file=f"{coco}/nothing.json")
    assert_refuses("give none", open_source, f"coco:{coco}", classes=["dog"])
    (coco / "annotations" / "captions_train2017.json").write_text('{"images": [')
    assert_refuses("is no whole JSON file", open_source, f"coco:{coco}")
    (coco / "train2017").rename(coco / "train2014")
    write(coco, "captions", COCO)
    assert_refuses("has no folder train2017", open_source, f"coco:{coco}")


@pytest.mark.parametrize("spec", ["", "coco", "coco:", "pickle:x", "tars:", "csv:", "COCO:x"])
def test_other_sources_are_refused(spec):
    assert_refuses("data must be coco:DIR", open_source, spec)
    assert_refuses("a captions file goes with coco", open_source, "csv:x", captions_file="y")


@pytest.mark.parametrize(
    "damage, told", [("gone", "missing"), ("cut", "truncated"), ("text", "it is an HTML page"), ("none", "empty")]
)
def test_a_bad_image_is_told_apart(coco, damage, told):
    path = coco / "train2017" / "a.png"
    content = {"cut": encoded(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))[:2000],
               "text": b"<html>not found</html>", "none": b""}  # fmt: skip
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[damage])
    source = open_source(f"coco:{coco}")
    assert source[1].label == 0
    with pytest.raises(BadImage, match=told) as caught:
        source[0]
    assert caught.value.id == "a.png" and "0x" not in caught.value.why
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.id, again.why) == (caught.value.id, caught.value.why)


def test_a_name_that_holds_a_nul_is_a_bad_image(coco):
    write(coco, "captions", COCO | {"images": [{"id": 9, "file_name": "a\0.png"}, *COCO["images"][1:]]})
    source = open_source(f"coco:{coco}")
    with pytest.raises(BadImage, match="null byte"):
        source[0]
    assert source[1].id == "b.png"


def test_json_may_begin_with_a_byte_order_mark(coco):
    path = coco / "annotations" / "captions_train2017.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(open_source(f"coco:{coco}")) == 2


def member(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def pack(path, members):
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def shard(path, first, n):
    members = []
    for i in range(first, first + n):
        members += [member(f"{i:05d}.jpg", encoded(picture(i))), member(f"{i:05d}.json", b"{}")]
        members.append(member(f"{i:05d}.txt", f"a thing, number {i}\n".encode()))
    return pack(path, members)


@pytest.fixture
def shards(tmp_path):
    for s in range(3):
        shard(tmp_path / f"{s:05d}.tar", 10 * s, 3)
    return tmp_path


def test_tars_are_read_by_offset(shards):
    source = open_source(f"tars:{shards}/{{00000..00002}}.tar", classes=["thing", "number"])
    assert len(source) == 9 and source.captions(4) == ("a thing, number 11",) and source[4].id == "00001.tar/00011"
    for i in (8, 0, 4):
        np.testing.assert_array_equal(source[i].image, picture(10 * (i // 3) + i % 3))
    assert (source.labels == -1).all()  # each caption names both classes
    assert (open_source(f"tars:{shards}/*.tar", classes=["thing", "thin"]).labels == 0).all()
    again = pickle.loads(pickle.dumps(source))
    assert again[5].id == source[5].id and (again[5].image == source[5].image).all()


def test_tars_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        shard(tmp_path / folder / "0.tar", 0, 1)
    assert list(open_source(f"tars:{tmp_path}/*/0.tar").ids) == ["a/0.tar/00000", "b/0.tar/00000"]
    assert list(open_source(f"tars:{tmp_path}/b/0.tar").ids) == ["0.tar/00000"]


def test_the_index_is_made_once_and_anew_for_another_tar(shards, monkeypatch):
    spec = f"tars:{shards}/00001.tar"
    before = open_source(spec)
    assert {p.name for p in shards.iterdir()} == {f"{s:05d}.tar" for s in range(3)} | {"00001.tar.index.npz"}
    with monkeypatch.context() as patch:
        patch.setattr(tars, "scan", lambda path: pytest.fail("indexed again"))
        assert list(open_source(spec).ids) == list(before.ids)
    shard(shards / "00001.tar", 50, 4)
    after = open_source(spec)
    assert len(after) == 4 and after.captions(0) == ("a thing, number 50",)
    # What was opened before it changed must not read other bytes under the old names.
    with pytest.raises(WorkFailed, match="changed while it was in use"):
        before[0]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04K\x01."])
def test_a_damaged_index_is_made_anew(shards, content):
    (shards / "00001.tar.index.npz").write_bytes(content)
    assert len(open_source(f"tars:{shards}/00001.tar")) == 3
    assert tars.stored(f"{shards}/00001.tar") is not None


def test_an_index_holding_objects_is_not_unpickled(shards):
    path = shards / "00001.tar"
    index = tars.scan(str(path))
    arrays = {"version": tars._VERSION, "stamp": index.stamp, "offset": index.offset, "size": index.size, "left_out": 0}
    held = {"keys": np.array([{}], object), "keys_ends": index.keys.ends, "captions": 0, "captions_ends": 0}
    np.savez(f"{path}.index.npz", **(arrays | held))
    assert tars.stored(str(path)) is None


def test_the_index_goes_to_the_cache_where_the_folder_is_closed(shards, tmp_path, monkeypatch, capsys):
    path = str(shards / "00000.tar")
    closed = shards / "file" / "x"
    (shards / "file").touch()
    cached = tmp_path / "cache" / "x.npz"
    monkeypatch.setattr(tars, "sidecars", lambda _: (closed, cached))
    assert len(open_source(f"tars:{path}")) == 3 and [p.name for p in cached.parent.iterdir()] == ["x.npz"]
    assert not capsys.readouterr().err
    monkeypatch.setattr(tars, "sidecars", lambda _: (closed,))
    assert len(open_source(f"tars:{path}")) == 3
    assert "no index of" in capsys.readouterr().err


def test_without_a_home_the_index_lies_beside_its_tar(shards, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tars.pathlib.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(open_source(f"tars:{shards}/00000.tar")) == 3
    assert [path.name for path in tars.sidecars(f"{shards}/00000.tar")] == ["00000.tar.index.npz"]


JPG = encoded(picture(1), "JPEG")
PAIR = (member("a.jpg", JPG), member("a.txt", b"words"))


@pytest.mark.parametrize(
    "more, told",
    [
        (member("../evil.jpg", JPG), "leads out of it"),
        (member("x/../../evil.jpg", JPG), "leads out of it"),
        (member("/etc/evil.jpg", JPG), "leads out of it"),
        (member("..\\evil.jpg", JPG), "leads out of it"),
        (member("b.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link or device"),
        (member("b.jpg", type=tarfile.LNKTYPE, linkname="a.jpg"), "a link or device"),
        (member("b.jpg", type=tarfile.FIFOTYPE), "a link or device"),
        (member("a.jpg", JPG), "holds a.jpg twice"),
    ],
)
def test_a_tar_with_what_may_not_be_in_it_is_refused(tmp_path, more, told):
    pack(tmp_path / "x.tar", [*PAIR, more])
    assert_refuses(told, open_source, f"tars:{tmp_path}/x.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_folders_and_other_files_in_a_tar_are_passed_over(tmp_path, capsys):
    folder = member("d", type=tarfile.DIRTYPE)
    lone = [member("b.jpg", JPG), member("c.txt", b"no image"), member("e.jpg", JPG), member("e.txt", b" \n")]
    inside = [member("d/a.webp", encoded(picture(2), "WEBP")), member("d/a.txt", b"w")]
    pack(tmp_path / "x.tar", [folder, *PAIR, *inside, *lone])
    source = open_source(f"tars:{tmp_path}/x.tar")
    assert [source[i].id for i in range(len(source))] == ["x.tar/a", "x.tar/d/a"]
    assert "3 images or captions have no counterpart" in capsys.readouterr().err
    dotted = [member("f.1.jpg", JPG), member("f.1.txt", b"w"), member("f.json", b"{}"), member("f.1.json", b"{}")]
    pack(tmp_path / "x.tar", [*PAIR, *dotted])
    assert len(open_source(f"tars:{tmp_path}/x.tar")) == 1
    assert "2 images or captions have no counterpart, or a dot in their key" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [1 << 40, 2 << 20])
def test_a_header_that_claims_to_be_large_is_refused(tmp_path, kind, size):
    info, _ = member("x", type=kind)
    info.size = size
    whole = pack(tmp_path / "x.tar", PAIR).read_bytes()
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + whole + bytes(3 << 20))
    assert_refuses(f"a header of {size} bytes", open_source, f"tars:{tmp_path}/x.tar")


def test_numbers_no_file_can_have_are_refused(tmp_path):
    info, data = member("a.jpg", JPG, pax_headers={"size": str(1 << 70)})
    pack(tmp_path / "x.tar", [PAIR[1], (info, data)])
    assert_refuses("x.tar cannot be read", open_source, f"tars:{tmp_path}/x.tar")


def cuts():
    """Lengths at which to cut a tar of `shard`: within a header, within an image, after a member."""
    return {"header": 512 + 1024 + 100, "image": 512 + 20, "border": 512 * 4}


@pytest.mark.parametrize("cut", [*cuts(), "header zeroed", "compressed", "text", "empty"])
def test_a_tar_that_is_cut_or_no_tar_is_refused(shards, cut):
    path = shards / "00001.tar"
    content = bytearray(path.read_bytes())
    assert len(tars.scan(str(path)).offset) == 3
    if cut == "header zeroed":
        content[1024:1100] = bytes(range(76))
    else:
        others = {"text": b"no tar " * 200, "empty": b"", "compressed": zlib.compress(content)}
        content = others.get(cut, content[: cuts().get(cut)])
    path.write_bytes(content)
    told = assert_refuses("00001.tar", open_source, f"tars:{path}")
    assert "cut short" in told or "cannot be read as an uncompressed tar" in told
    assert not list(shards.glob("*.npz"))


def test_globs_and_ranges(shards):
    found = [os.path.basename(p) for p in tars.expand(f"{shards}/{{00001..00002}}.tar,{shards}/*.tar")]
    assert found == ["00001.tar", "00002.tar", "00000.tar"]
    assert_refuses("00003.tar", open_source, f"tars:{shards}/{{00001..00003}}.tar")
    assert_refuses("finds no file", open_source, f"tars:{shards}/*.tgz")
    assert_refuses("must go up", open_source, f"tars:{shards}/{{3..1}}.tar")
    assert_refuses("must go up", open_source, f"tars:{shards}/{{0..999999999}}.tar")


@pytest.mark.parametrize("suffix, delimiter", [(".csv", ","), (".tsv", "\t")])
def test_tables_give_paths_captions_and_labels(tmp_path, suffix, delimiter, capsys):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "1.png").write_bytes(encoded(picture(1)))
    with open(tmp_path / f"t{suffix}", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["title", "filepath", "label"])
        writer.writerow(['a "dog",\ta' + ("\nday" if suffix == ".csv" else " day"), "p/1.png", "dog"])
        writer.writerows([["x", "2.png", ""], ["", "3.png", "cat"], ["the dog", "p/1.png", "dog"]])
    source = open_source(f"csv:{tmp_path}/t{suffix}")
    assert source.captions(0) == ('a "dog", a day', "the dog")
    assert source.classes == ("dog",) and source.labels.tolist() == [0, -1]
    np.testing.assert_array_equal(source[0].image, picture(1))
    with pytest.raises(BadImage, match="missing"):
        source[1]
    assert "1 lines without a path or a caption" in capsys.readouterr().err
    assert open_source(f"csv:{tmp_path}/t{suffix}", classes=["cat", "dog"]).labels.tolist() == [1, -1]
    assert_refuses("label 'dog', which is not among", open_source, f"csv:{tmp_path}/t{suffix}", classes=["cat"])


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("t.csv", b"", "must name one column path"),
        ("t.csv", b"name,caption\na,b\n", "must name one column path or filepath or image"),
        ("t.csv", b"path,words\na,b\n", "must name one column caption or title or text"),
        ("t.csv", b"path,image,caption\na,b,c\n", "must name one column path"),
        ("t.csv", b"x," * 30_000, "must name one column"),
        ("t.csv", b"a cat,http://x/y.jpg\n", "fetched by img2dataset"),
        ("t.csv", b"path,caption\na,b\nc\n", "line 3: 1 fields"),
        ("t.csv", b"path,caption\n", "no line with a path"),
        ("t.csv", b"path,caption\na,\xff\n", "is no UTF-8 table"),
        ("t.csv", b'path,caption\na,b\na,"b\n', "line 3: wrong quoting"),
        ("t.csv", b'path,caption\na,b\na,"b" c\n', "line 3: wrong quoting"),
        ("t.csv", b"x" * 300_000, "too long a field"),
        (
            "t.csv",
            b"path,caption,label\na,b,x\n\na,c,y\n",
            "line 4: a has the label 'y' here and 'x' in an earlier line",
        ),
        ("t.csv", b"path,caption,label\na,b,c\na,d," + b"x" * 100_000, "has the label"),
        ("t.csv", b"path\tcaption", "separated by tabs, where commas are read"),
        ("t.csv", b"path,caption\na\tb", "separated by tabs, where commas are read"),
        ("t.csv", b'"path";"caption"', "separated by semicolons, where commas are read"),
        ("t.tsv", b"path,caption", "separated by commas, where tabs are read"),
        ("t.csv", b"<!DOCTYPE html><html>", "it is an HTML page"),
        ("t.csv", gzip.compress(b"path,caption\n"), "gzip"),
        ("t.csv", b"\xff\xfep\0", "UTF-16"),
    ],
)
def test_what_is_no_table_is_refused_and_told_for_what_it_is(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    assert len(assert_refuses(told, open_source, f"csv:{tmp_path}/{name}")) < 1000


@pytest.mark.parametrize(
    "lines, told",
    [
        (["a\tb", '"big\tc', 'd"\te'], "line 3: quoting that goes on to line 4"),
        (["a\tb", 'c\t"big" dog'], "line 3: wrong quoting"),
        (["a\tb", 'c\t"big dog'], "line 3: wrong quoting"),
    ],
)
def test_quotes_in_a_tsv_swallow_no_lines(tmp_path, lines, told):
    (tmp_path / "t.tsv").write_text("\n".join(["path\tcaption", *lines]))
    assert_refuses(told, open_source, f"csv:{tmp_path}/t.tsv")
    (tmp_path / "t.tsv").write_text('path\tcaption\na\tthe 6" tall "dog"\nb\t"""big"" dog"\n')
    source = open_source(f"csv:{tmp_path}/t.tsv")
    assert [source.captions(i) for i in range(2)] == [('the 6" tall "dog"',), ('"big" dog',)]


def test_attributes_are_words_of_images(tmp_path):
    table, spec = tmp_path / "t.csv", f"csv:{tmp_path}/t.csv"
    table.write_text("path,caption,Attribute\na,x,sofa\nb,y,\na,z,sofa\n")
    source = open_source(spec)
    assert list(source.attributes) == ["sofa", ""] and source.classes == ()
    table.write_text("path,caption,attribute\na,x,sofa\na,z,grass\n")
    assert_refuses("line 3: a has the attribute 'grass' here and 'sofa' in an earlier", open_source, spec)
    table.write_text("path,caption\na,x\n")
    assert open_source(spec).attributes is None


def test_a_parquet_table_is_read_as_a_list(tmp_path, monkeypatch):
    """Its file is read by pyarrow, which the tests do not need; what pandas makes of it is the frame below."""
    columns = {"path": ["a", "b", "c", "a"], "caption": ["x", "y", None, "z"], "label": [1, None, 2, 1], "n": [[1]] * 4}
    frame = pd.DataFrame(columns).convert_dtypes(dtype_backend="numpy_nullable")
    monkeypatch.setattr(pd, "read_parquet", lambda path, dtype_backend: frame)
    source = open_source("parquet:t.parquet")
    assert [source.captions(i) for i in range(len(source))] == [("x", "z"), ("y",)]
    assert source.classes == ("1",) and source.labels.tolist() == [0, -1]
    frame.loc[3, "label"] = 2
    assert_refuses("t.parquet, row 3: a has the label '2' here and '1' in an earlier", open_source, "parquet:t.parquet")
    monkeypatch.undo()
    (tmp_path / "t.parquet").write_text("nonsense")
    said = assert_refuses((), open_source, f"parquet:{tmp_path}/t.parquet")
    assert "cannot be read as Parquet" in said or "needs the package pyarrow" in said


def test_an_absent_table_is_told(tmp_path):
    assert_refuses("cannot be read (No such file", open_source, f"csv:{tmp_path}/t.csv")


def test_classes_are_whole_words_and_the_longest():
    captions = [
        ("a Hot-Dog stand",),
        ("two dogs",),
        ("the dog.",),
        ("dog and cat",),
        ("a dog", "a cat"),
        ("polar bear",),
    ]
    labels = sources._named(("dog", "cat", "hot dog", "polar bear"), captions, len(captions))
    assert labels.tolist() == [2, -1, 0, -1, -1, 3]
    assert sources._named(("bear", "bear cub"), [("a bear cub",), ("a cub bear",)], 2).tolist() == [1, 0]
    assert sources._named(("crane", "crane"), [("a crane",)], 1).tolist() == [-1]


def cifar(folder, npm):
    rng = np.random.default_rng(0)
    every = rng.integers(0, 256, (6, 2, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, (6, 2))
    for stem, found, own in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], every, labels, strict=True):
        if npm:
            (folder / f"{stem}.png").write_bytes(encoded(found.reshape(2, 1024, 3)))
        else:
            rows = np.c_[own, found.transpose(0, 3, 1, 2).reshape(2, -1)]
            (folder / f"{stem}.bin").write_bytes(rows.astype(np.uint8).tobytes())
    if npm:
        (folder / "train_lables.json").write_text(json.dumps(labels[:5].ravel().tolist()))
        (folder / "test_lables.json").write_text(json.dumps(labels[5].tolist()))
    return every, labels


@pytest.mark.parametrize("npm", [False, True])
def test_cifar_is_read_from_both_layouts(tmp_path, npm):
    every, labels = cifar(tmp_path, npm)
    train, test = open_source(f"cifar10:{tmp_path}"), open_source(f"cifar10:{tmp_path}:test")
    np.testing.assert_array_equal(np.stack([train[i].image for i in range(10)]), every[:5].reshape(10, 32, 32, 3))
    np.testing.assert_array_equal(test.images, every[5])
    assert train.labels.tolist() == labels[:5].ravel().tolist() and test.labels.tolist() == labels[5].tolist()
    name = train.classes[train.labels[3]]
    assert len(set(train.captions(3))) == len(sources.CIFAR_TEMPLATES)
    assert all(f" {name}" in c for c in train.captions(3))
    stem = tmp_path / ("test_batch.png" if npm else "test_batch.bin")
    stem.write_bytes(stem.read_bytes()[:-200])
    told = "cannot be read" if npm else "records of 3073 bytes"
    assert_refuses(told, open_source, f"cifar10:{tmp_path}:test")
    (tmp_path / ("test_lables.json" if npm else "data_batch_5.bin")).unlink()
    stem.unlink()
    assert_refuses("wants the binary version", open_source, f"cifar10:{tmp_path}:test")


def test_cifar_labels_must_fit(tmp_path):
    cifar(tmp_path, True)
    known = {"[1]": "needs a label 0-9", "[1, 10]": "needs a label 0-9", "[1,": "JSON list", '"a"': "JSON"}
    for content, told in known.items():
        (tmp_path / "test_lables.json").write_text(content)
        assert_refuses(told, open_source, f"cifar10:{tmp_path}:test")
    assert_refuses("the splits train and test", open_source, f"cifar10:{tmp_path}:val")


SMOOTH = np.asarray(Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48), 3))


def test_every_mode_becomes_rgb():
    rgb = Image.fromarray(SMOOTH)
    grey = np.asarray(rgb.convert("L"))
    np.testing.assert_array_equal(decode(encoded(rgb), "x"), SMOOTH)
    np.testing.assert_array_equal(decode(encoded(rgb.convert("L")), "x"), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(decode(encoded(grey.astype(np.uint16) * 257), "x"), np.repeat(grey[..., None], 3, 2))
    for data in (encoded(rgb.quantize(16)), encoded(rgb.convert("L"), "JPEG"), encoded(rgb, "GIF"), encoded(rgb, "BMP"),
                 encoded(rgb.convert("1"))):  # fmt: skip
        found = decode(data, "x")
        assert found.shape == SMOOTH.shape and found.dtype == np.uint8
    cmyk = decode(encoded(rgb.convert("CMYK"), "JPEG", quality=95), "x")
    assert np.abs(cmyk.astype(int) - SMOOTH).mean() < 4 < np.abs(255 - cmyk.astype(int) - SMOOTH).mean()


def test_what_is_transparent_lies_over_white():
    rgba = Image.fromarray(SMOOTH).convert("RGBA")
    alpha = np.zeros(SMOOTH.shape[:2], np.uint8)
    alpha[:10], alpha[10:20] = 255, 51
    rgba.putalpha(Image.fromarray(alpha))
    found = decode(encoded(rgba), "x").astype(float)
    np.testing.assert_array_equal(found[:10], SMOOTH[:10])
    assert (found[20:] == 255).all()
    np.testing.assert_allclose(found[10:20], 255 * 0.8 + 0.2 * SMOOTH[10:20], atol=1)
    palette = Image.fromarray(SMOOTH).quantize(4)
    assert (decode(encoded(palette, transparency=0), "x")[np.asarray(palette) == 0] == 255).all()


@pytest.mark.parametrize(
    "orientation, upright",
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
        (77, lambda x: x),
    ],
)
def test_the_orientation_is_applied(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(SMOOTH, exif=exif), "x"), upright(SMOOTH))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_orientation_is_none():
    data = encoded(SMOOTH, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    np.testing.assert_array_equal(decode(data, "x"), decode(encoded(SMOOTH, "JPEG"), "x"))


def test_a_large_jpeg_comes_reduced_and_no_smaller_than_asked():
    big = np.asarray(Image.fromarray(SMOOTH).resize((640, 480), Image.Resampling.BICUBIC))
    data = encoded(big, "JPEG", quality=95)
    shapes = {least: decode(data, "x", least).shape[:2] for least in (None, 480, 241, 240, 120, 60, 10)}
    assert shapes == {None: (480, 640), 480: (480, 640), 241: (480, 640), 240: (240, 320), 120: (120, 160),
                      60: (60, 80), 10: (60, 80)}  # fmt: skip
    means = big.reshape(240, 2, 320, 2, 3).mean((1, 3))
    assert np.abs(decode(data, "x", 240) - means).mean() < 2


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side, bomb", [(8_000, False), (8_200, True), (12_000, True), (60_000, True)])
def test_a_decompression_bomb_is_not_unpacked(side, bomb):
    """A PNG of a few bytes that claims side x side pixels; what it claims is told, not what little it holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # as a user's Pillow would only warn
        with pytest.raises(BadImage) as caught:
            decode(data, "x")
    assert ("pixels" in caught.value.why) == bomb


@pytest.mark.parametrize("kind", ["EPS", "PPM"])
def test_formats_that_run_programs_are_not_opened(kind):
    with pytest.raises(BadImage, match="cannot identify"):
        decode(encoded(SMOOTH, kind), "x")


def test_a_crop_is_a_part_of_the_asked_area_and_ratio():
    h, w, rng = 60, 80, np.random.default_rng(0)
    parts = np.array([images._part(h, w, rng, (0.25, 0.5), (3 / 4, 4 / 3)) for _ in range(2000)])
    top, left, high, wide = parts.T
    assert (top >= 0).all() and (left >= 0).all() and (top + high <= h).all() and (left + wide <= w).all()
    share, ratio = high * wide / (h * w), wide / high
    assert 0.24 < share.min() and share.max() < 0.52 and 0.72 < ratio.min() and ratio.max() < 1.37
    # Every place where it fits is as likely: the mean of top / room is 1/2 for each height.
    room = h - high
    np.testing.assert_allclose((top[room > 5] / room[room > 5]).mean(), 0.5, atol=0.04)
    # A part that never fits leaves the middle one: 60 x 80 of 60 x 600.
    assert images._part(60, 600, rng, (0.9, 1.0), (3 / 4, 4 / 3)) == (0, 260, 60, 80)
    assert images._part(600, 60, rng, (0.9, 1.0), (3 / 4, 4 / 3)) == (260, 0, 80, 60)


def test_areas_and_log_ratios_of_crops_are_uniform():
    """Kolmogorov and Smirnov's test, alpha 1e-6; in so large an image rounding to pixels is nothing."""
    h, w, rng = 6000, 8000, np.random.default_rng(1)
    parts = np.array([images._part(h, w, rng, (0.25, 0.5), (3 / 4, 4 / 3)) for _ in range(8000)])
    share, ratio = parts[:, 2] * parts[:, 3] / (h * w), parts[:, 3] / parts[:, 2]

    def uniform(x, low, high):
        return scipy.stats.kstest(x, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-6

    assert uniform(share, 0.25, 0.5) and uniform(np.log(ratio), np.log(3 / 4), np.log(4 / 3))
    assert not uniform(share**0.5, 0.5, 0.5**0.5) and not uniform(ratio, 3 / 4, 4 / 3)


def test_a_crop_of_all_is_the_image():
    square = SMOOTH[:, :48]
    rng = np.random.default_rng(0)
    whole = {"size": 48, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    np.testing.assert_array_equal(images.random_resized_crop(square, rng, **whole), square)
    small = images.random_resized_crop(SMOOTH, rng, 16)
    assert small.shape == (16, 16, 3) and small.dtype == np.uint8
    np.testing.assert_allclose(small.mean((0, 1)), SMOOTH.mean((0, 1)), atol=8)


@pytest.mark.parametrize("h, w, size, high, wide", [(48, 64, 24, 24, 32), (48, 64, 48, 48, 64), (64, 47, 32, 43, 32)])
def test_the_evaluation_view_is_the_middle(h, w, size, high, wide):
    image = np.asarray(Image.fromarray(SMOOTH).resize((w, h), Image.Resampling.BICUBIC))
    whole = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC))
    top, left = (high - size) // 2, (wide - size) // 2
    if (high - size) % 2:
        top = 2 * round((high - size) / 4)  # half of an odd rest goes to the even side
    np.testing.assert_array_equal(images.evaluation_view(image, size), whole[top : top + size, left : left + size])


def enlarged(image, size):
    """The view as other toolkits take it: the whole image enlarged, then its middle."""
    h, w = image.shape[:2]
    high, wide = (size, size * w // h) if h <= w else (size * h // w, size)
    top, left = round((high - size) / 2), round((wide - size) / 2)
    whole = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC)
    return np.asarray(whole)[top : top + size, left : left + size]


def test_a_thin_image_is_cut_before_it_is_enlarged():
    rng = np.random.default_rng(2)
    for h, w in ((7, 112), (90, 7), (48, 64), (31, 200)):  # up to 16 to 1 nothing is another
        image = rng.integers(0, 256, (h, w, 3), np.uint8)
        np.testing.assert_array_equal(images.evaluation_view(image, 24), enlarged(image, 24))
    for w in (160, 161, 325, 700):  # a ramp, whose values tell where the view lies: 2 a pixel of 8 in the view
        ramp = np.repeat((np.arange(w) * 16 - w * 8 + 128).clip(0, 255).astype(np.uint8)[None, :, None], 8, 0)
        for image in (np.repeat(ramp, 3, 2), np.repeat(ramp, 3, 2).transpose(1, 0, 2)):
            found, known = images.evaluation_view(image, 64), enlarged(image, 64)
            assert np.abs(found.astype(int) - known).max() <= 4
    tracemalloc.start()
    for shape in ((1, 20_000), (20_000, 1), (1, 65_535)):
        assert images.evaluation_view(np.full((*shape, 3), 7, np.uint8), 224).shape == (224, 224, 3)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_a_side_has_a_limit():
    assert decode(encoded(np.zeros((1, 65_535), np.uint8)), "x").shape == (1, 65_535, 3)
    with pytest.raises(BadImage, match="65536 x 1 pixels are more than 65535 on a side"):
        decode(encoded(np.zeros((1, 65_536), np.uint8)), "x")


def test_scans_without_end_are_not_decoded():
    plain = encoded(Image.new("RGB", (2000, 1500)), "JPEG", progressive=True)
    assert decode(plain, "x").shape == (1500, 2000, 3)
    last = plain.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match="scans of 2000 x 1500 pixels take too long"):
        decode(plain[:last] + plain[last:-2] * 20_000 + b"\xff\xd9", "x")


def test_exif_without_end_is_not_joined():
    plain, segment = encoded(SMOOTH, "JPEG"), b"\xff\xe1\xff\xffExif\0\0" + bytes(65_535 - 8)
    assert decode(plain[:2] + segment * 2 + plain[2:], "x").shape == SMOOTH.shape
    with pytest.raises(BadImage, match="1000 EXIF segments take too long"):
        decode(plain[:2] + segment * 1000 + plain[2:], "x")


@pytest.mark.parametrize("error", [MemoryError, RecursionError, struct.error, Image.DecompressionBombError, KeyError])
def test_whatever_decoding_raises_is_a_bad_image(monkeypatch, error):
    def broken(self):
        raise error

    data = encoded(SMOOTH)
    monkeypatch.setattr(PngImageFile, "load", broken)
    with pytest.raises(BadImage, match=r"x: \w"):
        decode(data, "x")


def test_pillows_warnings_are_not_shown():
    """In a process of its own: pytest has its own filters."""
    script = (
        "import io, numpy as np; from PIL import Image; from sims.clip.records.images import decode;"
        "out = io.BytesIO();"
        "Image.new('RGB', (9, 9)).save(out, 'JPEG', exif=b'Exif\\0\\0MM\\0*\\0\\0\\0\\x08\\xff\\xff');"
        "print(decode(out.getvalue(), 'x').shape)"
    )
    done = python("-c", script, check=True)
    assert (done.stdout, done.stderr) == ("(9, 9, 3)\n", "")
    shown = script.replace("print", "import warnings; warnings.resetwarnings(); print")
    assert "Corrupt EXIF" in python("-c", shown, check=True).stderr


def test_bright_and_dark_are_normalised_on_the_device():
    values = np.array([[[[0, 0, 0], [255, 255, 255], [100, 150, 200]]]], np.uint8)
    found = images.normalise(values)
    assert found.dtype == np.float32
    exact = (values / 255.0 - images.MEAN.astype(float)) / images.STD.astype(float)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    assert images.normalise(np.zeros((2, 2, 4, 4, 3), np.uint8)).shape == (2, 2, 4, 4, 3)


def test_a_crowd_is_not_the_largest_instance(coco):
    crowd = {"id": 5, "image_id": 4, "category_id": 18, "area": 100.0, "iscrowd": 1}
    alone = crowd | {"id": 6, "image_id": 9}
    write(coco, "instances", INSTANCES | {"annotations": [*INSTANCES["annotations"], crowd, alone]})
    assert open_source(f"coco:{coco}").labels.tolist() == [-1, 0]  # one crowd alone is no label
    write(coco, "instances", INSTANCES | {"annotations": [*INSTANCES["annotations"], crowd | {"iscrowd": 0}]})
    assert open_source(f"coco:{coco}").labels.tolist() == [-1, 1]
    for change in ({"iscrowd": "1"}, {"iscrowd": None}, {"area": float("nan")}):
        write(coco, "instances", INSTANCES | {"annotations": [crowd | change]})
        assert_refuses("must be finite, and 0 or 1", open_source, f"coco:{coco}")


def test_an_id_that_is_a_string_is_told(coco):
    write(coco, "captions", COCO | {"images": [{"id": "9", "file_name": "a.png"}]})
    assert_refuses("it must be a whole number, not '9'", open_source, f"coco:{coco}")
    write(coco, "captions", COCO | {"annotations": [{"image_id": "9", "caption": "x" * 300_000}]})
    assert_refuses("it must be a whole number, not '9'", open_source, f"coco:{coco}")


@pytest.mark.parametrize("content, told", [("[" * 100_000, "nested too deeply"), ("<html>", "HTML page")])
def test_deep_or_foreign_json_is_told(coco, content, told):
    for which in ("captions", "instances"):
        write(coco, "captions", COCO)
        (coco / "annotations" / f"{which}_train2017.json").write_text(content)
        assert_refuses(told, open_source, f"coco:{coco}")
    path = coco / "annotations" / "captions_train2017.json"
    path.write_bytes(gzip.compress(b"{}"))
    assert_refuses("compressed by gzip", open_source, f"coco:{coco}")


def test_tars_joined_to_one_file_are_read_whole(shards):
    whole = shards / "all.tar"
    whole.write_bytes(b"".join((shards / f"{s:05d}.tar").read_bytes() for s in range(3)))
    source = open_source(f"tars:{whole}")
    assert len(source) == 9 and source.captions(8) == ("a thing, number 22",)
    np.testing.assert_array_equal(source[8].image, picture(22))
    parts = [(shards / f"{s:05d}.tar").read_bytes() for s in (0, 1)]
    whole.write_bytes(parts[0] + parts[0])
    assert_refuses("twice", open_source, f"tars:{whole}")
    whole.write_bytes(parts[0] + parts[1][:1500])
    assert_refuses("cut short", open_source, f"tars:{whole}")
    whole.write_bytes(parts[0] + b"words" * 200)
    assert_refuses("goes on after its end", open_source, f"tars:{whole}")
    whole.write_bytes(parts[0] + bytes(2 << 20))
    assert_refuses("only zeros from byte", open_source, f"tars:{whole}")


def test_each_line_of_a_text_is_a_caption(tmp_path, capsys):
    lines = b"a dog \n\n the  dog\r\nit runs\n"
    members = [member("a.jpg", JPG), member("a.txt", lines), member("b.jpg", JPG), member("b.txt", b"a cat\n")]
    pack(tmp_path / "x.tar", members)
    source = open_source(f"tars:{tmp_path}/x.tar", classes=["dog", "cat"])
    assert source.captions(0) == ("a dog", "the dog", "it runs") and source.captions(1) == ("a cat",)
    assert source.labels.tolist() == [0, 1] and source[1].captions == ("a cat",)
    assert "1 texts have several lines" in capsys.readouterr().err
    assert open_source(f"tars:{tmp_path}/x.tar").captions(1) == ("a cat",)  # by the sidecar
    # img2dataset's JSON tells a caption that holds line ends.
    for told, expected in (
        (lines.decode(), ("a dog the dog it runs",)),
        ("other words", ("a dog", "the dog", "it runs")),
        ("[" * 9999, ("a dog", "the dog", "it runs")),
    ):
        described = told.encode() if told.startswith("[") else json.dumps({"caption": told}).encode()
        pack(tmp_path / "x.tar", [member("a.json", described), *members])
        assert open_source(f"tars:{tmp_path}/x.tar").captions(0) == expected


def test_headers_take_time_as_they_are_long(tmp_path):
    """What once was quadratic or recursed: PAX headers without an end, and a chain of long names."""
    plain = pack(tmp_path / "p.tar", PAIR).read_bytes()
    for data in (b"1" * (1 << 20), b"11 a=" + b"=" * (1 << 20), b"7 a=bc\n" * ((1 << 20) // 7)):
        info, _ = member("x", type=tarfile.XHDTYPE)
        info.size = len(data) - len(data) % 512
        (tmp_path / "x.tar").write_bytes(info.tobuf() + data[: info.size] + plain)
        began = time.process_time()
        try:
            open_source(f"tars:{tmp_path}/x.tar")
        except UsageError as error:
            assert "PAX header" in str(error)
        assert time.process_time() - began < 5
    info, _ = member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME)
    info.size = 512
    chain = (info.tobuf(tarfile.GNU_FORMAT) + b"long/name.jpg".ljust(512, b"\0")) * 5000
    text = pack(tmp_path / "t.tar", [member("long/name.txt", b"words")]).read_bytes()
    (tmp_path / "x.tar").write_bytes(chain + plain + text)
    assert list(open_source(f"tars:{tmp_path}/x.tar").ids) == ["x.tar/long/name"]


@pytest.mark.parametrize("headers", [{"GNU.sparse.major": "1"}, {"GNU.sparse.map": "0,1"}])
def test_sparse_files_are_refused(tmp_path, headers):
    pack(tmp_path / "x.tar", [*PAIR, member("b.jpg", JPG, pax_headers=headers)])
    assert_refuses("sparse", open_source, f"tars:{tmp_path}/x.tar")
    pack(tmp_path / "x.tar", [*PAIR, member("b.jpg", type=tarfile.GNUTYPE_SPARSE)])
    assert_refuses("sparse", open_source, f"tars:{tmp_path}/x.tar")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_every_format_are_read_as_tarfile_does(tmp_path, form):
    folders = [f"{'x' * 60}/{'y' * 80}/é{i}" for i in range(3)]
    if form != tarfile.USTAR_FORMAT:
        folders.append("z" * 400 + "/q")
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        for i, name in enumerate(folders):
            for info, data in (member(f"{name}.jpg", encoded(picture(i))), member(f"{name}.txt", b"word")):
                tar.addfile(info, io.BytesIO(data))
    with tarfile.open(tmp_path / "x.tar") as tar:
        known = {m.name: m.offset_data for m in tar if m.name.endswith(".jpg")}
    index = tars.scan(str(tmp_path / "x.tar"))
    assert {f"{key}.jpg": at for key, at in zip(index.keys, index.offset.tolist(), strict=True)} == known


def test_a_damaged_index_of_any_kind_is_made_anew(shards):
    """Every byte of a sidecar, one at a time: its index is the tar's, or there is none."""
    path = shards / "00001.tar"
    open_source(f"tars:{path}")
    sidecar = shards / "00001.tar.index.npz"
    whole, known = sidecar.read_bytes(), tars.stored(str(path))
    rng = np.random.default_rng(0)
    for at in rng.permutation(len(whole))[:300]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        sidecar.write_bytes(damaged)
        if (found := tars.stored(str(path))) is not None:
            assert list(found.captions) == list(known.captions) and list(found.keys) == list(known.keys)
            assert (found.offset == known.offset).all() and (found.size == known.size).all()

"""`sims.clip.embed`: features equal those of the encoder, a killed run resumes to the same bytes, what is refused."""

import csv
import json
import signal

import numpy as np
import pytest
from PIL import Image

from examples.features import cifar10
from sims.clip import embed as command
from sims.clip.model.encoder import Encoder
from sims.clip.records.sources import open_source
from sims.clip.zero_shot import features, scoring, towers
from sims.clip.zero_shot.features import Work
from sims.clip.zero_shot.towers import Towers
from sims.diagnose import __main__ as diagnose
from sims.engine import store
from sims.engine.flags import UsageError
from tests.helpers import assert_refused, assert_refuses, contents, csv_rows, python

WEIGHTS = np.random.default_rng(0).normal(size=(3, 5))
TEMPLATES = ("a {}", "the {} there")


def image(batch):
    return np.stack([x.mean((0, 1)) @ WEIGHTS for x in batch])


def text(batch):
    return np.array([[len(s), s.count("a") / 3, s.count("o") / 7] for s in batch], np.float32)


def encoder():
    return image, text


@pytest.fixture
def data(tmp_path):
    """21 images of three sizes with one to three captions each; the last has no label."""
    folder, rng = tmp_path / "data", np.random.default_rng(1)
    folder.mkdir()
    rows = [["path", "caption", "label", "attribute"]]
    for i in range(21):
        Image.fromarray(rng.integers(0, 256, (8 + i % 3, 9, 3), np.uint8)).save(folder / f"{i}.png")
        kind = ("dog", "cat")[i % 2] if i < 20 else "", ("sofa", "grass")[i // 2 % 2]
        rows += [[f"{i}.png", f"a {kind[0]}, {kind[1]} {j}", *kind] for j in range(1 + i % 3)]
    with open(folder / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def work(data, **changed):
    source = open_source(f"csv:{data}/t.csv")
    given = {"towers": Towers("mine", image, text), "batch_size": 2, "shard": 5, "precision": "float16"}
    return Work(source=source, indices=np.arange(20), templates=TEMPLATES, **{**given, **changed})


def results(out):
    """Bytes by name of all that a run writes, its lock apart."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def check_features(out, of_image=image, of_text=text):
    rows = [row for row in csv_rows(out.parent / "data" / "t.csv") if row["label"]]
    pictures = [np.asarray(Image.open(out.parent / "data" / row["path"])) for row in rows]
    arrays = {name: np.load(out / f"{name}.npy") for name in ("image", "text", "labels", "attributes", "units")}
    np.testing.assert_array_equal(arrays["image"], of_image(pictures).astype(np.float16))
    np.testing.assert_array_equal(arrays["text"], of_text([row["caption"] for row in rows]).astype(np.float16))
    assert arrays["labels"].tolist() == [row["label"] for row in rows]
    assert arrays["attributes"].tolist() == [row["attribute"] for row in rows]
    assert [f"{i}.png" for i in arrays["units"]] == [row["path"] for row in rows]
    assert csv_rows(out / "captions.csv") == [{"image": row["path"], "captions": row["caption"]} for row in rows]


def test_features_are_the_encoders(data, tmp_path):
    out = tmp_path / "out"
    found = features.embed(work(data), out)
    check_features(out)
    for other in ({"of_image": lambda x: image(x)[::-1]}, {"of_text": lambda x: text(x) + np.float32(0.01)}):
        with pytest.raises(AssertionError):
            check_features(out, **other)
    assert json.loads((out / "classes.json").read_text()) == found["classes"] == ["cat", "dog"]
    means = [text([t.replace("{}", name) for t in TEMPLATES]).mean(0) for name in ("cat", "dog")]
    np.testing.assert_array_equal(np.load(out / "prompts.npy"), np.stack(means).astype(np.float16))
    assert (found["images"], found["pairs"]) == (20, 39) == (20, len(np.load(out / "units.npy")))
    assert not (out / "checkpoints").exists()


def test_the_diagnosis_reads_the_folder(data, tmp_path):
    features.embed(work(data), tmp_path / "out")
    values = dict.fromkeys((*diagnose.NEEDED, "prompts", "units")) | {"data": str(tmp_path / "out")}
    arrays = diagnose.load(values)
    assert set(arrays) == set(values) - {"data"}
    assert all(np.array_equal(x, np.load(tmp_path / "out" / f"{name}.npy")) for name, x in arrays.items())
    (tmp_path / "out" / "units.npy").unlink()
    assert "units" not in diagnose.load(values)
    (tmp_path / "out" / "text.npy").unlink()
    assert_refuses("cannot be read", diagnose.load, values)


def test_rounding_is_stated(data, tmp_path):
    texts = [open_source(f"csv:{data}/t.csv").captions(i) for i in range(20)]
    exact = text([caption for group in texts for caption in group]).astype(float)

    def largest(dtype):
        lost = np.linalg.norm(exact.astype(dtype).astype(float) - exact, axis=1) / np.linalg.norm(exact, axis=1)
        return lost.max()

    found = features.embed(work(data), tmp_path / "out")
    stated = found["largest_relative_rounding"]
    assert stated["text"] == pytest.approx(largest(np.float16), rel=1e-12) and stated["text"] > largest(np.float32)
    assert 1e-5 < stated["image"] < 2**-10
    assert f"{stated['image']:.1e} (image)" in features.text(found, tmp_path)
    assert json.loads((tmp_path / "out" / features.SUMMARY).read_text()) == found
    found = features.embed(work(data, precision="float32"), tmp_path / "other")
    assert found["largest_relative_rounding"]["text"] == 0.0 < found["largest_relative_rounding"]["image"] < 2**-23
    assert np.load(tmp_path / "other" / "image.npy").dtype == np.float32


def interrupt(patch, number):
    """Interrupt the number-th write of a shard after half of its bytes."""
    write, writes = features._write, []

    def interrupted(file, part):
        writes.append(file)
        write(file, part)
        if len(writes) == number:
            half = file.read_bytes()[: file.stat().st_size // 2]
            file.unlink()
            file.with_name(f".{file.name}.new").write_bytes(half)
            raise KeyboardInterrupt

    patch.setattr(features, "_write", interrupted)


@pytest.mark.parametrize("damage", [None, "cut", "flipped", "removed"])
def test_a_stopped_run_resumes_to_the_same_bytes(data, tmp_path, monkeypatch, damage):
    features.embed(work(data), tmp_path / "whole")
    out = tmp_path / "out"
    for number in (3, 1):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, number)
            features.embed(work(data), out)
    assert not (out / "image.npy").exists()
    done = sorted((out / "checkpoints").glob("0*.npz"))
    assert len(done) == 2
    content = done[1].read_bytes()
    changed = {"cut": content[:-9], "flipped": content[:200] + bytes([content[200] ^ 1]) + content[201:]}
    if damage == "removed":
        done[1].unlink()
    elif damage:
        done[1].write_bytes(changed[damage])
    sizes = []

    def counted(batch):
        sizes.append(len(batch))
        return image(batch)

    features.embed(work(data, towers=Towers("mine", counted, text)), out)
    assert sum(sizes) == 2 + (10 if damage is None else 15)  # the first batch, and what was missing
    assert results(out) == results(tmp_path / "whole")
    (out / "image.npy").write_bytes((out / "image.npy").read_bytes()[:-1] + b"x")
    assert results(out) != results(tmp_path / "whole")


KILLED = """
import os, signal, sys, pathlib
from tests.clip import test_embed as t
calls = []
def image(batch):
    calls.append(0)
    if len(calls) == 9:  # in the third shard
        os.kill(os.getpid(), signal.SIGKILL)
    return t.image(batch)
t.features.embed(t.work(pathlib.Path(sys.argv[1]), towers=t.Towers("mine", image, t.text)), pathlib.Path(sys.argv[2]))
"""


@pytest.mark.costly
def test_a_killed_run_resumes_to_the_same_bytes(data, tmp_path):
    assert python("-c", KILLED, data, tmp_path / "out").returncode == -signal.SIGKILL
    assert len(list((tmp_path / "out" / "checkpoints").glob("0*.npz"))) == 2
    for name in ("out", "whole"):
        features.embed(work(data), tmp_path / name)
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_another_encoder_or_setting_is_refused(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 3)
        features.embed(work(data), out)
    before = contents(out)
    others = {
        "first images have other features": {"towers": Towers("mine", lambda x: image(x) * 1.02, text)},
        "first captions have other features": {"towers": Towers("mine", image, lambda x: text(x)[:, :2])},
        "differs in encoder": {"towers": Towers("other", image, text)},
        "differs in precision": {"precision": "float32"},
        "differs in batch_size": {"batch_size": 3},
    }
    for said, changed in others.items():
        assert_refuses(said, features.embed, work(data, **changed), out)
    table = (data / "t.csv").read_text()
    (data / "t.csv").write_text(table.replace("a dog, sofa 0", "a dog, sofa zero"))
    assert_refuses("differs in pairs", features.embed, work(data), out)
    (data / "t.csv").write_text(table)
    with store.locked(out), pytest.raises(UsageError, match="being written by another run"):
        features.embed(work(data), out)
    assert {p for p, x in contents(out).items() if x != before.get(p)} <= {out / ".lock"}
    features.embed(work(data, precision="float32"), out, overwrite=True)
    assert np.load(out / "text.npy").dtype == np.float32


def test_a_finished_folder_is_not_done_again(data, tmp_path, capsys):
    """One batch alone is encoded, to see that it is the same encoder; images of another size are other images."""
    out = tmp_path / "out"
    found = features.embed(work(data), out)
    before, batches = results(out), []
    counted = Towers("mine", lambda batch: batches.append(len(batch)) or image(batch), text)
    assert features.embed(work(data, towers=counted), out) == found
    assert "already holds these features" in capsys.readouterr().err and batches == [2]
    other = work(data, towers=Towers("mine", image, lambda x: text(x) + np.float32(1)))
    said = "first captions have other features than those in the folder, from other files or another mine"
    assert_refuses(said, features.embed, other, out)
    picture = (data / "7.png").read_bytes()
    (data / "7.png").write_bytes(picture + b" ")
    assert_refuses("differs in image_sizes", features.embed, work(data), out)
    (data / "7.png").write_bytes(picture)
    assert features.embed(work(data), out) == found and results(out) == before
    (out / "image.npy").unlink()
    assert_refuses("is finished, but cannot be read", features.embed, work(data), out)


def later(change):
    """The image tower, changed from the fourth batch on."""
    count = iter(range(99))
    return lambda batch: change(image(batch)) if next(count) > 3 else image(batch)


TOO = {
    "must give floats, a row for each of 2, got float64 of shape (1, 5)": lambda x: x[:1],
    "got float64 of shape (10,)": lambda x: x.ravel(),
    "got object of shape (2, 5)": lambda x: x.astype(object),
    "got int64 of shape (2, 5)": lambda x: x.astype(int),
    "got float64 of shape (2, 0)": lambda x: x[:, :0],
    "gives no array": lambda x: [[1.0], [1.0, 2.0]],
    " of mine raised ValueError in test_embed.py, line ": lambda x: x @ x,
    "gives a number that is not finite": lambda x: np.where(np.arange(5) == 3, np.nan, x),
    "which float16 does not hold; give --precision=float32": lambda x: x * 1e6,
    "of up to 1e-08 in a row, which float16 does not hold": lambda x: np.full_like(x, 1e-8),
}


@pytest.mark.parametrize("said, change", TOO.items())
def test_what_is_no_features_is_refused_before_anything_is_written(data, tmp_path, said, change):
    for changed in (
        Towers("mine", lambda x: change(image(x)), text),
        Towers("mine", image, lambda x: change(image([np.ones((2, 2, 3))] * len(x)))),
    ):
        assert_refuses(said, features.embed, work(data, towers=changed), tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "said, change", [*TOO.items(), ("rows of 4 numbers, and gave rows of 5 before", lambda x: x[:, :4])]
)
def test_what_comes_later_is_refused_and_earlier_shards_are_kept(data, tmp_path, said, change):
    assert_refuses(said, features.embed, work(data, towers=Towers("mine", later(change), text)), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.npy"))
    features.embed(work(data), tmp_path / "out")
    features.embed(work(data), tmp_path / "whole")
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_unreadable_images_are_left_out_and_named(data, tmp_path):
    (data / "3.png").write_bytes(b"no image")
    out = tmp_path / "out"
    found = features.embed(work(data), out)
    assert list(found["unreadable"]) == ["3.png"] and found["images"] == 19
    assert sorted(set(np.load(out / "units.npy"))) == [i for i in range(20) if i != 3]
    assert len(np.load(out / "text.npy")) == len(np.load(out / "image.npy")) == found["pairs"] == 38
    assert "1 images could not be read" in features.text(found, out)
    for i in range(2):
        (data / f"{i}.png").write_bytes(b"")
    said = "none of the first 2 images can be read, such as 0.png (the file is empty)"
    assert_refuses(said, features.embed, work(data), tmp_path / "other")


def test_a_clips_features_have_length_1_and_its_prompts_are_those_of_evaluate(data, tmp_path):
    shapes = set()

    def encode_image(batch):
        shapes.add(batch.shape)
        return image(list(batch))

    clip = towers.of_clip("clip", Encoder("clip", 6, encode_image, text), 2)
    features.embed(work(data, towers=clip, precision="float32"), tmp_path / "out")
    assert shapes == {(2, 6, 6, 3)}
    arrays = {name: np.load(tmp_path / "out" / f"{name}.npy") for name in ("image", "text", "prompts")}
    for x in arrays.values():
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-6)
    expected = scoring.text_weights(text, ("cat", "dog"), TEMPLATES)
    np.testing.assert_allclose(arrays["prompts"], expected, rtol=1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(arrays["prompts"], expected[::-1], rtol=1e-6)
    assert_refuses("sl has no text tower", towers.of_clip, "sl", Encoder("sl", 6, encode_image), 2)


MINE = "--encoder=tests.clip.test_embed:encoder"


def no_towers():
    return image


class Objects:
    image, text = staticmethod(image), staticmethod(text)


def test_the_command(data, tmp_path, mmcl):
    given = f"--data=csv:{data}/t.csv", f"--out={tmp_path}/out"
    code, out, err = mmcl(command, MINE, *given)
    assert code == 0
    assert out.startswith("20 images, 39 pairs, 2 classes and 2 attributes; features of 5 and 3 numbers\n")
    assert out.endswith(f"python -m sims.diagnose --data={tmp_path}/out\n")
    assert "\n1 images without a label or an attribute are left out\n" in out and err == ""
    check_features(tmp_path / "out")
    assert_refused(mmcl(command, MINE, *given, "--precision=float32"), "differs in pre")
    assert mmcl(command, "--encoder=tests.clip.test_embed:Objects", given[0], f"--out={tmp_path}/other")[0] == 0
    first, other = (results(tmp_path / name) for name in ("out", "other"))
    assert {name for name in first if first[name] != other[name]} == {"config.json"}  # the encoder's name


def test_bad_input_is_one_line_and_writes_nothing(data, tmp_path, mmcl):
    own, table = "--encoder=tests.clip.test_embed", f"--data=csv:{data}/t.csv"
    (data / "no.csv").write_text("path,caption\n0.png,\n")
    (data / "lost.csv").write_text("path,caption\n0.png,a\n99.png,b\n")
    (data / "unnamed.csv").write_text("path,caption,attribute\n0.png,a,\n")
    cases = [
        ([table], "needs a model: --run=DIR, --weights=FILE or --encoder=MODULE:FUNCTION."),
        ([MINE, "--run=x", table], "leave out --run."),
        (["--weights=x", table], "--weights needs --architecture and --vocabulary."),
        ([MINE], "--data must name captioned images, such as csv:table.csv."),
        ([MINE, table, "--precision=float64"], "--precision must be of float16, float32, got 'float64'."),
        ([MINE, table, "--batch_size=0"], "--batch_size must be >= 1, got 0."),
        ([MINE, "--data=folder:x"], "--data must be coco:DIR"),
        ([MINE, f"--data=csv:{data}/no.csv"], "no line with a path and a caption"),
        ([MINE, f"--data=csv:{data}/lost.csv"], f"csv lists the image {data}/99.png, which is not there."),
        ([MINE, f"--data=csv:{data}/unnamed.csv"], "csv has no captioned image with a label and an attribute."),
        ([own, table], "--encoder must be MODULE:FUNCTION"),
        (["--encoder=no_such_module:f", table], "cannot be imported (No module named 'no_such_module')."),
        ([f"{own}:f", table], "cannot be imported (module 'tests.clip.test_embed' has no"),
        ([f"{own}:MINE", table], "is no function."),
        ([f"{own}:work", table], "test_embed:work raised TypeError in "),
        ([f"{own}:no_towers", table], "must return an object with the functions image and text"),
    ]
    before = contents(tmp_path)
    for arguments, said in cases:
        assert_refused(mmcl(command, *arguments, f"--out={tmp_path}/out"), said)
    assert contents(tmp_path) == before


def test_the_example_frames_cats_and_dogs(tmp_path):
    """As CIFAR-10's binary version has them: a label, then red, green and blue."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, 7, (6, 100))  # cats, deer, dogs, frogs
    pictures = rng.integers(0, 256, (6, 100, 3, 32, 32), np.uint8)
    (tmp_path / "package").mkdir()
    for name, y, x in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], labels, pictures, strict=True):
        (tmp_path / "package" / f"{name}.bin").write_bytes(np.c_[y, x.reshape(100, -1)].astype(np.uint8).tobytes())
    cifar10.main(str(tmp_path / "package"), str(tmp_path / "images"))
    rows = csv_rows(tmp_path / "images" / "table.csv")
    chosen = np.isin(labels.ravel(), [3, 5])
    assert [row["label"] for row in rows] == [{3: "cat", 5: "dog"}[y] for y in labels.ravel()[chosen]]
    agrees = [row["attribute"] == cifar10.USUAL[row["label"]] for row in rows]
    assert 0.8 < np.mean(agrees) < 0.97
    for row, picture in list(zip(rows, pictures.reshape(-1, 3, 32, 32)[chosen], strict=True))[:20]:
        framed = np.asarray(Image.open(tmp_path / "images" / row["path"]))
        assert (framed[4:-4, 4:-4] == picture.transpose(1, 2, 0)).all()
        assert (framed[[0, 3, -4, -1]] == cifar10.COLOURS[row["attribute"]]).all()
        assert row["caption"].startswith(f"a photo of a {row['label']}")
        assert ("border" in row["caption"]) == (f"with a {row['attribute']} border" in row["caption"])


def test_the_example_measures_the_pixels():
    """Of two pictures, the first is brighter, colder and has all its edges on the left."""
    first, second = np.full((2, 32, 32, 3), 40, np.uint8)
    first[::2, :16], first[..., 2] = 250, 255
    second[::2, 16:, 0] = 90
    words = cifar10.measured(np.stack([first, second]))
    busy = ["busier on the left", "busier on the right"]
    assert list(map(list, words)) == [["bright", "dark"], ["cold", "warm"], busy]

"""Items from disk: what is refused, what is warned of, and what style is measured."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import scipy.ndimage

from sims.digits import images
from sims.digits.config import parse_groups
from sims.engine.flags import UsageError

KINDS = parse_groups("01234:56789")


def idx(array):
    """An array of bytes as the content of an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def digits(n, seed, side=8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, side, side)), np.arange(n) % 10


@pytest.fixture
def folder(tmp_path):
    """The four files of a source that is no one's."""
    for part, n in (("train", 40), ("t10k", 20)):
        ink, labels = digits(n, n)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(ink))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def load(folder, pool=1):
    return images.load(f"idx:{folder}", KINDS, pool)


def test_idx_files_are_read_as_written(folder, capsys):
    source = load(folder)
    assert "neither MNIST's nor Fashion-MNIST's" in capsys.readouterr().err and source.name == "idx"
    ink, labels = digits(40, 40)
    order = np.argsort(labels >= 5, kind="stable")
    np.testing.assert_array_equal(source.train.ink, ink[order])
    np.testing.assert_array_equal(source.train.item, labels[order])
    assert source.train.low == 20 and (source.train.item[:20] < 5).all() and (source.train.item[20:] >= 5).all()
    assert source.test.ink.shape == (20, 8, 8) and source.train.small.shape == (40, 4, 4)


def test_compressed_files_are_the_same(folder):
    plain = load(folder)
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = load(folder)
    assert packed.digest == plain.digest
    np.testing.assert_array_equal(packed.train.ink, plain.train.ink)


def test_files_are_read_under_other_names_and_packed_or_not_whatever_the_name(folder, monkeypatch):
    plain = load(folder)
    for i, path in enumerate(sorted(folder.iterdir())):
        name, content = path.name.replace("-idx", ".idx"), path.read_bytes()
        path.unlink()
        path.with_name(name if i % 2 else f"{name}.gz").write_bytes(gzip.compress(content) if i % 2 else content)
    assert load(folder).digest == plain.digest
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load(f"~/{folder.name}").digest == plain.digest


def test_the_digest_tells_data_apart(folder):
    before = load(folder).digest
    path = folder / "t10k-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[-1], content[-2] = content[-2], content[-1]
    path.write_bytes(bytes(content))
    assert load(folder).digest != before


def test_a_known_source_is_told_by_its_checksums(folder, monkeypatch, capsys):
    known = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in images._KNOWN["mnist"]}
    monkeypatch.setitem(images._KNOWN, "mnist", known)
    assert load(folder).name == "mnist" and not capsys.readouterr().err
    monkeypatch.setitem(images._KNOWN, "mnist", known | {"train-images-idx3-ubyte": "0" * 32})
    assert load(folder).name == "idx"
    error = capsys.readouterr().err
    assert "checksum of train-images-idx3-ubyte is not mnist's" in error and error.startswith("warning: ")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    "name, content, told",
    [
        (IMAGES, None, "has no train-images-idx3-ubyte"),
        (IMAGES, b"", "is not an IDX file"),
        (IMAGES, b"\x89PNG" + bytes(100), "starts with 89504e47"),
        (IMAGES, b"\n<!DOCTYPE html><html>", "is a web page"),
        (IMAGES, idx(digits(40, 0)[0])[:9], "is cut short"),
        (IMAGES, idx(digits(40, 0)[0])[:-1], "must have 2576 bytes"),
        (IMAGES, idx(digits(40, 0)[0]) + b"x", "must have 2576 bytes"),
        (IMAGES, bytes([0, 0, 0x0D, 3]) + bytes(12), "starts with 00000d03"),
        (IMAGES, idx(np.zeros((40, 8, 9))), "must hold square images"),
        (IMAGES, idx(np.zeros((40, 6, 6))), "of an even side >= 8"),
        (IMAGES, idx(np.zeros((40, 9, 9))), "of an even side >= 8"),
        (IMAGES, idx(np.zeros((40, 10, 10))), "differ in size"),
        (IMAGES, idx(np.zeros((39, 8, 8))), "a label for each of 39 images"),
        (LABELS, idx(np.arange(40) % 11), "must hold labels 0-9, has label 10"),
        (LABELS, idx(np.arange(40) % 9), "lacks some"),
        (LABELS, idx(np.zeros((40, 8, 8))), "a label for each"),
    ],
)
def test_bad_files_are_refused_in_a_line(folder, name, content, told):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load(folder)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_gzip_is_refused(folder, damage):
    path = folder / IMAGES
    packed = bytearray(gzip.compress(path.read_bytes()))
    if damage == "flipped":
        packed[len(packed) // 2] ^= 0xFF
    content = {"cut": bytes(packed[:-20]), "flipped": bytes(packed)}[damage]
    path.unlink()
    path.with_name(f"{IMAGES}.gz").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        load(folder)


def test_a_name_that_cannot_be_is_told():
    with pytest.raises(UsageError, match=r"cannot be read .*too long"):
        load("x" * 300)


@pytest.mark.parametrize("data", ["idx", "idx:", "mnist", "IDX:x", ""])
def test_other_sources_are_refused(data):
    with pytest.raises(UsageError, match="builtin or idx:DIR"):
        images.load(data, KINDS)


@pytest.mark.parametrize(
    "text", ["", "01234", "01234:5678", "01234:567899", "0123456789:", ":0123456789", "a:b", "0:1:2"]
)
def test_groups_are_all_digits_once(text):
    with pytest.raises(ValueError, match="each once"):
        parse_groups(text)
    assert parse_groups("97531:02468") == (1, -1) * 5


def test_pooling_averages_and_must_divide(folder):
    whole, pooled = load(folder), load(folder, pool=2)
    means = whole.train.ink.reshape(40, 4, 2, 4, 2).astype(float).mean((2, 4))
    assert np.abs(pooled.train.ink - means).max() <= 0.5
    with pytest.raises(UsageError, match=r"--pool must divide half of the images' side, 4, got 3"):
        load(folder, pool=3)


def test_the_embedded_digits_are_real():
    source = images.load("builtin", KINDS)
    assert source.name == "builtin" and len(source.train.item) + len(source.test.item) == 1797
    assert source.train.side == 12 and (np.bincount(source.test.item, minlength=10) > 20).all()
    for part in (source.train, source.test):
        assert (part.ink[:, 2:-2, 2:-2].mean((1, 2)) > 20).all() and (part.ink[:, :2] == 0).all()
    # Half of the training images are over each median, and the thresholds are theirs for the test images too.
    assert np.abs(source.train.style.mean(0) - 0.5).max() < 0.01


def disc(radius, side=41):
    at = np.arange(side) - side // 2
    return (at[:, None] ** 2 + at[None, :] ** 2 <= radius**2) * 255


def bar(width, height=20, side=41):
    image = np.zeros((side, side))
    image[10 : 10 + height, 15 : 15 + width] = 255
    return image


def test_style_is_what_geometry_says():
    shapes = np.stack([bar(3), bar(6), disc(6), disc(12)])
    slant, stroke, size = images.measure_style(shapes).T
    np.testing.assert_allclose(slant, 0, atol=1e-12)
    # Twice the area over the outline: 2wh / 2(w + h) of a bar.
    np.testing.assert_allclose(stroke[:2], [2 * 60 / 46, 2 * 120 / 52], rtol=0.05)
    # Uniform on a disc: E r^2 = R^2 / 2.
    np.testing.assert_allclose(size[2:], [6 / 2**0.5, 12 / 2**0.5], rtol=0.03)


@pytest.mark.parametrize("shear", [-0.5, 0.25, 0.5])
def test_slant_is_the_shear(shear):
    """Column = column_0 - shear (row - middle): a digit whose top leans right by `shear`."""
    upright = scipy.ndimage.gaussian_filter(bar(4).astype(float), 1)
    matrix = np.array([[1, 0], [shear, 1]])
    centre = np.array([19.5, 16.5])
    leaning = scipy.ndimage.affine_transform(upright, matrix, centre - matrix @ centre, order=1)
    slant = images.measure_style(np.stack([upright, leaning]))[:, 0]
    np.testing.assert_allclose(slant, [0, shear], atol=0.02)


def test_an_image_without_ink_has_no_style():
    np.testing.assert_array_equal(images.measure_style(np.zeros((2, 8, 8), np.uint8)), np.zeros((2, 3)))

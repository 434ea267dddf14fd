"""Files that are not what they should be: each failure is a short reason, and what was written is what is read."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pytest

from sims.clip.records import reading
from sims.engine.flags import UsageError
from tests.helpers import assert_refuses


@pytest.mark.parametrize(
    "content, told",
    [
        (gzip.compress(b"{}"), "compressed by gzip"),
        (bz2.compress(b"{}"), "compressed by bzip2"),
        (lzma.compress(b"{}"), "compressed by xz"),
        (b"PK\x03\x04rest", "a zip archive"),
        ("{}".encode("utf-16"), "UTF-16 text"),
        (b"\n <!DOCTYPE html>\n<html>", "an HTML page"),
        (b"\xef\xbb\xbf<HTML>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b'{"a": "\xe9"}', "no UTF-8 text: byte 7"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"", "Expecting value"),
        (b"[1, " + b"x" * 300_000, "Expecting value"),
        (b"1" * 5000, "4300 digits"),
    ],
)
def test_what_is_no_json_is_told_in_a_few_words(tmp_path, content, told):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        reading.json_of(path)
    assert told in str(caught.value) and len(reading.reason(caught.value)) <= 130
    assert_refuses(("x.json is damaged (", "); make it again."), reading.own_json, path, "make it again")


def test_plain_json_is_read(tmp_path):
    path = tmp_path / "x.json.gz"  # plain content under a packed name is plain
    path.write_text('\ufeff{"a": [1, "é"]}', encoding="utf-8")
    assert reading.json_of(path) == {"a": [1, "é"]} == reading.own_json(path, "")


def test_a_seal_holds_every_character(tmp_path):
    content = {"rows": [{"accuracy": 0.1 + 0.2, "group": "aligned", "step": None}], "n": 3}
    path = tmp_path / "x.json"
    path.write_text(reading.sealed(content))
    assert reading.unsealed(path, "") == content
    whole = path.read_text()
    for at in range(len(whole)):
        damaged = whole[:at] + chr(ord(whole[at]) ^ 1) + whole[at + 1 :]
        path.write_text(damaged)
        try:  # a blank or a quote's escape may be written otherwise and mean the same
            assert reading.unsealed(path, "mend it") == content
        except UsageError as error:
            assert "mend it" in str(error)
    path.write_text(json.dumps(content))
    assert_refuses("damaged or of an earlier version", reading.unsealed, path, "mend it")


def test_arrays_are_those_that_were_written_or_none(tmp_path):
    path, kept = tmp_path / "x.npz", {"a": np.arange(5), "b": np.eye(2)}
    np.savez(path, **kept)
    whole, refused = path.read_bytes(), 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        try:
            found = reading.arrays_of(path)
            assert all((found[name] == kept[name]).all() for name in found.keys() & kept.keys())
        except (ValueError, OSError):
            refused += 1
    assert refused > len(whole) / 3
    np.save(tmp_path / "y.npy", np.eye(2))
    for name, error in (("y.npy", ValueError), ("none", OSError)):
        with pytest.raises(error):
            reading.arrays_of(tmp_path / name)


def test_long_values_are_cut():
    assert reading.brief("a\n b") == "a b" and len(reading.brief("x" * 300_000)) < 130
    assert "(300000 characters)" in reading.brief("x" * 300_000)

"""Ids of captions are CLIP's; a trained vocabulary writes any text and is the same whenever it is trained."""

import gzip
import itertools
import json
import os
import pathlib
import pickle

import numpy as np
import pytest

from sims.clip.records import tokenizer
from tests.helpers import assert_refuses

REFERENCE = pathlib.Path(__file__).parent / "reference"
CASES = json.loads((REFERENCE / "token_ids.json").read_text())
HEADER = '"bpe_simple_vocab_16e6.txt#version: 0.2'
WORDS = [("a", "one", "this"), ("small", "large", "red"), ("dog", "cat", "wolf"), ("sea", "house", "snow")]
CAPTIONS = [f"{a} {b} {c} near the {d}" for a, b, c, d in itertools.product(*WORDS)]


def lines_of_a_vocabulary():
    """A file as long as CLIP's: the merges the captions use on their own lines, and others that never apply.

    The others join bytes that no UTF-8 text holds, each a token before it and one byte more.
    """
    wanted = {int(number): merge for number, merge in json.loads((REFERENCE / "merges.json").read_text()).items()}
    unused = [tokenizer._LETTERS[byte] for byte in (0xC0, 0xC1, *range(0xF5, 0x100))]
    tokens = (word for length in itertools.count(2) for word in itertools.product(unused, repeat=length))
    fillers = ("".join(token[:-1]) + " " + token[-1] for token in tokens)
    return [HEADER, *(wanted.get(number) or next(fillers) for number in range(2, tokenizer.MERGES + 2))]


def write(path, lines, opener=gzip.open):
    with opener(path, "wb") as file:
        file.write("\n".join(lines).encode())
    return path


@pytest.fixture(scope="module")
def lines():
    return lines_of_a_vocabulary()


@pytest.fixture(scope="module", params=["rebuilt", *(["full"] if "CLIP_VOCABULARY" in os.environ else [])])
def clip(request, lines, tmp_path_factory):
    if request.param == "full":
        return tokenizer.clip_tokenizer(os.environ["CLIP_VOCABULARY"])
    return tokenizer.clip_tokenizer(write(tmp_path_factory.mktemp("clip") / "bpe.txt.gz", lines))


@pytest.fixture(scope="module")
def trained():
    return tokenizer.train_tokenizer(CAPTIONS, 320, 16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["caption"][:20] or "empty")
def test_ids_are_the_references(clip, case):
    ids = clip.encode(case["caption"])
    assert ids.shape == (77,) and ids.dtype == np.int32
    assert ids.tolist() == case["ids"] + [0] * (77 - len(case["ids"]))


def test_there_are_49408_and_the_end_is_the_largest(clip):
    assert clip.vocabulary_size == 49408
    assert (clip.encode_all([case["caption"] for case in CASES]).argmax(1) == [len(c["ids"]) - 1 for c in CASES]).all()
    assert clip.encode_all([]).shape == (0, 77)


def test_a_vocabulary_shifted_by_a_line_gives_other_ids(lines, tmp_path):
    shifted = tokenizer.clip_tokenizer(write(tmp_path / "bpe.txt", [lines[0], "À Ā", *lines[1:-1]], open))
    same = {c["caption"] for c in CASES if shifted.encode(c["caption"]).tolist()[: len(c["ids"])] == c["ids"]}
    assert same == {"", "12345 67,890 3.14159"}, "these need no merge"


def test_what_is_decoded_is_the_clean_text_with_spaces_between_words(clip):
    assert clip.decode(clip.encode("  It's a\tCAF\u00c9 &amp; bar!")) == "it 's a café & bar !"
    assert clip.decode(clip.encode("")) == ""
    with pytest.raises(ValueError, match=r"ids must be in 0\.\.49407, got 49408"):
        clip.decode([49408])


def test_a_caption_cannot_write_the_end_token(clip):
    ids = clip.encode("a <end_of_text> b </w> c").tolist()
    assert ids.count(49407) == 1 and ids[ids.index(49407) + 1] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don\u2019t \u201cquote\u201d", 'don\'t "quote"'),
        ("It&rsquo;s &amp;amp; so", "it's & so"),
        ("cafe\u0301", "caf\u00e9"),
        ("\ufb01ne \uff21\uff0c\u3000b", "fine a, b"),
        ("a\u00a0b\u2028c\x00\ufeff", "a b c"),
        ("lone \ud83d", "lone \ufffd"),
    ],
)
def test_clean_text(text, expected):
    assert tokenizer.clean(text) == expected


def test_a_trained_vocabulary_writes_any_text(trained):
    for text in ("a small dog near the sea", "Zürich 2026, 日本 😀 `\x7f~", "</w> <end>", "it's\n\nx  y"):
        ids = tokenizer.Tokenizer(trained._bpe, 99).encode(text)
        assert tokenizer.Tokenizer(trained._bpe, 99).decode(ids) == tokenizer.clean(text)
    ids = trained.encode("a small dog near the sea")
    assert (ids > 0).sum() == 8 and ids.argmax() == 7 and ids[7] == trained.vocabulary_size - 1, "whole words"
    cut = trained.encode("x y z " * 20)
    assert cut.argmax() == 15 and cut[0] == trained.vocabulary_size - 2
    assert trained.vocabulary_size <= 320 and tokenizer.train_tokenizer(CAPTIONS, 270).vocabulary_size == 270


def test_training_is_deterministic_and_depends_on_the_captions(trained):
    again = tokenizer.train_tokenizer(reversed(CAPTIONS), 320, 16)
    assert again._bpe.to_str() == trained._bpe.to_str()
    assert tokenizer.train_tokenizer(CAPTIONS[:9], 320, 16)._bpe.to_str() != trained._bpe.to_str()


def test_saved_and_pickled_ones_are_the_same(clip, trained, tmp_path):
    for kind in (clip, trained):
        kind.save(tmp_path / "tokenizer.json")
        texts = [*CAPTIONS[:5], *(case["caption"] for case in CASES)]
        for other in (tokenizer.load(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(kind))):
            assert (other.context_length, other.vocabulary_size) == (kind.context_length, kind.vocabulary_size)
            assert np.array_equal(other.encode_all(texts), kind.encode_all(texts))
            assert other.decode(kind.encode(texts[0])) == kind.decode(kind.encode(texts[0]))
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("length", [16.0, "16", True, None])
def test_a_context_length_that_is_no_whole_number_is_refused(trained, length, tmp_path):
    path = tmp_path / "tokenizer.json"
    trained.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"context_length": length}))
    assert_refuses(("not a saved tokenizer", f"context_length is {length!r}"), tokenizer.load, path)


def test_a_damaged_tokenizer_is_not_used(trained, tmp_path):
    path = tmp_path / "words.json"
    trained.save(path)
    whole = path.read_text()
    path.write_text(whole.replace('"context_length": ', '"context_length": 1'))
    assert_refuses(("not a saved tokenizer", "its digest differs"), tokenizer.load, path)
    content = json.loads(whole)
    content["bpe"]["model"]["merges"][0].reverse()
    path.write_text(json.dumps(content))
    assert_refuses("not a saved tokenizer", tokenizer.load, path)
    path.write_text(json.dumps({name: value for name, value in json.loads(whole).items() if name != "sha256"}))
    assert tokenizer.load(path).encode("a dog").tolist() == trained.encode("a dog").tolist()  # of an earlier version
    path.write_text("[" * 100_000)
    assert_refuses(("not a saved tokenizer", "nested too deeply"), tokenizer.load, path)


def test_a_vocabulary_file_that_is_not_clips_is_refused(lines, tmp_path):
    def refuses(content, *parts):
        assert_refuses(("bpe.txt", *parts), tokenizer.clip_tokenizer, write(tmp_path / "bpe.txt", content, open))

    refuses(lines[:-1], "48,893 merges", "48,894")
    refuses(lines[1:], "header")
    refuses([*lines[:9], "one two three", *lines[10:]], "line 10", "'one two three'")
    refuses([*lines[:9], "zz q", *lines[10:]], "line 10")
    refuses([*lines[:9], lines[1], *lines[10:]], "line 10", "not a new merge")
    assert_refuses(("none.gz", "No such file"), tokenizer.clip_tokenizer, tmp_path / "none.gz")
    whole = write(tmp_path / "whole.gz", lines).read_bytes()
    for name, data in (("cut", whole[:-2000]), ("damaged", whole[:500] + b"\x00" * 500 + whole[1000:]), ("b", b"\xff")):
        (tmp_path / name).write_bytes(data)
        assert_refuses((name, "not readable"), tokenizer.clip_tokenizer, tmp_path / name)


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "_LARGEST", 1000)
    write(tmp_path / "bomb.gz", ["x" * 2000])
    assert_refuses("more than 1,000 bytes", tokenizer.clip_tokenizer, tmp_path / "bomb.gz")


def test_training_refuses_what_cannot_be_learnt_from(tmp_path):
    assert_refuses("no caption holds a word", tokenizer.train_tokenizer, ["", " \n"])
    assert_refuses(("at least 258", "257"), tokenizer.train_tokenizer, CAPTIONS, 257)
    assert_refuses(("at least 3", "2"), tokenizer.train_tokenizer, CAPTIONS, 300, 2)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "context_length": 8, "bpe": {}}', '{"format": 1}']
)
def test_loading_refuses_what_is_no_tokenizer(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    assert_refuses(("tokenizer.json", "not a saved tokenizer"), tokenizer.load, path)
    assert_refuses(("none.json", "no such file"), tokenizer.load, tmp_path / "none.json")

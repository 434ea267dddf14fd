"""Captions to token ids, by byte pair encoding: CLIP's own vocabulary, or one trained on the captions.

In both, the start token's id is vocabulary_size - 2 and the end token's is vocabulary_size - 1. The latter is the
largest id, by which the text tower finds the end. Zeros follow it.
"""

import gzip
import html
import json
import os
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from sims.clip.records import reading
from sims.engine import files
from sims.engine.flags import UsageError

FORMAT = 1  # of saved tokenizers; files of another format are refused
MERGES = 48_894  # in CLIP's vocabulary; with 256 bytes, 256 that end a word, start and end they make 49,408
_END = "</w>"  # marks the end of a word
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_LARGEST = 64 * 2**20  # bytes a vocabulary file may unpack to; CLIP's are 3.2 million


def _byte_letters() -> dict[int, str]:
    """A visible letter for each byte, in the order of the bytes' ids.

    A byte without a visible letter of its own gets one from code point 256 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = (byte for byte in range(256) if byte not in visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


_LETTERS = _byte_letters()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}

_PLAIN = (
    dict.fromkeys([*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)])
    | {i: unicodedata.normalize("NFKC", chr(i)) for i in (0x3000, *range(0xFB00, 0xFB07), *range(0xFF01, 0xFFF0))}
    | dict.fromkeys([0x2BC, *range(0x2018, 0x201C)], "'")
    | dict.fromkeys(range(0x201C, 0x2020), '"')
)


def clean(text: str) -> str:
    """Lower case, HTML entities resolved (twice), one space between words; quotes straight, letters composed (NFC).

    In CLIP, ftfy does the last two where it is installed. Like ftfy, this function makes ligatures and full-width forms
    plain letters, drops control characters and replaces lone surrogates. Unlike ftfy, it leaves text decoded with a
    wrong encoding (`cafÃ©`), terminal escapes and digraphs (`ǆ`) as they are. It also makes `&rsquo;` straight beside a
    `<`.
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = html.unescape(html.unescape(text))
    return " ".join(unicodedata.normalize("NFC", text.translate(_PLAIN)).split()).lower()


class Tokenizer:
    """A vocabulary and its merges. Ids are int32."""

    def __init__(self, bpe: tokenizers.Tokenizer, context_length: int):
        if context_length < 3:
            raise UsageError(f"context_length must be at least 3 (start, a token, end), got {context_length}.")
        self._bpe = bpe
        self.context_length = context_length
        self.vocabulary_size = bpe.get_vocab_size() + 2

    def encode(self, text: str) -> np.ndarray:
        """(context_length,): start, tokens, end, zeros. Tokens that do not fit are cut off; the end token stays."""
        tokens = self._bpe.encode(clean(text)).ids[: self.context_length - 2]
        ids = np.zeros(self.context_length, np.int32)
        ids[: len(tokens) + 2] = (self.vocabulary_size - 2, *tokens, self.vocabulary_size - 1)
        return ids

    def encode_all(self, texts: Sequence[str]) -> np.ndarray:
        """Ids of several texts, (n, context_length)."""
        return np.array([self.encode(text) for text in texts], np.int32).reshape(-1, self.context_length)

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the end token. A trained tokenizer gives back clean(text), CLIP's with spaces between words.

        Raises: ValueError for an id outside the vocabulary.
        """
        pieces = []
        for i in map(int, ids):
            if i == self.vocabulary_size - 1:
                break
            if not 0 <= i < self.vocabulary_size:
                raise ValueError(f"ids must be in 0..{self.vocabulary_size - 1}, got {i}.")
            if i != self.vocabulary_size - 2:
                pieces.append(self._bpe.id_to_token(i))
        if self._bpe.model.end_of_word_suffix:
            pieces = [piece.removesuffix(_END) + _LETTERS[0x20] * piece.endswith(_END) for piece in pieces]
        return bytes(_BYTES[letter] for letter in "".join(pieces)).decode("utf-8", "replace").strip()

    def save(self, path: str | os.PathLike) -> None:
        """Write one JSON file, whole or not at all."""
        content = {"format": FORMAT, "context_length": self.context_length, "bpe": json.loads(self._bpe.to_str())}
        files.write_text(Path(path), reading.sealed(content))


def load(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer that `save` wrote.

    Raises: UsageError for a file that is not a tokenizer of this version.
    """
    try:
        content = reading.json_of(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        if type(length := content["context_length"]) is not int:
            raise ValueError(f"its context_length is {length!r}")
        if content.pop("sha256", None) not in (None, reading.digest(content)):  # files of earlier versions have none
            raise ValueError("it is damaged: its digest differs")
        return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content["bpe"])), length)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file.") from None
    except UsageError:
        raise
    except Exception as error:  # the tokenizers library raises no narrower class
        raise UsageError(f"{path}: not a saved tokenizer ({reading.reason(error)}); train or save it again.") from None


def clip_tokenizer(vocab_file: str | os.PathLike, context_length: int = 77) -> Tokenizer:
    """CLIP's tokenizer from its bpe_simple_vocab_16e6.txt, gzipped or not: a header line, then at least MERGES merges.

    For equal clean text, ids are the reference's, except that `<end_of_text>` in a caption is text here, not an end.
    Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4.

    Raises: UsageError for a file that cannot be read, is too short, or has a line that merges no two earlier tokens.
    """
    lines = _read(Path(vocab_file))
    if "#version" not in lines[0]:
        known = reading.foreign(lines[0].encode())
        raise UsageError(f"{vocab_file}: no header with #version in line 1{f' ({known})' if known else ''}; give CLIP's"
                         " bpe_simple_vocab_16e6.txt.gz.")  # fmt: skip
    if len(lines) < MERGES + 1:
        raise UsageError(
            f"{vocab_file}: {len(lines) - 1:,} merges, where CLIP's vocabulary needs at least {MERGES:,}; "
            "download bpe_simple_vocab_16e6.txt.gz again."
        )
    letters = list(_LETTERS.values())
    vocabulary = {token: i for i, token in enumerate([*letters, *(letter + _END for letter in letters)])}
    merges = []
    for number, line in enumerate(lines[1 : MERGES + 1], 2):
        pair = tuple(line.split())
        token = "".join(pair)
        if len(pair) != 2 or not all(part in vocabulary for part in pair) or token in vocabulary:
            raise UsageError(
                f"{vocab_file}: line {number} is not a new merge of two earlier tokens ({line[:40]!r}); "
                "download bpe_simple_vocab_16e6.txt.gz again."
            )
        merges.append(pair)
        vocabulary[token] = len(vocabulary)
    bpe = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=_END))
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True)
    letters_of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, letters_of_bytes])
    return Tokenizer(bpe, context_length)


def train_tokenizer(captions: Iterable[str], vocabulary_size: int = 4096, context_length: int = 77) -> Tokenizer:
    """Byte-level BPE trained on the captions: it can write any text. The same captions give the same tokenizer.

    vocabulary_size: at least 258 (the bytes, start and end). The result is smaller if no pair of tokens is left that
    occurs twice.

    Raises: UsageError for sizes that are too small, or if the captions hold no word.
    """
    if vocabulary_size < 258:
        raise UsageError(f"vocabulary_size must be at least 258 (the bytes, start and end), got {vocabulary_size}.")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = 0

    def cleaned() -> Iterable[str]:
        nonlocal words
        for caption in captions:
            text = clean(caption)
            words += bool(text)
            yield text

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 2, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(cleaned(), trainer)
    if not words:
        raise UsageError("no caption holds a word: a vocabulary cannot be trained on them; look at the captions' file.")
    return Tokenizer(bpe, context_length)


def _read(path: Path) -> list[str]:
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"more than {_LARGEST:,} bytes")
        return data.decode("utf-8").rstrip("\n").split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(
            f"{path}: not readable as CLIP's vocabulary ({why}); give bpe_simple_vocab_16e6.txt.gz."
        ) from None

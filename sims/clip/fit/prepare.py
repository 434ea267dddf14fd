"""What a run is trained on: the records that can be used, those held out, and the tokenizer of their captions."""

import dataclasses
import hashlib
import pathlib
import sys
from typing import Any

import numpy as np

from sims.clip.config import SCENES, Config
from sims.clip.model import models
from sims.clip.records import captions, sources, tokenizer
from sims.clip.records.classes import check_names
from sims.clip.records.reading import brief, json_of, own_json, reason
from sims.engine.flags import UsageError, check_choice

TOKENIZER, DATA = "tokenizer.json", "data.json"  # in a run's folder
_LOOKED = 1000  # records whose captions go into the data's digest
_TEXTS = 200_000  # records whose captions a tokenizer is trained on, at most
_SPLIT_KEY = 1  # seed of the choice of held-out records, with the run's
_VALIDATION_KEY = 2  # seed of the choice of validation records, with the class's number


@dataclasses.dataclass(frozen=True)
class Data:
    """The records that can be used, and the tokenizer of their captions."""

    source: sources.Source
    trained: np.ndarray
    held_out: np.ndarray
    unlabelled: int
    tokenizer: tokenizer.Tokenizer | None


def open_data(config: Config, out: pathlib.Path | None = None) -> Data:
    """The training and the held-out records.  out: folder of a run that may have begun with them.

    Raises: UsageError if they are too few, have no labels where needed, or are not what the run began with.
    """
    check_choice("architecture", config.architecture, models.ARCHITECTURES)
    spec = f"coco:{SCENES}/coco" if config.data == "scenes" else config.data
    classes = class_names(config.classes)
    source = sources.open_source(spec, captions_file=config.captions, classes=classes)
    if out is not None and (out / DATA).exists() and read_data(out) != fingerprint(source):
        raise UsageError(
            f"--data={config.data} is not what {out} was begun with: its records, labels or captions differ; "
            "give another --out, or --overwrite."
        )
    if config.method.text == "labels":
        check_names(source.classes, f"--data={config.data}")
    trained, held_out = select(config, source)
    encode = tokenizer_of(config, source, trained, out) if config.method.reads else None
    unlabelled = int((source.labels < 0).sum()) if config.needs_labels else 0
    return Data(source, trained, held_out, unlabelled, encode)


def select(config: Config, source: sources.Source) -> tuple[np.ndarray, np.ndarray]:
    """(records trained on, records held out) of the source, in order.

    All records are shuffled by the run's seed; of those that can be used the first are held out, and of the others the
    first `percent` are trained on. So runs of one seed see the same records, but for those that one cannot use.
    Raises: UsageError if they are too few, or have no labels where needed.
    """
    usable = np.arange(len(source))
    if config.needs_labels:
        usable = usable[source.labels >= 0]
        if not len(usable):
            why = "--validation" if config.validation else f"--arm={config.arm}"
            raise UsageError(f"--data={config.data} has no labels, which {why} needs; see --classes.")
    if config.validation:
        usable = np.setdiff1d(usable, validation(source.labels, config.validation))
    order = np.random.default_rng([_SPLIT_KEY, config.seed]).permutation(len(source))
    order = order[np.isin(order, usable)]
    needed = config.held_out + config.batch_size
    if len(order) < needed:
        raise UsageError(
            f"--data={config.data} has {len(order)} usable records; --batch_size and --held_out need {needed}."
        )
    rest = order[config.held_out :]
    count = round(len(rest) * config.percent / 100)
    if count < config.batch_size:
        raise UsageError(
            f"--percent={config.percent:g} leaves {count} of the {len(rest)} records of --data={config.data};"
            f" --batch_size needs {config.batch_size}."
        )
    return np.sort(rest[:count]), np.sort(order[: config.held_out])


def validation(labels: np.ndarray, share: float) -> np.ndarray:
    """The records of the validation part, in order: of each class round(share n) of its n, chosen once for all runs."""
    parts = [np.empty(0, int)]
    for k in range(labels.max(initial=-1) + 1):
        mine = np.flatnonzero(labels == k)
        parts.append(np.random.default_rng([_VALIDATION_KEY, k]).permutation(mine)[: round(share * len(mine))])
    return np.sort(np.concatenate(parts))


def class_names(path: str | None) -> tuple[str, ...]:
    """The names of a JSON list, by which captions are labelled; None: none."""
    if path is None:
        return ()
    try:
        content = json_of(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--classes={path} cannot be read as JSON ({reason(error)}).") from None
    names = isinstance(content, list) and all(isinstance(name, str) and name.strip() for name in content)
    if not content or not names:
        raise UsageError(f"--classes={path} must be a JSON list of class names.")
    check_names(content, f"--classes={path}")
    if twice := sorted({name for name in content if content.count(name) > 1}):
        print(f"warning: --classes={path} has {brief(', '.join(twice))} more than once; captions do not tell which, and"
              " give no such label.", file=sys.stderr)  # fmt: skip
    return tuple(content)


def read_data(out: pathlib.Path) -> dict[str, Any]:
    """A run's data.json. Raises: UsageError if it is damaged."""
    content = own_json(out / DATA, "train again, with --overwrite")
    names = content.get("classes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{out / DATA} is damaged (it has no list of classes); train again, with --overwrite.")
    return content


def tokenizer_of(
    config: Config, source: sources.Source, trained: np.ndarray, out: pathlib.Path | None
) -> tokenizer.Tokenizer:
    """The tokenizer of the run in `out`, or of config.vocabulary, or one trained on the captions of these records."""
    length = config.context_length or models.ARCHITECTURES[config.architecture].text.context_length
    if out is not None and (out / TOKENIZER).exists():
        return tokenizer.load(out / TOKENIZER)
    if config.vocabulary is not None:
        if config.vocabulary.endswith(".json"):
            own = tokenizer.load(config.vocabulary)
            if config.context_length not in (None, own.context_length):
                raise UsageError(
                    f"--context_length must be that of {config.vocabulary}, {own.context_length}, or left out, got "
                    f"{config.context_length}."
                )
            return own
        return tokenizer.clip_tokenizer(config.vocabulary, length)
    few = trained[:: -(-len(trained) // _TEXTS)]
    texts = [text for i in few for text in source.captions(int(i))]
    texts += [captions.TEMPLATE.format(name) for name in source.classes]
    return tokenizer.train_tokenizer(texts, config.vocabulary_size, length)


def architecture(config: Config, encode: tokenizer.Tokenizer | None) -> models.Architecture:
    """The config's architecture at its image size, with the tokenizer's ids. Raises: UsageError if they do not fit."""
    arch = models.ARCHITECTURES[config.architecture]
    changed: dict[str, Any] = {"image_size": config.image_size or arch.image_size}
    if encode is not None:
        sizes = {name: getattr(encode, name) for name in ("context_length", "vocabulary_size")}
        changed["text"] = dataclasses.replace(arch.text, **sizes)
    return dataclasses.replace(arch, **changed)


def fingerprint(source: sources.Source) -> dict[str, Any]:
    """The classes, and what distinguishes this data from other data under the same name."""
    digest = hashlib.sha256(np.ascontiguousarray(source.labels).tobytes())
    for i in np.linspace(0, len(source) - 1, _LOOKED, dtype=int):
        digest.update("\n".join(source.captions(int(i))).encode())
    return {"classes": list(source.classes), "records": len(source), "digest": digest.hexdigest()}

"""What captions name, by class and attribute: mention rates, what their words tell, and false negatives.

    python -m sims.captions_audit --captions=table.csv:caption --labels=table.csv:class --attributes=table.csv:place
    python -m sims.captions_audit --data=coco:/data/coco:train2017
    python -m sims.captions_audit --data='tars:/data/cc3m/*.tar' --classes=names.txt

With --data the captions are those of COCO's layout, where an image's class is the category of its largest instance; of
img2dataset's tars; or of a table with the columns path, caption, label and attribute. --classes gives classes to images
whose captions name just one of them, which are then named in every image, if not in every caption. Without attributes
the classes alone are counted.
A caption names a class or an attribute if it has its name, or its plural in -s or -es, as whole words. Other words for
it go into --words=FILE.json: {"dog": ["dog", "puppy", "hound dog"], "sofa": ["sofa", "couch"]}. Counted by group: how
often captions name the own class and attribute, name only another one, and have other words at all; by word: how many
bits its presence tells of the class, and of the attribute within a class; captions that occur twice, which contrastive
losses take for negatives. `sims.diagnose` says what other rates would do: its rate 1 is the one found here.
Writes groups.csv, words.csv, audit.json and the figure captions_audit.png.
"""

import collections
import json
import math
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from sims.engine.flags import UsageError, check_range, define, integer, optional, path, run_main

TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
GROUP_COLUMNS = ("class", "attribute", "captions", "names_class", "names_attribute", "other_class", "other_attribute",
                 "other_words", "no_other_words", "repeated")  # fmt: skip
WORD_COLUMNS = ("word", "captions", "class_bits", "class_p", "attribute_bits", "attribute_p")
SETTINGS = ("data", "classes", "captions", "labels", "attributes", "words", "batch_size", "least")
_SHOWN = 10  # words in the text


def tokens(caption: str) -> tuple[str, ...]:
    """The words of a caption, in lower case; digits count as letters, punctuation as space."""
    return tuple(TOKEN.findall(caption.lower()))


class Names:
    """The phrases that name each class or attribute, as tuples of words."""

    def __init__(self, names: Sequence[str], words: Mapping[str, Sequence[str]]):
        self.phrases = {name: self._forms(words.get(name, [name])) for name in names}

    @staticmethod
    def _forms(phrases: Sequence[str]) -> set[tuple[str, ...]]:
        """The phrases with the plurals of their last words."""
        forms = set()
        for phrase in phrases:
            *first, last = tokens(phrase)
            forms |= {(*first, last + ending) for ending in ("", "s", "es")}
        return forms

    def named(self, words: tuple[str, ...]) -> set[str]:
        """The names that occur among the words."""
        longest = max((len(phrase) for forms in self.phrases.values() for phrase in forms), default=0)
        runs = {words[i : i + n] for n in range(1, longest + 1) for i in range(len(words) - n + 1)}
        return {name for name, forms in self.phrases.items() if forms & runs}

    def words(self) -> set[str]:
        """All words of all phrases."""
        return {word for forms in self.phrases.values() for phrase in forms for word in phrase}


class Audit(NamedTuple):
    """Rows of groups.csv and words.csv, and sums over all captions, by name."""

    groups: list[dict[str, Any]]
    words: list[dict[str, Any]]
    totals: dict[str, float]


def audit(
    captions: Sequence[str],
    labels: Sequence[str],
    attributes: Sequence[str] | None,
    words: Mapping[str, Sequence[str]],
    batch_size: int = 256,
    least: int = 10,
) -> Audit:
    """Counts over captions. least: occurrences from which on a word has a row.

    attributes: None: not known; then all are of one attribute without a name, and what is counted of it is NaN.
    class_bits: mutual information of a word's presence and the class, in bits; attribute_bits: the same with the
    attribute, given the class. Their p-values are those of the G test, 2 n ln 2 bits ~ chi-squared, times the number of
    words. false_negatives: expected number of other captions in a batch that equal an anchor's; same_class: that are of
    its class.
    """
    import numpy as np

    split = [tokens(caption) for caption in captions]
    known = attributes is not None
    kinds = [Names(sorted(set(values)), words) for values in (labels, attributes or ())]
    attributes = attributes or [""] * len(split)
    naming = kinds[0].words() | kinds[1].words()
    count = collections.Counter(split)
    rows: dict[tuple[str, str], list[list[float]]] = collections.defaultdict(list)
    for own, label, attribute in zip(split, labels, attributes, strict=True):
        classes, places = (names.named(own) for names in kinds)
        other = len({word for word in own if word not in naming})
        rows[label, attribute].append(
            [label in classes, attribute in places, bool(classes - {label}) and label not in classes,
             bool(places - {attribute}) and attribute not in places, other, other == 0, count[own] > 1]
        )  # fmt: skip
    groups = []
    for (label, attribute), cells in sorted(rows.items()):
        means = np.mean(cells, 0)
        means[[] if known else [1, 3]] = np.nan  # of the attribute
        groups.append(dict(zip(GROUP_COLUMNS, (label, attribute, len(cells), *means.tolist()), strict=True)))
    n = len(split)
    weights = np.array([row["captions"] for row in groups]) / n
    totals = {name: float(weights @ [row[name] for row in groups]) for name in GROUP_COLUMNS[3:]}
    totals["captions"], totals["distinct"] = n, len(count)

    def together(sizes: Any) -> float:
        """Expected number of others of an anchor's kind in its batch."""
        return (batch_size - 1) * sum(c * (c - 1) for c in sizes) / (n * (n - 1)) if n > 1 else 0.0

    totals["batch_size"] = batch_size
    totals["false_negatives"] = together(count.values())
    totals["same_class"] = together(collections.Counter(labels).values())
    of_words = _words(split, labels, attributes, least)
    if not known:
        of_words = [{**row, "attribute_bits": math.nan, "attribute_p": math.nan} for row in of_words]
    return Audit(groups, of_words, totals)


def _words(
    split: Sequence[tuple[str, ...]], labels: Sequence[str], attributes: Sequence[str], least: int
) -> list[dict[str, Any]]:
    import numpy as np
    import scipy.special

    place = {pair: i for i, pair in enumerate(sorted({*zip(labels, attributes, strict=True)}))}
    classes = sorted({label for label, _ in place})
    y = np.array([classes.index(label) for label, _ in place])
    cell = [place[pair] for pair in zip(labels, attributes, strict=True)]
    size = np.bincount(cell, minlength=len(place)).astype(float)
    with_word: dict[str, Any] = collections.defaultdict(lambda: np.zeros(len(place)))
    for own, where in zip(split, cell, strict=True):
        for word in set(own):
            with_word[word][where] += 1
    chosen = {word: counts for word, counts in with_word.items() if counts.sum() >= least}
    member = (y[None, :] == np.arange(len(classes))[:, None]).astype(float)
    n, rows = size.sum(), []
    freedom = sum(m.sum() - 1 for m in member)

    def p_value(bits: float, degrees: float) -> float:
        if not degrees:
            return 1.0
        return float(min(1.0, scipy.special.chdtrc(degrees, 2 * n * math.log(2) * bits) * len(chosen)))

    for word, counts in chosen.items():
        of_class = _bits(member @ counts, member @ size)
        # The classes' mutual informations, by their weights.
        within = sum((m @ size) / n * _bits(counts[m > 0], size[m > 0]) for m in member)
        p = p_value(of_class, len(classes) - 1), p_value(within, freedom)
        rows.append(dict(zip(WORD_COLUMNS, (word, int(counts.sum()), of_class, p[0], within, p[1]), strict=True)))
    return sorted(rows, key=lambda row: (-max(row["class_bits"], row["attribute_bits"]), row["word"]))


def _bits(counts: Any, size: Any) -> float:
    """Mutual information in bits of a word's presence, in `counts` of `size` captions, and the cell."""
    import numpy as np
    import scipy.special

    table = np.stack([counts, size - counts]) / size.sum()
    independent = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
    return float(scipy.special.rel_entr(table, independent).sum() / math.log(2))


def text(result: Audit) -> str:
    """The audit in lines."""
    t = result.totals
    known = not math.isnan(t["names_attribute"])
    named = f"{t['names_class']:.1%}" + (f", the attribute in {t['names_attribute']:.1%}" if known else "")
    lines = [
        f"{t['captions']:,.0f} captions, {t['distinct']:,.0f} distinct; they name the class in {named}, and have"
        f" {t['other_words']:.1f} other words; {t['no_other_words']:.1%} have none"
    ]
    shown = {"names_class": "class", "names_attribute": "attribute", "other_class": "other class",
             "other_attribute": "other attr.", "other_words": "other words"}  # fmt: skip
    if not known:
        shown = {name: head for name, head in shown.items() if "attribute" not in name}
    first = "class, attribute" if known else "class"
    lines.append(f"{first:32s}" + "".join(f"{head:>13s}" for head in ("captions", *shown.values())))
    for row in result.groups:
        shares = "".join(f"{row[name]:13.3f}" for name in shown)
        lines.append(f"{_named(row):32s}{row['captions']:13d}{shares}")
    for kind in ("class", "attribute") if known else ("class",):
        telling = [row for row in result.words if row[f"{kind}_p"] < 0.05]
        telling.sort(key=lambda row: -row[f"{kind}_bits"])
        words = ", ".join(f"{row['word']} {row[f'{kind}_bits']:.3f}" for row in telling[:_SHOWN]) or "none"
        what = "the class" if kind == "class" else "the attribute within a class"
        lines.append(f"words that tell {what}, bits: {words}")
    lines.append(
        f"in a batch of {t['batch_size']:.0f} an anchor has {t['false_negatives']:.2f} negatives with its own caption"
        f" and {t['same_class']:.1f} of its class"
    )
    return "\n".join(lines)


def _named(row: Mapping[str, Any]) -> str:
    return ", ".join(x for x in (row["class"], row["attribute"]) if x)


def draw(result: Audit) -> Any:
    """Mention rates by group, with 95% intervals (Wilson)."""
    from sims.engine import style  # noqa: F401  sets the backend, before pyplot is imported

    import matplotlib.pyplot as plt  # isort: skip
    import numpy as np

    figure, ax = plt.subplots(figsize=(7.5, 0.45 * len(result.groups) + 1.8), layout="constrained", dpi=120)
    looks = {"names_class": ("#0072B2", "o", "the class"), "names_attribute": ("#D55E00", "s", "the attribute")}
    for offset, (name, (colour, marker, label)) in zip((-0.12, 0.12), looks.items(), strict=True):
        if math.isnan(result.totals[name]):
            continue
        share, n = (np.array([row[x] for row in result.groups]) for x in (name, "captions"))
        low, high = wilson(share, n)
        at = np.arange(len(share)) + offset
        ends = np.maximum([share - low, high - share], 0)
        ax.errorbar(share, at, xerr=ends, fmt=marker, color=colour, ms=5, elinewidth=1.2, capsize=2, label=label)
    names = [f"{_named(row)} (n = {row['captions']:,})" for row in result.groups]
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlim=(-0.02, 1.02), xlabel="share of captions that name it")
    ax.grid(axis="x", alpha=0.25, lw=0.6)
    ax.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def wilson(share: Any, n: Any) -> tuple[Any, Any]:
    """Ends of the 95% interval of a proportion. Source: Wilson 1927."""
    import numpy as np

    z = 1.959964
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def other_words(file: str, known: set[str]) -> dict[str, list[str]]:
    """The phrases of --words. Raises: UsageError for another form, or a name that is no class or attribute."""
    try:
        content = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--words={file} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if not isinstance(content, dict):
        raise UsageError(f"--words={file} must be an object of lists of phrases.")
    for name, phrases in content.items():
        if name not in known:
            raise UsageError(
                f"--words={file}: {name!r} is none of the classes and attributes {', '.join(sorted(known))}."
            )
        good = isinstance(phrases, list) and phrases and all(isinstance(x, str) and tokens(x) for x in phrases)
        if not good:
            raise UsageError(f"--words={file}: {name!r} must have a list of phrases, got {phrases!r}.")
    return content


def _define_flags() -> None:
    help_text = "captioned images: coco:DIR[:SPLIT], tars:GLOB, csv:FILE, parquet:FILE or cifar10:DIR"
    define("data", None, help_text, optional(str))
    define("classes", None, "of --data: file of class names, for images whose captions name just one", optional(path))
    help_text = "captions, FILE or FILE:NAME of .csv, .parquet, .npy or .npz, without --data"
    define("captions", None, help_text, optional(path))
    define("labels", None, "class of each caption, likewise; needed with --captions", optional(path))
    define("attributes", None, "attribute of each caption, likewise; none: not known", optional(path))
    define("words", None, "JSON file of other words for classes and attributes", optional(path))
    define("batch_size", 256, "batch in which negatives are counted, >= 2", integer)
    define("least", 10, "occurrences from which on a word has a row, >= 1", integer)
    define("out", "runs/captions_audit", "folder for the tables and the figure", path)


_Columns = tuple[list[str], list[str], list[str] | None]


def _of_columns() -> _Columns:
    """Captions, classes and attributes of the files of the flags. Raises: UsageError."""
    from sims.engine import reading

    values = flags.FLAGS
    if values.classes is not None:
        raise UsageError("--classes goes with --data; --labels has the class of each caption.")
    given = [flag for flag in ("captions", "labels", "attributes") if values[flag].value is not None]
    if absent := next((flag for flag in ("captions", "labels") if flag not in given), None):
        raise UsageError(f"--{absent} must name a file, such as --{absent}=table.csv:{absent}, or --data images.")
    columns = {flag: reading.read(flag, values[flag].value, flag) for flag in given}
    for flag, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in ("U" if flag == "captions" else "biuU"):
            wanted = "text" if flag == "captions" else "words or whole numbers"
            raise UsageError(f"--{flag} must be a column of {wanted}.")
        if len(column) != len(columns["captions"]):
            raise UsageError(f"--{flag} has {len(column)} rows, --captions {len(columns['captions'])}.")
    captions, labels = ([str(x) for x in columns[flag]] for flag in ("captions", "labels"))
    return captions, labels, [str(x) for x in columns["attributes"]] if "attributes" in columns else None


def _of_images() -> _Columns:
    """Captions, classes and attributes of --data; says how many images have no class. Raises: UsageError."""
    from sims.clip.records import reading, sources

    values = flags.FLAGS
    if given := [flag for flag in ("captions", "labels", "attributes") if values[flag].value is not None]:
        raise UsageError(f"--data has captions and classes of its own; leave out --{given[0]}.")
    classes = reading.read_lines(values.classes, "--classes") if values.classes else ()
    source = sources.open_source(values.data, classes=classes)
    if not source.classes:
        raise UsageError(f"--data={values.data} has no classes; give --classes=FILE with their names.")
    attributes = getattr(source, "attributes", None)
    if attributes is not None and all(x == "" for x in attributes):
        attributes = None
    kept = [i for i in range(len(source)) if source.labels[i] >= 0 and (attributes is None or attributes[i] != "")]
    if not kept:
        raise UsageError(f"--data={values.data} has no image with a class, and an attribute where any has one.")
    if left := len(source) - len(kept):
        print(f"note: {left:,} of {len(source):,} images have no class or attribute and are left out.", file=sys.stderr)
    rows = [(caption, i) for i in kept for caption in source.captions(i)]
    of_rows = [source.classes[source.labels[i]] for _, i in rows]
    places = None if attributes is None else [str(attributes[i]) for _, i in rows]
    return [caption for caption, _ in rows], of_rows, places


def _main() -> None:
    values = flags.FLAGS
    check_range("batch_size", values.batch_size, 2)
    check_range("least", values.least, 1)
    captions, labels, attributes = _of_images() if values.data is not None else _of_columns()
    for flag, column in (("labels", labels), ("attributes", attributes or ())):
        if nameless := next((x for x in column if not tokens(x)), None):
            raise UsageError(f"--{flag}: {nameless!r} has no letter or digit, so no caption can name it.")
    known = {*labels, *(attributes or ())}
    words = other_words(values.words, known) if values.words else {}
    out = pathlib.Path(values.out)

    from sims.engine import files

    files.check_folder(out, f"--out={out}")
    result = audit(captions, labels, attributes, words, values.batch_size, values.least)
    figure = draw(result)

    from sims.engine import runs, store

    out.mkdir(parents=True, exist_ok=True)
    for name, rows, columns_of in (("groups", result.groups, GROUP_COLUMNS), ("words", result.words, WORD_COLUMNS)):
        store.write_csv(out / f"{name}.csv", {c: [row[c] for row in rows] for c in columns_of})
    given = {flag: values[flag].value for flag in SETTINGS}
    files.write_json(out / "audit.json", {"settings": given, **result._asdict()})
    runs.save_figure(figure, out, "captions_audit", figure.dpi)
    print(f"{text(result)}\n\nTables and figure: {out}/groups.csv, {out}/words.csv, {out}/captions_audit.png")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)

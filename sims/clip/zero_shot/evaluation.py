"""The work of `evaluate`: encode every set once, count right answers, compare with the lines; one row for each set."""

import dataclasses
import datetime
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sims.clip.model.encoder import Encoder
from sims.clip.records.classes import Classes
from sims.clip.records.reading import brief
from sims.clip.zero_shot import robustness, scoring
from sims.clip.zero_shot.robustness import LINES
from sims.clip.zero_shot.scoring import Result, Share
from sims.clip.zero_shot.sets import EvaluationSet
from sims.engine import store
from sims.engine.flags import UsageError, check_choice
from sims.engine.lines import Line, fit_line
from sims.engine.lines import inside as shares_inside

Row = dict[str, Any]
BEST = "-best"  # ends the id of a run's best checkpoint
_MODEL = 0.995  # level of a model's interval
_EACH = 0.975  # level: two such intervals hold both accuracies, and so rho, w.p. 0.95 or more


@dataclasses.dataclass(frozen=True)
class How:
    """How images are read, which does not change the result.

    threads: None: one a core.  cache: folder of text weights.  strict: refuse images that cannot be read.
    """

    batch_size: int = 64
    threads: int | None = None
    cache: pathlib.Path | None = None
    strict: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which line is printed and drawn.  line: auto, standard, weak or fit."""

    line: str = "auto"
    transform: str = "logit"

    def of(self, val_accuracy: float) -> str:
        """The line's name in a row's rho."""
        if self.line == "auto":
            return robustness.default_line(val_accuracy, self.transform)
        return self.transform if self.line == "standard" else self.line


def warn(lines: Sequence[str | None], strict: bool) -> None:
    """Print a warning on stderr for each line that is not None.  Raises: UsageError if strict and there is any."""
    warnings = [line for line in lines if line]
    if warnings and strict:
        raise UsageError(f"{'; '.join(warnings)}: refused by --strict, and not scored. Complete the sets.")
    for line in warnings:
        print(f"warning: {line}.", file=sys.stderr)


def load_run(run: pathlib.Path, checkpoint: str) -> tuple[str, Encoder]:
    """(its id in tables, the encoder) of a training run."""
    from sims.clip.fit import trained

    digest = store.config_hash(store.read_config(run))[:8]
    return f"{run.resolve().name}-{digest}{BEST if checkpoint == 'best' else ''}", trained.load(run, checkpoint)


def load_weights(file: pathlib.Path, architecture: str, vocabulary: pathlib.Path) -> tuple[str, Encoder]:
    """(its id in tables, the encoder) of an imported state dict."""
    import jax

    from sims.clip.model import models, weights
    from sims.clip.records import images, tokenizer

    check_choice("architecture", architecture, models.ARCHITECTURES)
    arch = models.ARCHITECTURES[architecture]
    if vocabulary.suffix == ".json":
        words = tokenizer.load(vocabulary)
    else:
        words = tokenizer.clip_tokenizer(vocabulary, arch.text.context_length)
    has, needs = (words.vocabulary_size, words.context_length), (arch.text.vocabulary_size, arch.text.context_length)
    if has != needs:
        raise UsageError(
            f"--vocabulary={vocabulary} has {has[0]} tokens and texts of {has[1]}, {architecture} {needs[0]} and"
            f" {needs[1]}; give the one that the weights were trained with."
        )
    variables = jax.device_put(weights.import_state_dict(file, arch))
    model = models.CLIP(arch)
    image = jax.jit(lambda v, x: model.apply(v, images.normalise(x), False, method="encode_image"))
    text = jax.jit(lambda v, tokens: model.apply(v, tokens, method="encode_text"))
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()[:8]
    name = f"{file.stem}-{digest}"
    return name, Encoder(
        name,
        arch.image_size,
        lambda x: np.asarray(image(variables, x)),
        lambda texts: np.asarray(text(variables, words.encode_all(texts))),
    )


def evaluate(
    run: str,
    encoder: Encoder,
    sets: Mapping[str, EvaluationSet],
    classes: Classes,
    templates: Sequence[str],
    models: Sequence[Row] = (),
    how: How = How(),
    choice: Choice = Choice(),
) -> Iterator[Row]:
    """The rows of the sets, each as soon as it is scored, in the order of `sets`, in which val is the first.

    run: the id in the rows.  models: rows of other models, to which the line `fit` is fitted.
    Raises: UsageError if the encoder lacks a class, if no image of a set can be read, or if one cannot and how.strict.
    """
    weights, bias = scoring.class_weights(encoder, classes.names, templates, how.cache)
    every = tuple((c,) for c in range(len(classes.names)))
    twice = np.flatnonzero(scoring.twins(weights, bias, every) != np.arange(len(every)))
    if len(twice):
        names_twice = brief(", ".join(sorted({classes.names[c] for c in twice})))
        line = (
            "top-1 takes the first for the prediction, as published accuracies do; for the worst class either is right"
        )
        warn([f"more than one class has the name {names_twice}, and the very same prompts: {line}"], strict=False)
    words = _digest(list(templates))
    prompts = "head" if encoder.head else f"{len(templates)} templates {words}"
    common = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": encoder.name,
        "image_size": encoder.image_size,
        "templates": words,
        "versions": store.provenance(),
    }
    val = val_accuracy = None
    for name, evaluation_set in sets.items():
        seen = _seen(name, evaluation_set, encoder, how)
        labels = evaluation_set.labels[seen.kept]
        order = fair = scoring.ranks(seen.values, labels, weights, bias, evaluation_set.scored)
        alike = scoring.twins(weights, bias, evaluation_set.scored)
        if (alike != np.arange(len(alike))).any():
            fair = scoring.ranks(seen.values, labels, weights, bias, evaluation_set.scored, alike)
        groups = None if evaluation_set.groups is None else evaluation_set.groups[seen.kept]
        result = scoring.result(order, labels, len(evaluation_set.scored), groups, fair)
        row = key(run, evaluation_set, classes)
        row |= common | {"rule": f"{evaluation_set.rule}; {prompts}; classes {row['classes']}"}
        row |= _counts(evaluation_set, result, len(seen.bad), classes)
        if fair is not order:
            row["either"] = _share("", scoring.result(fair, labels, len(evaluation_set.scored)).top1)
        if name == "val":
            val, val_accuracy = seen, row["accuracy"]
        elif val is not None:
            places, mapped = scoring.restricted(sets["val"].labels[val.kept], evaluation_set.scored)
            if len(places):
                order = scoring.ranks(val.values[places], mapped, weights, bias, evaluation_set.scored)
                row |= _share("id_", scoring.result(order, mapped, len(evaluation_set.scored)).top1)
        yield _against_lines(row, val_accuracy, len(classes.wnids), models, choice)


def _seen(name: str, evaluation_set: EvaluationSet, encoder: Encoder, how: How) -> scoring.Features:
    seen = scoring.image_features(
        encoder, evaluation_set.paths, crop=evaluation_set.crop, batch_size=how.batch_size, threads=how.threads
    )
    if not len(seen.kept):
        path, why = next(iter(seen.bad.items()))
        raise UsageError(
            f"none of the {len(evaluation_set.paths)} images of {name} can be read, such as {path} ({brief(why)})."
        )
    if seen.bad:
        path, why = next(iter(seen.bad.items()))
        warn([f"{evaluation_set.shortfall(len(seen.bad))} (the first {path}: {brief(why)})"], how.strict)
    return seen


def key(run: str, evaluation_set: EvaluationSet, classes: Classes) -> Row:
    """The fields by which rows differ: the run, the set, the class list and how many of its classes are scored."""
    words = _digest([classes.wnids, classes.names])
    return {"run": run, "set": evaluation_set.name, "classes": words, "classes_scored": len(evaluation_set.scored)}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def _share(prefix: str, share: Share, of: int = 1) -> Row:
    """A share's counts, accuracy, and 95% and 99.5% intervals, which hold for `of` such shares at once (Bonferroni)."""
    return {
        f"{prefix}images": share.images,
        f"{prefix}correct": share.correct,
        f"{prefix}accuracy": share.accuracy,
        f"{prefix}interval_95": share.interval(1 - 0.05 / of),
        f"{prefix}interval_99.5": share.interval(1 - (1 - _MODEL) / of),
    }


def _counts(evaluation_set: EvaluationSet, result: Result, unreadable: int, classes: Classes) -> Row:
    worst, share = result.worst
    members = evaluation_set.scored[worst]
    named = {"wnids": [classes.wnids[c] for c in members], "name": " / ".join(classes.names[c] for c in members)}
    images, count = evaluation_set.expected or (None, None)
    row = _share("", result.top1) | {
        "expected_images": images,
        "classes_found": evaluation_set.counts[1],
        "expected_classes": count,
        "unreadable": unreadable,
        "dropped": evaluation_set.dropped,
        "chance": evaluation_set.chance,
        "worst_class": named | _share("", share, result.classes),  # chosen as the worst of them
    }
    if result.top5 is not None:
        row["top5"] = _share("", result.top5)
    return row | {group: _share("", share) for group, share in result.groups.items()}


def _against_lines(
    row: Row, val_accuracy: float | None, num_classes: int, models: Sequence[Row], choice: Choice
) -> Row:
    """The row with val_accuracy, rho by every line, marks, and the name and interval of the chosen line."""
    marks = ["unreadable"] if row["unreadable"] else []
    row = row | {"val_accuracy": val_accuracy, "rho": {}, "line": None, "rho_interval_95": None, "marks": marks}
    if _holds(row["chance"], row["interval_99.5"]) or _holds(row["chance"], row.get("id_interval_99.5", (1, 1))):
        marks.append("chance")
    if "id_accuracy" not in row or val_accuracy is None:
        return row
    shares = [(row[f"{axis}correct"], row[f"{axis}images"]) for axis in ("id_", "")]
    if any(k in (0, n) for k, n in shares):
        marks.append("0 or all")
    lines = dict(LINES.get(row["set"], {}))
    others = of_shift(models, row)
    if (fitted := fit(others, choice.transform)) is not None:
        lines["fit"] = fitted
    rho = {n: float(robustness.effective_robustness(row["id_accuracy"], row["accuracy"], x)) for n, x in lines.items()}
    name = choice.of(val_accuracy)
    row |= {"rho": rho, "lines": {n: dataclasses.asdict(line) for n, line in lines.items()}}
    if name not in lines:
        return row
    (id_low, id_high), (low, high) = (Share(k, n).interval(_EACH) for k, n in shares)
    line = lines[name]
    # Sorted, since a fitted line may fall; the published ones rise.
    ends = sorted((float(line.at(id_low)), float(line.at(id_high))))
    if name == "fit":
        reached = [other["id_accuracy"] for other in others]
        far = not min(reached) <= row["id_accuracy"] <= max(reached)
    else:
        far = robustness.extrapolated(name, val_accuracy)
        marks += ["other classes"] if num_classes != 1000 else []
    marks += ["extrapolated"] if far else []
    return row | {"line": name, "rho_interval_95": (low - ends[1], high - ends[0])}


def _holds(value: float, interval: Sequence[float]) -> bool:
    return interval[0] <= value <= interval[1]


def of_shift(models: Sequence[Row], row: Row) -> list[Row]:
    """The last row of each other model that was scored on the same set and has an accuracy on val.

    Rows that state another class list, or another number of scored classes, are left out. The last and the best
    checkpoint of a run are one model; the kind that `row` is of goes first.
    """
    alike = [
        other
        for other in models
        if other["set"] == row["set"]
        and "id_accuracy" in other
        and _model(other) != _model(row)
        and all(other.get(name, row[name]) == row[name] for name in ("classes", "classes_scored"))
    ]
    alike.sort(key=lambda other: other["run"].endswith(BEST) == row["run"].endswith(BEST))
    return list({_model(other): other for other in alike}.values())


def _model(row: Row) -> str:
    return row["run"].removesuffix(BEST)


def fit(others: Sequence[Row], transform: str) -> Line | None:
    """The line fitted to other models; None unless two of them differ in their accuracy on val."""
    x, y = (inside(others, axis) for axis in ("id_", ""))
    return fit_line(x, y, transform) if len(np.unique(x)) >= 2 else None


def inside(rows: Sequence[Row], axis: str) -> np.ndarray:
    """Accuracies, with 0 and 1 moved inwards by half an image (by 5e-4 if the number of images is not known)."""
    counts = [row.get(f"{axis}images", 1000) for row in rows]
    shares = [row[f"{axis}accuracy"] * n for row, n in zip(rows, counts, strict=True)]
    return shares_inside(shares, counts) if rows else np.empty(0)

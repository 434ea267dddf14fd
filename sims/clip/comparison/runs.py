"""The paper's comparison on generated scenes: arms over seeds, and what captions name; measured, and predicted.

A run is trained in stages. After each stage, its accuracies go to OUT/measured/RUN.STEP.json, so that a stopped
comparison can continue. Accuracy on `balanced` is reported for its aligned and conflicting halves, over all classes and
within pairs. A pair is two classes that share their two contexts: the theory's two-class problem.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import tqdm

from sims.clip.comparison.config import Config, Run
from sims.clip.config import ARMS
from sims.clip.config import Config as Training
from sims.clip.fit import trained, training
from sims.clip.fit.prepare import TOKENIZER
from sims.clip.model.encoder import Encoder
from sims.clip.records import classes, images, sources, tokenizer
from sims.clip.records.reading import sealed, unsealed
from sims.clip.scenes import generation
from sims.clip.scenes import law as scenes
from sims.clip.zero_shot import scoring, sets
from sims.engine import files, processes, store
from sims.engine.flags import UsageError

GROUPS = ("aligned", "conflicting")
THEORIES = ("whitened", "linear")
# Sentences like the scenes' captions, which name the class alone.
TEMPLATES = ("a photo of a {}", "a picture of a {}", "there is a {}", "here is a {}", "a {}")
_ENSEMBLE = 64  # scenes a class, each in both contexts
_POOLED = 16  # pixels a side of the images that predictions use
RIDGES = (1e-3, 1e-4, 1e-2)  # of the predictions; the first, which the digits have too, is shown

Row = dict[str, Any]


def run(config: Config, out: pathlib.Path, *, workers: int = 1, overwrite: bool = False) -> list[Row]:
    """Train and measure every run that is not done; returns all rows, and writes them to OUT/measured.csv.

    workers: processes that train at the same time, each on its share of the cores.
    """
    config.check()
    scene = generation.read_config(pathlib.Path(config.root))
    flat = config.flat(scene)
    store.check(out, flat, overwrite)
    with begun(out, flat, overwrite, ("measured", "runs", "captions")):
        _write_texts(config, out, scene)
        own = (scene.pi_core, scene.pi_spu)  # the arm `clip` has this policy already
        shared = "arms" in config.study and "clip" in config.arms
        runs = [each for each in config.runs() if not (shared and (each.pi_core, each.pi_spu) == own)]
        rows = measured_by(_measured, [(config, each, out) for each in runs], workers)
        if shared and own[0] in config.pi_grid and own[1] in config.pi_grid:
            rows += [row | {"pi_core": own[0], "pi_spu": own[1]} for row in select(rows, arm="clip", pi_core=None)]
        if "captions" in config.study:
            rows += predictions(config, out)
        columns = {name: [row.get(name, "") for row in rows] for name in dict.fromkeys(k for row in rows for k in row)}
        store.write_csv(out / "measured.csv", columns)
        return rows


@contextlib.contextmanager
def begun(
    out: pathlib.Path, flat: Mapping[str, Any], overwrite: bool, parts: Sequence[str] = ("measured", "runs")
) -> Iterator[None]:
    """Hold the folder of a comparison that begins or goes on. overwrite: remove these parts of it first."""
    with store.locked(out):
        if overwrite:
            for name in parts:
                shutil.rmtree(out / name, ignore_errors=True)
            (out / TOKENIZER).unlink(missing_ok=True)
        store.begin(out, flat, overwrite)
        (out / "measured").mkdir(exist_ok=True)
        yield


def measured_by(measure: Callable[[Any], list[Row]], tasks: Sequence[Any], workers: int) -> list[Row]:
    """The rows of all tasks in their order, from this many processes at the same time."""
    rows: list[Row] = []
    with (
        processes.mapper(workers, pinned=True, stopped=True) as mapped,
        tqdm.tqdm(total=len(tasks), unit="run", disable=None) as bar,
    ):
        for measured in mapped(measure, tasks):
            rows += measured
            bar.update()
    return rows


def _write_texts(config: Config, out: pathlib.Path, scene: Any) -> None:
    """Write the captions of every policy, and one tokenizer for all, so that policies differ only in what is named."""
    root = pathlib.Path(config.root)
    (out / "captions").mkdir(exist_ok=True)
    for each in config.runs():
        if each.pi_core is not None and not (file := out / "captions" / each.captions).exists():
            generation.write_captions(root, each.pi_core, each.pi_spu, scene.pi_companion, file)
    if not (out / TOKENIZER).exists():
        source = sources.open_source(f"coco:{root}/coco")
        texts = [text for i in range(len(source)) for text in source.captions(i)]
        texts += [template.format(kind.name) for template in TEMPLATES for kind in scenes.CLASSES]
        tokenizer.train_tokenizer(texts, Training.vocabulary_size, config.context_length).save(out / TOKENIZER)


def _measured(task: tuple[Config, Run, pathlib.Path]) -> list[Row]:
    """A run's rows; it is trained and measured as far as they are missing."""
    config, each, out = task
    mend = f"remove {out}/runs/{each.name} and {out}/measured/{each.name}.*, and the same command trains that run again"
    rows = []
    for step in config.steps_of(each):
        kept = out / "measured" / f"{each.name}.{step}.json"
        if not kept.exists():
            how = training.How(stop_at=step, save_every=config.steps + 1, tensorboard=False, quiet=True)
            result = training.run(config.training(each, out), out / "runs" / each.name, how)
            if result["steps"] != step:
                raise UsageError(f"{out}/runs/{each.name} is past step {step}, and {kept} is not there; {mend}.")
            judged = _judge(config.root).rows(trained.load(out / "runs" / each.name), each)
            measured = [{**dataclasses.asdict(each), "step": step, **row} for row in judged]
            files.write_text(kept, sealed({"rows": measured}))
        rows += unsealed(kept, mend)["rows"]
    return rows


@functools.lru_cache(maxsize=1)
def _judge(root: str) -> "Judge":
    return Judge(pathlib.Path(root), generation.read_config(pathlib.Path(root)))


class Judge:
    """Measures models on every set of the scenes."""

    def __init__(self, root: pathlib.Path, scene: Any):
        self.scene, self.classes = scene, classes.read_classes(root)
        self.sets = sets.open_sets(root, None, self.classes)

    def rows(self, encoder: Encoder, each: Run) -> list[Row]:
        """Counts by set, prompts, group and scope.

        prompts: class, ensemble (texts of the run's own policy, over all that a class can have), or head.
        scope: all classes, or pair, the two that share contexts.
        id_*: val, over the set's classes.
        """
        weights = {"head": scoring.class_weights(encoder, self.classes.names, TEMPLATES)}
        if encoder.head is None:
            weights = {"class": weights["head"], "ensemble": (self.ensemble(encoder, each), weights["head"][1])}
        looked = self.sets if each.pi_core is None else {name: self.sets[name] for name in ("val", "balanced")}
        seen = {
            name: scoring.image_features(encoder, evaluation_set.paths, crop=evaluation_set.crop, batch_size=256)
            for name, evaluation_set in looked.items()
        }
        if bad := next((bad for one in seen.values() for bad in one.bad.items()), None):
            raise UsageError(f"{bad[0]} cannot be read ({bad[1]}); make the scenes again, with --overwrite.")
        rows = []
        for name, evaluation_set in looked.items():
            labels, values = evaluation_set.labels[seen[name].kept], seen[name].values
            group = None if evaluation_set.groups is None else evaluation_set.groups[seen[name].kept]
            for prompts, (w, b) in weights.items():
                right = scoring.ranks(values, labels, w, b, evaluation_set.scored) == 0
                places, mapped = scoring.restricted(self.sets["val"].labels[seen["val"].kept], evaluation_set.scored)
                on_val = scoring.ranks(seen["val"].values[places], mapped, w, b, evaluation_set.scored) == 0
                common = {"set": name, "prompts": prompts}
                common |= {"id_accuracy": float(on_val.mean()), "id_images": len(on_val)}
                rows.append({**common, "group": "all", "scope": "all", **_count(right)})
                if name == "balanced":
                    within = _within_pairs(values @ w.T + b, labels)
                    for half in GROUPS:
                        rows.append({**common, "group": half, "scope": "all", **_count(right[group == half])})
                        rows.append({**common, "group": half, "scope": "pair", **_count(within[group == half])})
        return rows

    def ensemble(self, encoder: Encoder, each: Run) -> np.ndarray:
        """(c, r): unit mean of the unit embeddings of texts of the run's policy."""
        embeddings = [np.asarray(encoder.encode_text(texts)) for texts in ensembles(self.scene, each)]
        mean = np.stack([(x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0) for x in embeddings])
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _count(right: np.ndarray) -> Row:
    return {"images": len(right), "correct": int(right.sum()), "accuracy": float(right.mean())}


def _within_pairs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) whether the true class has the higher score of the two that share their contexts."""
    partner = np.array([kind.partner for kind in scenes.CLASSES])
    at = np.arange(len(labels))
    return scores[at, labels] > scores[at, partner[labels]]


def ensembles(scene: Any, each: Run) -> list[list[str]]:
    """Texts for each class: the same scenes and mentions for all classes, each in both contexts of the class's pair."""
    core, spu = (scene.pi_core, scene.pi_spu) if each.pi_core is None else (each.pi_core, each.pi_spu)
    law, by_class = scenes.Law(1.0, scene.p_companion), []
    for k, kind in enumerate(scenes.CLASSES):
        drawn, texts = scenes.sample(np.random.default_rng(0), _ENSEMBLE, law, k), []
        for i, one in enumerate(drawn):
            for context in (k, kind.partner):
                rng = np.random.default_rng([1, i])
                moved = dataclasses.replace(one, context=context)
                texts.append(scenes.caption(moved, rng, core, spu, scene.pi_companion))
        by_class.append(texts)
    return by_class


def predictions(config: Config, out: pathlib.Path) -> list[Row]:
    """Predicted accuracy for each policy and ridge, by the whitened rule (X10) and the linear loss's: see `rules`.

    z is training pixels, pooled to 16 x 16. u is counts of the captions' words. Targets are mean counts of each class's
    ensemble of texts. A scene of `balanced` is classified by the sign of (w_k - w_k').(z - mean z), k' the class that
    shares k's contexts.
    """
    root = pathlib.Path(config.root)
    scene = generation.read_config(root)
    balanced = sets.open_sets(root, ["balanced"], classes.read_classes(root))["balanced"]
    test = np.stack([_pixels(images.decode(path.read_bytes(), str(path))) for path in balanced.paths])
    plain = sources.open_source(f"coco:{root}/coco")
    pixels = np.stack([_pixels(plain[i].image) for i in range(len(plain))])
    cov_image = np.cov(pixels, rowvar=False)  # the same for every policy, as the images are
    rows: list[Row] = []
    for core, spu in itertools.product(config.pi_grid, config.pi_grid):
        each = Run("clip", core, spu, 0)
        source = sources.open_source(f"coco:{root}/coco", captions_file=str(out / "captions" / each.captions))
        captions, groups = [source.captions(i) for i in range(len(source))], ensembles(scene, each)
        words = sorted({word for texts in (*captions, *groups) for text in texts for word in text.split()})
        index = {word: i for i, word in enumerate(words)}
        counts = [_counts(texts, index) for texts in captions]
        targets = np.stack([_counts(texts, index).mean(0) for texts in groups])
        for ridge, found_rules in zip(RIDGES, rules(pixels, cov_image, counts, targets, RIDGES), strict=True):
            for theory, rule in found_rules.items():
                right = _within_pairs((test - pixels.mean(0)) @ rule.T, balanced.labels)
                for half in GROUPS:
                    rows.append({
                        "arm": theory, "pi_core": core, "pi_spu": spu, "set": "balanced", "prompts": "ensemble",
                        "group": half, "scope": "pair", "ridge": ridge, **_count(right[balanced.groups == half]),
                    })  # fmt: skip
    return rows


def rules(
    pixels: np.ndarray,
    cov_image: np.ndarray,
    counts: Sequence[np.ndarray],
    targets: np.ndarray,
    ridges: Sequence[float],
) -> list[dict[str, np.ndarray]]:
    """w_k = C t_k of the linear loss, S_I^-1 C S_T^-1 t_k of the whitened one (X10): (k, d) each, for each ridge.

    Args:
      pixels: (n, d).
      cov_image: (d, d), their covariance.
      counts: n arrays (captions, v). C is of their means, S_T of each caption.
      targets: (k, v), t_k.
      ridges: added to S_I and S_T, relative to the mean variance of a feature.
    """
    each = np.stack([one.mean(0) for one in counts])
    cross = (pixels - pixels.mean(0)).T @ (each - each.mean(0)) / (len(pixels) - 1)
    cov_text, linear = np.cov(np.concatenate(list(counts)), rowvar=False), (cross @ targets.T).T
    by_ridge = []
    for ridge in ridges:
        read = np.linalg.solve(_ridged(cov_text, ridge), targets.T)
        by_ridge.append({"linear": linear, "whitened": np.linalg.solve(_ridged(cov_image, ridge), cross @ read).T})
    return by_ridge


def _pixels(image: np.ndarray) -> np.ndarray:
    view = images.evaluation_view(image, 2 * _POOLED).astype(float) / 255
    return view.reshape(_POOLED, 2, _POOLED, 2, 3).mean((1, 3)).ravel()


def _counts(texts: Sequence[str], index: Mapping[str, int]) -> np.ndarray:
    """(texts, words), how often each text has each word."""
    counts = np.zeros((len(texts), len(index)), np.float32)
    for row, text in zip(counts, texts, strict=True):
        for word in text.split():
            row[index[word]] += 1
    return counts


def _ridged(cov: np.ndarray, ridge: float) -> np.ndarray:
    return cov + ridge * cov.trace() / len(cov) * np.eye(len(cov))


def interval(values: Sequence[float], images: int) -> tuple[float, float]:
    """(mean over seeds, half its 95% interval).

    The interval covers seeds (Student's t) and the test images, which all seeds share. It does not cover the training
    scenes, which are the same for all seeds.
    values: shares.  images: number behind each share; they count as independent.
    """
    return mean_interval([values], [images])


def mean_interval(values: Sequence[Sequence[float]], images: Sequence[int]) -> tuple[float, float]:
    """As `interval`, of the mean over sets: values (sets, seeds), images (sets,)."""
    x = np.asarray(values, float)
    of_images = float((np.maximum((x * (1 - x)).mean(1), 0) / images).sum()) / len(x) ** 2
    return float(x.mean()), _half(x.mean(0), of_images)


def gap_interval(aligned: Sequence[float], conflicting: Sequence[float], images: int) -> tuple[float, float]:
    """As `interval`, of aligned minus conflicting accuracy, with `images` in each group."""
    a, c = np.asarray(aligned, float), np.asarray(conflicting, float)
    of_images = sum(float((x * (1 - x)).mean()) for x in (a, c)) / images
    gap = a - c
    return float(gap.mean()), _half(gap, of_images)


def _half(values: np.ndarray, of_images: float) -> float:
    of_seeds = scipy.stats.t.ppf(0.975, len(values) - 1) ** 2 * values.var(ddof=1) / len(values)
    return float((of_seeds + scipy.stats.norm.ppf(0.975) ** 2 * of_images) ** 0.5)


def prompts_of(arm: str) -> str:
    """The prompts that an arm is judged by in figures and tables."""
    return "class" if ARMS[arm].reads else "head"


def select(rows: Sequence[Row], **wanted: Any) -> Iterator[Row]:
    """The rows with these values."""
    return (row for row in rows if all(row.get(k) == v for k, v in wanted.items()))


def verdict(table: Mapping[str, Any], theory: str) -> str:
    """How often a theory has the sign of the measured gap, where that differs from 0; its distance, rank correlation.

    The signs in brackets are with a ridge ten times smaller and larger.
    """
    gap = table["clip"]["aligned"] - table["clip"]["conflicting"]
    significant = np.abs(gap) > table["half"]
    right = [int((np.sign(gap) == np.sign(predicted))[significant].sum()) for predicted in table[theory]["gap"]]
    distance = np.abs(gap - table[theory]["gap"][0]).mean()
    rank = scipy.stats.spearmanr(gap.ravel(), table[theory]["gap"][0].ravel()).statistic if gap.size > 2 else np.nan
    shown = f"right sign in {right[0]} ({right[1]}, {right[2]}) of {significant.sum()} cells told apart"
    return f"{theory}: {shown}, mean distance {distance:.2f}" + (f", rank {rank:.2f}" if np.isfinite(rank) else "")

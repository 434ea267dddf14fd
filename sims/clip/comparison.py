"""The paper's comparison on generated scenes: arms over seeds, and what captions name; measured, and predicted.

A run is trained in stages; after each its accuracies go to OUT/measured/RUN.STEP.json, so that a comparison that was
stopped goes on. Accuracy on `balanced` is told for its aligned and conflicting halves, over all classes and within
pairs of classes that share their two contexts, which is the theory's two-class problem.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import tqdm

from sims import store
from sims.clip import classes, images, make_scenes, processes, scenes, sets, sources, tokenizer, training, zero_shot
from sims.clip.comparison_config import Config, Run
from sims.clip.config import Config as Training
from sims.clip.zero_shot import Encoder

GROUPS = ("aligned", "conflicting")
THEORIES = ("whitened", "linear")
# Sentences of the scenes' own kind, which name the class alone.
TEMPLATES = ("a photo of a {}", "a picture of a {}", "there is a {}", "here is a {}", "a {}")
_ENSEMBLE = 64  # scenes a class, each in both contexts
_POOLED = 16  # pixels a side, of the predictions
_RIDGE = 1e-3  # of the predictions' covariances, relative to a feature's mean variance, as for the digits

Row = dict[str, Any]


def run(config: Config, out: pathlib.Path, *, workers: int = 1, overwrite: bool = False) -> list[Row]:
    """Train and measure every run that is not done; all rows, also written to OUT/measured.csv.

    workers: processes that train at the same time, each on its share of the cores.
    """
    config.check()
    store.check(out, config.flat(), overwrite)
    with store.locked(out):
        store.begin(out, config.flat(), overwrite)
        (out / "measured").mkdir(exist_ok=True)
        for old in (out / "measured").iterdir() if overwrite else ():
            old.unlink()
        scene = make_scenes.read_config(pathlib.Path(config.root))
        _write_texts(config, out, scene)
        rows: list[Row] = []
        own = (scene.pi_core, scene.pi_spu)  # a policy that the arm `clip` has already
        shared = "arms" in config.study and "clip" in config.arms
        runs = [each for each in config.runs() if not (shared and (each.pi_core, each.pi_spu) == own)]
        tasks = [(config, each, out, overwrite) for each in runs]
        with (
            processes.mapper(workers, pinned=True, stopped=True) as mapped,
            tqdm.tqdm(total=len(runs), unit="run", disable=None) as bar,
        ):
            for found in mapped(_measured, tasks):
                rows += found
                bar.update()
        if shared and own[0] in config.pi_grid and own[1] in config.pi_grid:
            rows += [row | {"pi_core": own[0], "pi_spu": own[1]} for row in select(rows, arm="clip", pi_core=None)]
        if "captions" in config.study:
            rows += predictions(config, out)
        columns = {name: [row.get(name, "") for row in rows] for name in dict.fromkeys(k for row in rows for k in row)}
        store.write_csv(out / "measured.csv", columns)
        return rows


def _write_texts(config: Config, out: pathlib.Path, scene: Any) -> None:
    """Captions of every policy, and one tokenizer for all, so that they differ in what is named alone."""
    root = pathlib.Path(config.root)
    (out / "captions").mkdir(exist_ok=True)
    for each in config.runs():
        if each.pi_core is not None and not (out / "captions" / each.captions).exists():
            make_scenes.write_captions(
                root, each.pi_core, each.pi_spu, scene.pi_companion, out / "captions" / each.captions
            )
    if not (out / "tokenizer.json").exists():
        source = sources.open_source(f"coco:{root}/coco")
        texts = [text for i in range(len(source)) for text in source.captions(i)]
        texts += [template.format(kind.name) for template in TEMPLATES for kind in scenes.CLASSES]
        tokenizer.train_tokenizer(texts, Training.vocabulary_size, config.context_length).save(out / "tokenizer.json")


def _measured(task: tuple[Config, Run, pathlib.Path, bool]) -> list[Row]:
    """A run's rows, trained and measured as far as they are not there."""
    config, each, out, overwrite = task
    rows, done = [], 0
    for step in config.steps_of(each):
        kept = out / "measured" / f"{each.name}.{step}.json"
        if not kept.exists():
            how = training.How(
                stop_after=step - done, save_every=config.steps + 1, tensorboard=False, quiet=True, overwrite=overwrite
            )
            training.run(config.training(each, out), out / "runs" / each.name, how)
            found = _judge(config.root).rows(training.load(out / "runs" / each.name), each)
            store.write_text(kept, json.dumps([{**dataclasses.asdict(each), "step": step, **row} for row in found]))
        rows += json.loads(kept.read_text())
        done, overwrite = step, False
    return rows


@functools.lru_cache(maxsize=1)
def _judge(root: str) -> "Judge":
    return Judge(pathlib.Path(root), make_scenes.read_config(pathlib.Path(root)))


class Judge:
    """Measures models on every set of the scenes."""

    def __init__(self, root: pathlib.Path, scene: Any):
        self.scene, self.classes = scene, classes.read_classes(root)
        self.sets = sets.open_sets(root, None, self.classes)

    def rows(self, encoder: Encoder, each: Run) -> list[Row]:
        """Counts by set, prompts, group and scope.

        prompts: class, ensemble (texts of the run's own policy over all that a class can have), or head.  scope: all
        classes, or pair, the two that share contexts.  id_*: val, over the set's classes.
        """
        weights = {"head": zero_shot.class_weights(encoder, self.classes.names, TEMPLATES)}
        if encoder.head is None:
            weights = {"class": weights["head"], "ensemble": (self.ensemble(encoder, each), np.zeros(1, np.float32))}
        looked = self.sets if each.pi_core is None else {name: self.sets[name] for name in ("val", "balanced")}
        seen = {
            name: zero_shot.image_features(encoder, found.paths, crop=found.crop, batch_size=256)
            for name, found in looked.items()
        }
        rows = []
        for name, found in looked.items():
            labels, values = found.labels[seen[name].kept], seen[name].values
            group = None if found.groups is None else found.groups[seen[name].kept]
            for prompts, (w, b) in weights.items():
                right = zero_shot.ranks(values, labels, w, b, found.scored) == 0
                places, mapped = zero_shot.restricted(self.sets["val"].labels[seen["val"].kept], found.scored)
                on_val = zero_shot.ranks(seen["val"].values[places], mapped, w, b, found.scored) == 0
                common = {"set": name, "prompts": prompts, "id_accuracy": float(on_val.mean())}
                rows.append({**common, "group": "all", "scope": "all", **_count(right)})
                if name == "balanced":
                    within = _within_pairs(values @ w.T + b, labels)
                    for half in GROUPS:
                        rows.append({**common, "group": half, "scope": "all", **_count(right[group == half])})
                        rows.append({**common, "group": half, "scope": "pair", **_count(within[group == half])})
        return rows

    def ensemble(self, encoder: Encoder, each: Run) -> np.ndarray:
        """(c, r): unit mean of the unit embeddings of texts of the run's policy."""
        assert encoder.encode_text is not None
        found = [np.asarray(encoder.encode_text(texts)) for texts in ensembles(self.scene, each)]
        mean = np.stack([(x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0) for x in found])
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _count(right: np.ndarray) -> Row:
    return {"images": len(right), "correct": int(right.sum()), "accuracy": float(right.mean())}


def _within_pairs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) whether the true class has the higher score of the two that share their contexts."""
    partner = np.array([kind.partner for kind in scenes.CLASSES])
    at = np.arange(len(labels))
    return scores[at, labels] > scores[at, partner[labels]]


def ensembles(scene: Any, each: Run) -> list[list[str]]:
    """Texts for each class: the same scenes and mentions for all of them, each in the two contexts of its pair."""
    core, spu = (scene.pi_core, scene.pi_spu) if each.pi_core is None else (each.pi_core, each.pi_spu)
    law, found = scenes.Law(1.0, scene.p_companion), []
    for k, kind in enumerate(scenes.CLASSES):
        drawn, texts = scenes.sample(np.random.default_rng(0), _ENSEMBLE, law, k), []
        for i, one in enumerate(drawn):
            for context in (k, kind.partner):
                rng = np.random.default_rng([1, i])
                moved = dataclasses.replace(one, context=context)
                texts.append(scenes.caption(moved, rng, core, spu, scene.pi_companion))
        found.append(texts)
    return found


def predictions(config: Config, out: pathlib.Path) -> list[Row]:
    """For each policy, what X10's whitened rule and the linear loss's make of the scenes: accuracy within pairs.

    z: training pixels, pooled to 16 x 16; u: counts of the captions' words. C, S_I, S_T from the training set, a ridge
    of 1e-3 of the mean variance on S_I, S_T; w = S_I^-1 C S_T^-1 (t_k - t_k') or C (t_k - t_k'), t_k the mean counts of
    the class's ensemble of texts; accuracy is of the sign of w.(z - mean z) on `balanced`.
    """
    root = pathlib.Path(config.root)
    scene, found = (
        make_scenes.read_config(root),
        sets.open_sets(root, ["balanced"], classes.read_classes(root))["balanced"],
    )
    assert found.groups is not None
    test = np.stack([_pixels(images.decode(path.read_bytes(), str(path))) for path in found.paths])
    plain = sources.open_source(f"coco:{root}/coco")
    pixels = np.stack([_pixels(plain[i].image) for i in range(len(plain))])
    mean = pixels.mean(0)
    pixels, test = pixels - mean, test - mean
    cov_image = _ridge(np.cov(pixels, rowvar=False))
    rows: list[Row] = []
    for core in config.pi_grid:
        for spu in config.pi_grid:
            each = Run("clip", core, spu, 0)
            source = sources.open_source(f"coco:{root}/coco", captions_file=str(out / "captions" / each.captions))
            told, groups = [source.captions(i) for i in range(len(source))], ensembles(scene, each)
            words = sorted({word for texts in (*told, *groups) for text in texts for word in text.split()})
            index = {word: i for i, word in enumerate(words)}
            counts = np.stack([_counts(texts, index) for texts in told])
            # Each image is seen with each of its captions: S_T is that of one caption, C of their mean.
            cov_text = _ridge(np.cov(np.concatenate([_each(texts, index) for texts in told]), rowvar=False))
            cross = pixels.T @ (counts - counts.mean(0)) / (len(pixels) - 1)
            targets = np.stack([_counts(texts, index) for texts in groups])
            rules = {
                "linear": cross @ targets.T,
                "whitened": np.linalg.solve(cov_image, cross @ np.linalg.solve(cov_text, targets.T)),
            }
            for theory, rule in rules.items():
                right = _within_pairs(test @ rule, found.labels)
                for half in GROUPS:
                    share = _count(right[found.groups == half])
                    rows.append({
                        "arm": theory, "pi_core": core, "pi_spu": spu, "set": "balanced", "prompts": "ensemble",
                        "group": half, "scope": "pair", **share,
                    })  # fmt: skip
    return rows


def _pixels(image: np.ndarray) -> np.ndarray:
    view = images.evaluation_view(image, 2 * _POOLED).astype(float) / 255
    return view.reshape(_POOLED, 2, _POOLED, 2, 3).mean((1, 3)).ravel()


def _each(texts: Sequence[str], index: Mapping[str, int]) -> np.ndarray:
    found = np.zeros((len(texts), len(index)), np.float32)
    for row, text in zip(found, texts, strict=True):
        for word in text.split():
            row[index[word]] += 1
    return found


def _counts(texts: Sequence[str], index: Mapping[str, int]) -> np.ndarray:
    return _each(texts, index).mean(0)


def _ridge(cov: np.ndarray) -> np.ndarray:
    return cov + _RIDGE * cov.trace() / len(cov) * np.eye(len(cov))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the 95% interval over seeds (Student's t)."""
    x = np.asarray(values, float)
    return float(x.mean()), float(scipy.stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)


def select(rows: Sequence[Row], **wanted: Any) -> Iterator[Row]:
    """The rows with these values."""
    return (row for row in rows if all(row.get(k) == v for k, v in wanted.items()))


def verdict(table: Mapping[str, Any], theory: str) -> str:
    """How often a theory has the sign of the measured gap, where that is told from 0, and its distance and ranks."""
    gaps = {who: table[who]["conflicting"] - table[who]["aligned"] for who in ("clip", theory)}
    told = np.abs(gaps["clip"]) > table["half"]
    right = (np.sign(gaps["clip"]) == np.sign(gaps[theory]))[told].sum()
    distance = np.abs(gaps["clip"] - gaps[theory]).mean()
    rank = scipy.stats.spearmanr(gaps["clip"].ravel(), gaps[theory].ravel()).statistic
    return f"{theory}: right sign in {right} of {told.sum()} cells told apart, rank {rank:.2f}, distance {distance:.2f}"

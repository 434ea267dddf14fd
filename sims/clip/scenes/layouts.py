"""What the generated scenes' folders hold: sets, file names, annotations, tables and mappings, in the true layouts.

Pure functions of a Config; `generation` writes what they return.
"""

import collections
import dataclasses
import json
from typing import Any

import numpy as np

from sims.clip.scenes import law as scenes
from sims.clip.scenes.law import CLASSES, CONTEXTS, Law, Scene
from sims.engine.flags import UsageError

VERSION = 1  # of drawings and layout; a folder of another version is not continued
WRITTEN = (
    "coco", "val", "balanced", "imagenetv2-matched-frequency", "sketch", "imagenet-r", "imagenet-a", "objectnet-1.0",
    "classes.json", "scenes.png",
)  # fmt: skip
_VAL_IDS = 10_000_000  # val2017's image ids start here, above train2017's
_INSTANCES = 2  # ids an image: the object and its companion
_BY_NAME = {kind.name: k for k, kind in enumerate(CLASSES)}
_RENDERED = ("acoustic guitar", "broom", "candle", "traffic light", "umbrella", "mushroom")
_ADVERSARIAL = ("balloon", "daisy", "teapot", "yawl", "umbrella", "mushroom")
# folder: (ObjectNet's label, our classes in it, whether ImageNet has any). The scored classes include two pairs of
# partners, so that a context can mislead.
_OBJECTNET = {
    "broom": ("Broom", ("broom",), True),
    "flower": ("Flower", ("daisy",), False),
    "guitar": ("Guitar", ("acoustic guitar",), True),
    "hot_air_balloon": ("Hot air balloon", ("balloon",), False),
    "light": ("Light", ("candle", "traffic light"), True),
    "sailboat": ("Sailboat", ("yawl",), True),
    "teapot": ("Teapot", ("teapot",), True),
    "umbrella": ("Umbrella", ("umbrella",), True),
}
_FOLDER_OF = {_BY_NAME[name]: folder for folder, (_, names, _) in _OBJECTNET.items() for name in names}

Row = dict[str, Any]
Outline = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of generated scenes.

    Attributes:
      train: training images.
      test: images of a class in each evaluation set.
      side: pixels.
      captions: captions of an image.
      p_spu, pi_core, pi_spu, p_companion, pi_companion: see `law`.
      seed: root of all randomness.
    """

    train: int = 8000
    test: int = 50
    side: int = 64
    p_spu: float = 0.8
    pi_core: float = 0.5
    pi_spu: float = 0.5
    p_companion: float = 0.25
    pi_companion: float = 0.5
    captions: int = 5
    seed: int = 0

    def check(self) -> None:
        """Raises: UsageError naming the first setting that is not allowed."""
        for name in ("p_spu", "pi_core", "pi_spu", "p_companion", "pi_companion"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"--{name} must be in [0, 1], got {value}.")
        limits = {"train": (1, 1_000_000), "test": (1, 10_000), "side": (24, 512), "captions": (1, 100)}
        for name, (low, high) in (limits | {"seed": (0, 2**32 - 1)}).items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"--{name} must be in [{low}, {high}], got {getattr(self, name)}.")


@dataclasses.dataclass(frozen=True)
class Split:
    """A set of images: scene i is a pure function of (seed, stream, i).

    Attributes:
      labels: its classes, in turn; empty: every class, at random.
      file: name of an image in `folder`, from its scene and the wnid and number of its class.
      border: red pixels a side.
    """

    name: str
    folder: str
    stream: int
    count: int
    law: Law
    labels: tuple[int, ...]
    file: str
    seed: int
    border: int = 0

    def scene(self, i: int) -> Scene:
        label = self.labels[i % len(self.labels)] if self.labels else None
        return scenes.sample(np.random.default_rng([self.seed, self.stream, i]), 1, self.law, label)[0]

    def path(self, i: int, scene: Scene) -> str:
        """The path of image i in the folder."""
        wnid, home = CLASSES[scene.label].wnid, _FOLDER_OF.get(scene.label)
        return self.file.format(i=i, id=self.image_id(i), wnid=wnid, label=scene.label, style=scene.style, home=home)

    def image_id(self, i: int) -> int:
        """COCO's id of image i."""
        return i + 1 + (_VAL_IDS if self.name == "val2017" else 0)


def splits(config: Config) -> dict[str, Split]:
    """The sets by name; those of one folder follow each other."""
    everything = tuple(range(len(CLASSES)))
    p, companion = config.p_spu, config.p_companion
    law, nearby = Law(p, companion), Law(0.5 + 0.8 * (p - 0.5), companion, zoom=0.9, noise=9.0)
    of = [
        ("train2017", "coco", config.train, law, (), "train2017/{id:012d}.jpg"),
        ("val2017", "coco", config.test * len(CLASSES), law, (), "val2017/{id:012d}.jpg"),
        ("val", "val", config.test, law, everything, "{wnid}/ILSVRC2012_val_{i:08d}.JPEG"),
        ("balanced", "balanced", config.test, Law(0.5, companion), everything, "{wnid}/balanced_{i:08d}.JPEG"),
        ("v2", WRITTEN[3], config.test, nearby, everything, "{label}/{i:08d}.jpeg"),
        ("sketch", "sketch", config.test, Law(None, styles=("sketch",)), everything, "{wnid}/sketch_{i}.JPEG"),
        ("r", "imagenet-r", config.test, Law(None, styles=("cartoon", "poster", "painting")), _labels(_RENDERED),
         "{wnid}/{style}_{i}.jpg"),
        ("a", "imagenet-a", config.test, Law(0.0, companion, sizes=("small",), zoom=0.95, cover=0.2),
         _labels(_ADVERSARIAL), "{wnid}/{i:08d}.jpg"),
        ("objectnet", "objectnet-1.0", config.test, Law(0.5, companion, turned=True, wander=0.25),
         tuple(sorted(_FOLDER_OF)), "images/{home}/{i:08d}.png"),
    ]  # fmt: skip
    return {
        name: Split(name, folder, stream, n * max(len(labels), 1), law, labels, file, config.seed,
                    2 if name == "objectnet" else 0)
        for stream, (name, folder, n, law, labels, file) in enumerate(of)
    }  # fmt: skip


def _labels(names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(sorted(_BY_NAME[name] for name in names))


def row(split: Split, i: int, scene: Scene) -> Row:
    """Image i's line of scenes.csv. Without a context, group and shade are empty; where any angle occurs, pose is."""
    context = CONTEXTS[scene.context] if scene.context >= 0 else ""
    companion = CLASSES[scene.companion].wnid if scene.companion >= 0 else ""
    return {
        "path": split.path(i, scene), "wnid": CLASSES[scene.label].wnid, "context": context, "group": scene.group,
        "shade": scene.shade if context else "", "colour": scene.colour, "fill": scene.fill, "size": scene.size,
        "pose": "" if split.law.turned else scene.pose, "companion": companion, "style": scene.style,
    }  # fmt: skip


def counts(rows: list[Row]) -> dict[str, Any]:
    """The numbers of scored images and classes, and of images in each class (for ObjectNet, in each scored folder)."""
    images: collections.Counter[str] = collections.Counter()
    for entry in rows:
        folder = entry["path"].split("/")[1] if entry["path"].startswith("images/") else None
        if folder is None or _OBJECTNET[folder][2]:
            images[folder or entry["wnid"]] += 1
    return {"images": images.total(), "classes": len(images), "counts": dict(sorted(images.items()))}


def outlines(masks: list[tuple[int, np.ndarray]]) -> list[Outline]:
    """Label, bbox [left, top, width, height], area in pixels and run lengths of the visible part of each object."""
    visible = []
    for label, mask in masks:
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            runs = {"size": list(mask.shape), "counts": run_lengths(mask)}
            visible.append({"label": label, "bbox": box, "area": int(mask.sum()), "segmentation": runs})
    return visible


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of 0 and 1 in turn down the columns, the first of 0: COCO's uncompressed encoding."""
    flat = mask.ravel(order="F")
    ends = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    return [0] * int(flat[0]) + np.diff(ends).tolist()


def instances_json(config: Config, split: Split, outlines_of: list[list[Outline]]) -> dict[str, Any]:
    """COCO's instances of a split; a category's id is 1 + the class's index."""
    annotations = [
        {
            "id": _INSTANCES * split.image_id(i) + k, "image_id": split.image_id(i), "category_id": 1 + o["label"],
            "bbox": o["bbox"], "area": o["area"], "iscrowd": 0, "segmentation": o["segmentation"],
        }
        for i, objects in enumerate(outlines_of)
        for k, o in enumerate(objects)
    ]  # fmt: skip
    categories = [{"id": 1 + k, "name": kind.name, "supercategory": "object"} for k, kind in enumerate(CLASSES)]
    return {**_head(config, split), "annotations": annotations, "categories": categories}


def captions_json(config: Config, split: Split, seed: int) -> dict[str, Any]:
    """COCO's captions of a split (without categories), config.captions for each image.

    Mentions and phrasings compare the chances with random numbers that are a pure function of (seed, stream, i). So two
    policies at one seed differ only in what is named.
    """
    annotations = []
    for i in range(split.count):
        rng, scene = np.random.default_rng([seed, split.stream, i, 1]), split.scene(i)
        for k in range(config.captions):
            text = scenes.caption(scene, rng, config.pi_core, config.pi_spu, config.pi_companion)
            identity = config.captions * split.image_id(i) + k
            annotations.append({"id": identity, "image_id": split.image_id(i), "caption": text})
    return {**_head(config, split), "annotations": annotations}


def _head(config: Config, split: Split) -> dict[str, Any]:
    info = {"description": "generated scenes", "url": "", "version": str(VERSION), "year": 2017, "contributor": "",
            "date_created": ""}  # fmt: skip
    license = {"id": 1, "name": "none", "url": ""}
    images = []
    for i in range(split.count):
        name = split.file.format(id=split.image_id(i)).rpartition("/")[2]
        images.append({"id": split.image_id(i), "file_name": name, "height": config.side, "width": config.side,
                       "license": 1, "coco_url": "", "flickr_url": "", "date_captured": ""})  # fmt: skip
    return {"info": info, "licenses": [license], "images": images}


def metadata() -> dict[str, str]:
    """Texts of the class list and of ObjectNet's mappings by file."""
    count = len(CLASSES)
    listed = {str(k): [kind.wnid, kind.name.replace(" ", "_")] for k, kind in enumerate(CLASSES)}
    # ImageNet numbers its classes of 2012 in another order than that of wnids, and so do these (3 and 10 are coprime).
    numbers = [(3 * k + 4) % count for k in range(count)]
    mapped = {
        label: "; ".join(CLASSES[_BY_NAME[name]].synonyms for name in names)
        for label, names, known in _OBJECTNET.values()
        if known
    }
    tables = {
        "classes.json": listed,
        "objectnet-1.0/mappings/folder_to_objectnet_label.json": {k: label for k, (label, _, _) in _OBJECTNET.items()},
        "objectnet-1.0/mappings/objectnet_to_imagenet_1k.json": mapped,
        "objectnet-1.0/mappings/pytorch_to_imagenet_2012_id.json": {str(k): n for k, n in enumerate(numbers)},
    }
    by_number = "".join(f"{CLASSES[numbers.index(n)].synonyms}\n" for n in range(count))
    texts = {file: json.dumps(table, indent=1) for file, table in tables.items()}
    return texts | {"objectnet-1.0/mappings/imagenet_to_label_2012_v2": by_number}

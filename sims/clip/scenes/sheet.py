"""A sheet of samples of the generated scenes, read from their folder."""

import csv
import pathlib
import textwrap
from typing import Any

import numpy as np
from PIL import Image

from sims.clip.records.reading import own_json
from sims.clip.scenes.law import CLASSES
from sims.clip.scenes.layouts import Row

_SHEET = {
    "coco": "training (COCO)",
    "val": "val: the law of training",
    "balanced": "balanced: P*, contexts at random",
    "imagenetv2-matched-frequency": "V2: fresh draws,\na slightly other law",
    "sketch": "Sketch",
    "imagenet-r": "R: renditions",
    "imagenet-a": "A: small, half hidden,\nthe other's context",
    "objectnet-1.0": "ObjectNet: turned,\nwith its border",
}


def sheet(root: pathlib.Path, columns: int = 8) -> Any:
    """A matplotlib Figure with samples of each set in `root`; those of training have a caption.

    The last training images are conflicting: three, or a third of the columns if that is less, as far as there are so
    many.
    """
    from matplotlib.figure import Figure

    wide = 1.5 * columns + 1
    figure = Figure(figsize=(wide, 2.05 * len(_SHEET)))
    axes = figure.subplots(len(_SHEET), columns, squeeze=False)
    # Set by hand: matplotlib's own layout takes seconds for so many axes.
    figure.subplots_adjust(left=0.6 / wide, right=0.995, bottom=0.005, top=0.955, wspace=0.05, hspace=0.4)
    names = {kind.wnid: kind.name for kind in CLASSES}
    captions = own_json(root / "coco/annotations/captions_train2017.json", "make the scenes again, with --overwrite")
    caption_of: dict[str, str] = {}
    for entry in captions["annotations"]:
        caption_of.setdefault(f"train2017/{entry['image_id']:012d}.jpg", entry["caption"])
    for line, (folder, title) in zip(axes, _SHEET.items(), strict=True):
        with open(root / folder / "scenes.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if folder != "coco" or row["path"] in caption_of]
        for ax, row in zip(line, _chosen(rows, columns, folder == "coco"), strict=False):
            with Image.open(root / folder / row["path"]) as image:
                ax.imshow(np.asarray(image.convert("RGB")), interpolation="nearest")
            facts = ", ".join(filter(None, (names[row["wnid"]], row["context"], row["group"])))
            text = f"{caption_of[row['path']]} [{row['group']}]" if folder == "coco" else facts
            folded = textwrap.wrap(text, 24, break_long_words=False, break_on_hyphens=False)
            ax.set_title("\n".join(folded), fontsize=7)
        for ax in line:
            ax.set_axis_off()
        line[0].text(-0.12, 0.5, title, transform=line[0].transAxes, rotation=90, va="center", ha="right", fontsize=8)
    return figure


def _chosen(rows: list[Row], count: int, training: bool) -> list[Row]:
    """Rows of the classes in turn; for training, aligned rows and then up to three conflicting ones."""
    if training:
        last = [row for row in rows if row["group"] == "conflicting"][: min(3, count // 3)]
        return [row for row in rows if row["group"] == "aligned"][: count - len(last)] + last
    by_class: dict[str, list[Row]] = {}
    for row in rows:
        by_class.setdefault(row["wnid"], []).append(row)
    lists = list(by_class.values())
    return [lists[k % len(lists)][(7 * k) % len(lists[k % len(lists)])] for k in range(count)]

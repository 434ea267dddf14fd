"""A folder of scenes: made by several processes, used again, refused if it holds others; and other captions for it."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from sims.clip.records.reading import json_of
from sims.clip.scenes import law, layouts
from sims.clip.scenes.layouts import Config, Outline, Row, Split, splits
from sims.clip.scenes.sheet import sheet
from sims.engine import files, processes
from sims.engine.flags import UsageError, WorkFailed, check_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DONE, _BEGUN, _LOCK = "scenes.json", ".scenes.begun.json", ".scenes.lock"
_CHUNK = 64


def make(root: pathlib.Path, config: Config, *, workers: int = 1, overwrite: bool = False) -> bool:
    """Make all sets in `root`, or what is missing of them; returns whether there was anything to do.

    Waits for another process that makes scenes there.
    Raises: UsageError if `root` is no folder, holds other files, or holds scenes of other settings (unless overwrite);
    then nothing is written. WorkFailed if writing fails; what is written stays.
    """
    config.check()
    check_range("workers", workers, 1)
    if not _missing(root, config, overwrite):
        return False
    with _locked(root):
        if not _missing(root, config, overwrite):
            return False
        _begin(root, config, overwrite)
        _make(root, config, workers)
    return True


def _make(root: pathlib.Path, config: Config, workers: int) -> None:
    done = {"version": layouts.VERSION, "config": dataclasses.asdict(config), "sets": {}}
    try:
        with processes.mapper(workers) as mapped:
            for folder, group in itertools.groupby(splits(config).values(), lambda split: split.folder):
                rows: list[Row] = []
                for split in group:
                    drawn = _drawn(root, config, split, mapped)
                    rows += [row for row, _ in drawn]
                    if folder == "coco":
                        _annotate(root, config, split, [outlines for _, outlines in drawn])
                _write_csv(root / folder / "scenes.csv", rows)
                if folder != "coco":
                    done["sets"][folder] = layouts.counts(rows)
        for name, text in layouts.metadata().items():
            _write(root / name, text)
        _write_png(root / "scenes.png", sheet(root))
        _write(root / _DONE, json.dumps(done, indent=1))
        (root / _BEGUN).unlink()
    except BrokenProcessPool:
        raise WorkFailed(
            "a process was killed, perhaps for memory; the same command goes on, with fewer --workers."
        ) from None
    except OSError as error:
        raise WorkFailed(
            f"cannot write to {root} ({error.strerror}); the same command goes on from what is written."
        ) from None


def default(root: pathlib.Path) -> None:
    """Make the default scenes in `root`, unless it holds scenes of any settings.

    Waits for another process that makes scenes there.
    """
    if (root / _BEGUN).exists():
        with _locked(root):
            pass
    if not (root / _DONE).exists():
        make(root, Config(), workers=processes.cores())


def read_config(root: pathlib.Path) -> Config:
    """The settings of the scenes in `root`. Raises: UsageError if there are none, or they are unfinished or damaged."""
    return _config_of(root / _DONE)


def write_captions(
    root: pathlib.Path, pi_core: float, pi_spu: float, pi_companion: float, path: pathlib.Path, seed: int | None = None
) -> None:
    """Write another captions JSON for the training images in `root` to `path`: captions change, the images stay.

    seed: of mentions and phrasings; None: the scenes' own, so that policies differ only in what is named.
    """
    config = read_config(root)
    named = dataclasses.replace(config, pi_core=pi_core, pi_spu=pi_spu, pi_companion=pi_companion)
    if seed is not None:
        dataclasses.replace(named, seed=seed).check()
    named.check()
    captions = layouts.captions_json(named, splits(config)["train2017"], config.seed if seed is None else seed)
    try:
        _write(path, json.dumps(captions))
    except OSError as error:
        raise UsageError(f"--captions_to={path} cannot be written ({error.strerror}).") from None


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
    """Hold the lock of `root`, made if need be, against other processes that make scenes."""
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            waiting = f"waiting for another process, which makes scenes in {root}."
            stack.enter_context(files.locked(root / _LOCK, waiting))
        except OSError as error:
            raise UsageError(f"--out={root} cannot be written ({error.strerror}).") from None
        yield


def _missing(root: pathlib.Path, config: Config, overwrite: bool) -> bool:
    """Whether there is anything to make in `root`. Raises: UsageError if these scenes must not go there."""
    if root.exists() and not root.is_dir():
        raise UsageError(f"--out={root} is a file; name a folder.")
    record = next((root / name for name in (_DONE, _BEGUN) if (root / name).exists()), None)
    unfinished = {files.beside(root / _BEGUN).name, _LOCK}
    if record is None and root.exists() and {path.name for path in root.iterdir()} - unfinished:
        raise UsageError(f"--out={root} holds other files; name an empty or a new folder.")
    if record is not None and not overwrite:
        made = _config_of(record)
        if made != config:
            at = {f.name: getattr(made, f.name) for f in dataclasses.fields(Config)}
            other = ", ".join(f"--{k}={v}" for k, v in at.items() if v != getattr(config, k))
            raise UsageError(f"--out={root} holds scenes with {other}; name another folder, or --overwrite them.")
        return record.name != _DONE
    return True


def _begin(root: pathlib.Path, config: Config, overwrite: bool) -> None:
    """Note in `root` what is being made, after removing what is overwritten."""
    try:
        if overwrite and ((root / _DONE).exists() or (root / _BEGUN).exists()):
            _write(root / _BEGUN, "being removed")  # no settings: only --overwrite may follow
            for name in (_DONE, *layouts.WRITTEN):
                _remove(root / name)
        _write(root / _BEGUN, json.dumps({"version": layouts.VERSION, "config": dataclasses.asdict(config)}))
    except OSError as error:
        raise UsageError(f"--out={root} cannot be written ({error.strerror}).") from None


def _config_of(path: pathlib.Path) -> Config:
    try:
        record = json_of(path)
        if record["version"] != layouts.VERSION:
            raise UsageError(
                f"{path.parent} holds scenes of another version; name another folder, or --overwrite them."
            )
        config = Config(**record["config"])
        config.check()
        return config
    except FileNotFoundError:
        raise UsageError(f"{path.parent} has no {path.name}: no scenes, or unfinished ones; make them first.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is damaged; make the scenes again, with --overwrite.") from None


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _drawn(root: pathlib.Path, config: Config, split: Split, mapped: Callable) -> list[tuple[Row, list[Outline]]]:
    """Each image's row of scenes.csv and its objects' outlines; images that are missing are drawn."""
    tasks = [(root, config, split.name, range(k, min(k + _CHUNK, split.count))) for k in range(0, split.count, _CHUNK)]
    drawn = []
    with tqdm(total=split.count, desc=split.name, unit="image", disable=None, leave=False) as bar:
        for part in mapped(_draw_some, tasks):
            drawn += part
            bar.update(len(part))
    return drawn


def _draw_some(task: tuple[pathlib.Path, Config, str, range]) -> list[tuple[Row, list[Outline]]]:
    root, config, name, numbers = task
    split, drawn = splits(config)[name], []
    for i in numbers:
        scene = split.scene(i)
        path = root / split.folder / split.path(i, scene)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.whole(path) as new:
                new.write_bytes(_encoded(law.draw(scene, config.side), split, path.suffix))
        outlines = layouts.outlines(law.masks(scene, config.side)) if split.folder == "coco" else []
        drawn.append((layouts.row(split, i, scene), outlines))
    return drawn


def _encoded(image: np.ndarray, split: Split, suffix: str) -> bytes:
    if split.border:
        high, wide = (side + 2 * split.border for side in image.shape[:2])
        framed = np.full((high, wide, 3), (255, 0, 0), np.uint8)
        framed[split.border : -split.border, split.border : -split.border] = image
        image = framed
    file = io.BytesIO()
    form = {"format": "PNG"} if suffix == ".png" else {"format": "JPEG", "quality": 90}
    Image.fromarray(image).save(file, **form)
    return file.getvalue()


def _annotate(root: pathlib.Path, config: Config, split: Split, outlines: list[list[Outline]]) -> None:
    folder = root / split.folder / "annotations"
    instances = layouts.instances_json(config, split, outlines)
    _write(folder / f"instances_{split.name}.json", json.dumps(instances))
    _write(folder / f"captions_{split.name}.json", json.dumps(layouts.captions_json(config, split, config.seed)))


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)


def _write_csv(path: pathlib.Path, rows: list[Row]) -> None:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(path, file.getvalue())


def _write_png(path: pathlib.Path, figure: "Figure") -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=90)
    # 128 colours are enough, and the file is a third of the size.
    with Image.open(drawn) as image, files.whole(path) as new:
        image.convert("RGB").quantize(128).save(new, format="png", optimize=True)

"""A sweep's folder: config.json, results.zarr, summary.csv, figures; and partial.npz while it is being measured.

Every file is written beside its name and moved there, so that a run killed at any moment leaves a folder that can be
resumed.
"""

import csv
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from sims.flags import UsageError


def prepare(out: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Make the folder for this config, or check that the one there is of this config.

    Raises: UsageError if the folder holds a different run or other files, or cannot be written.
    """
    path = out / "config.json"
    try:
        if path.is_file():
            found = json.loads(path.read_text())["config"]
            if found != json.loads(json.dumps(config)):
                differing = sorted(
                    k for k in {*found, *config} if found.get(k) != json.loads(json.dumps(config.get(k)))
                )
                raise UsageError(
                    f"--out={out} holds a different run (differs in {', '.join(differing)}); nothing was changed. "
                    "Choose another folder, or remove that one."
                )
            _check_writable(out)
            return
        if out.exists() and (not out.is_dir() or any(p.name != _beside(path).name for p in out.iterdir())):
            raise UsageError(f"--out={out} exists and is not the folder of a sweep; give a new or empty folder.")
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"config": config, "provenance": provenance()}, indent=1) + "\n")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or f"its config.json is damaged: {error}"
        raise UsageError(f"--out={out} cannot be used ({reason}); give a folder that can be written.") from None


def _check_writable(out: pathlib.Path) -> None:
    probe = out / f".write-{os.getpid()}"
    probe.touch()
    probe.unlink()


def provenance() -> dict[str, str | None]:
    """Versions and git commit that made a result."""
    names = ("mmcl-theory", "jax", "jaxlib", "optax", "numpy", "xarray", "zarr")
    versions: dict[str, str | None] = {"python": sys.version.split()[0]}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    here = pathlib.Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        git = subprocess.run(command, capture_output=True, text=True, check=False)
        versions["git_commit"] = git.stdout.strip() or None
    except OSError:
        versions["git_commit"] = None
    return versions


def _beside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.new")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a whole file or none of it."""
    beside = _beside(path)
    beside.write_text(text)
    os.replace(beside, path)


class Partial:
    """Measured accuracies as they come, in partial.npz or another NAME.npz.

    values: (learner, cell * seeds + run, group), NaN where missing.  done: (learner, chunk), chunks as `sims.grid`
    makes them.
    """

    def __init__(
        self, out: pathlib.Path, learners: int, runs: int, groups: int, chunks: list[int], name: str = "partial.npz"
    ):
        self.path = out / name
        self.values = np.full((learners, runs, groups), np.nan)
        self.done = np.arange(max(chunks)) >= np.asarray(chunks)[:, None]  # chunks a learner does not have are done
        if self.path.is_file():
            try:
                with open(self.path, "rb") as file, np.load(file) as saved:
                    values, done = saved["values"], saved["done"]
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise UsageError(f"{self.path} is damaged ({error}); remove it to measure anew.") from None
            if values.shape == self.values.shape and done.shape == self.done.shape:
                self.values, self.done = values, done

    def save(self) -> None:
        """Write both arrays whole."""
        beside = self.path.with_name(".partial.new.npz")
        np.savez(beside, values=self.values, done=self.done)
        os.replace(beside, self.path)


def write_results(out: pathlib.Path, dataset: xr.Dataset) -> None:
    """results.zarr, replaced whole."""
    beside = out / ".results.new.zarr"
    shutil.rmtree(beside, ignore_errors=True)
    dataset.to_zarr(beside, mode="w", consolidated=False)
    shutil.rmtree(out / "results.zarr", ignore_errors=True)
    os.replace(beside, out / "results.zarr")


def read_results(out: pathlib.Path, names: tuple[str, ...]) -> xr.Dataset | None:
    """The finished results, the variables `names`, in memory, or None. Raises: UsageError if they cannot be read."""
    path = out / "results.zarr"
    if not path.exists():
        return None
    try:
        dataset = xr.open_zarr(path, consolidated=False)
        return dataset[list(names)].load()
    except Exception as error:  # zarr, its codecs and xarray raise many kinds for a damaged store
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is damaged ({reason}); remove it to measure anew.") from None


def write_csv(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A table with one line a row, columns as in the first row."""
    rows = list(rows)
    beside = _beside(path)
    with open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(beside, path)

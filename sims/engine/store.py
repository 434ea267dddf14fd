"""An experiment's folder: config.json, results.zarr, tables and figures, and a lock while a run writes to it.

Every file is written beside its name and moved there, chunks of results.zarr too, so that a run killed at any moment
leaves a folder that can be resumed. A block counts as done if its chunk is there and passes its checksum.
"""

import contextlib
import csv
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from sims.engine import files
from sims.engine.flags import UsageError
from sims.engine.grid import Grid, Program

FORMAT = 2  # of the folder; another one's is refused
_SAME_SINCE_1 = "clip."  # what these commands store did not change
RESULTS = "results.zarr"
_CODECS = [ZstdCodec(), Crc32cCodec()]
_CHECKPOINTS = "checkpoints"
_LOCK = ".lock"
_CONFIG = "config.json"


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the config as canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def read_config(out: pathlib.Path) -> dict[str, Any]:
    """The config of the run in this folder. Raises: UsageError if there is none of this version."""
    path = out / _CONFIG
    try:
        found = json.loads(path.read_text())
        config, version, digest = found["config"], found["format"], found["config_hash"]
        if not isinstance(config, dict):
            raise TypeError("no config in it")
    except FileNotFoundError:
        raise UsageError(f"{out} is not the folder of a run: it has no config.json.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"--out={out} cannot be used (its config.json is damaged or of another version: {error!r}); "
            "--overwrite measures anew."
        ) from None
    if version != FORMAT and not (version == 1 and str(config.get("command")).startswith(_SAME_SINCE_1)):
        raise UsageError(
            f"{out} was written in format {version}, this version has format {FORMAT}: use the one that wrote it, or"
            " repeat its command with --overwrite, which measures anew."
        )
    if digest != config_hash(config):
        raise UsageError(
            f"--out={out} cannot be used (its config.json is damaged: the hash differs); --overwrite measures anew."
        )
    return config


def check(out: pathlib.Path, config: Mapping[str, Any], overwrite: bool = False) -> None:
    """Refuse a folder that is not this run's, or none's. Writes nothing.

    Raises: UsageError if the folder holds a different run (unless overwrite) or other files, or cannot be written.
    """
    try:
        _check_holds(out, config, overwrite)
    except OSError as error:
        raise UsageError(f"--out={out} cannot be used ({error.strerror}); give a folder that can be written.") from None
    files.check_folder(out, f"--out={out}")


def _check_holds(out: pathlib.Path, config: Mapping[str, Any], overwrite: bool) -> None:
    if not (out / _CONFIG).exists():
        if out.exists() and not _empty(out):
            raise UsageError(f"--out={out} exists and is not the folder of a run; give a new or empty folder.")
    elif not overwrite:
        found, wanted = read_config(out), json.loads(json.dumps(config))
        if found != wanted:
            differing = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            raise UsageError(
                f"--out={out} holds a different run (differs in {', '.join(differing)}); nothing was changed. "
                "Choose another folder, or --overwrite."
            )


def _empty(out: pathlib.Path) -> bool:
    return out.is_dir() and all(p.name in (_LOCK, files.beside(out / _CONFIG).name) for p in out.iterdir())


@contextlib.contextmanager
def locked(out: pathlib.Path) -> Iterator[None]:
    """Hold the folder, made if need be, against a second run. A killed run's lock ends with it.

    Raises: UsageError if another run holds it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(f"--out={out} cannot be used ({error.strerror}); give a folder that can be written.") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 100).decode(errors="replace").strip()
            raise UsageError(f"--out={out} is being written by another run ({holder}); wait for it.") from None
        except OSError as error:
            raise UsageError(f"--out={out} is on a file system that cannot lock files ({error.strerror}).") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        yield
    finally:
        os.close(descriptor)


def begin(out: pathlib.Path, config: Mapping[str, Any], overwrite: bool = False) -> None:
    """Write config.json, if it is not there yet; call `check` before, and hold the lock.

    overwrite: remove the run that is there, whatever it is.
    """
    path = out / _CONFIG
    if overwrite:
        for old in out.iterdir():
            if old.is_dir() and (old.suffix == ".zarr" or old.name == _CHECKPOINTS):
                shutil.rmtree(old)
            elif old.suffix in (".csv", ".png", ".pdf"):
                old.unlink()
        path.unlink(missing_ok=True)  # the last, so that a folder cut short here is still a run's
    if not path.exists():
        found = {"format": FORMAT, "config": config, "config_hash": config_hash(config), "provenance": provenance()}
        files.write_text(path, json.dumps(found, indent=1) + "\n")


def check_disk(out: pathlib.Path, grid: Grid) -> None:
    """Raises: UsageError if the results, uncompressed, would not fit on the disk."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    needed, free = 8 * int(np.prod(grid.shape, dtype=object)), shutil.disk_usage(existing).free
    if needed > free:
        raise UsageError(
            f"--out={out} has {free / 2**30:.1f} GiB free; the results of {grid.runs * len(grid.labels)} runs need"
            f" about {needed / 2**30:.1f} GiB."
        )


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


class Measured:
    """The measured variable of a grid in results.zarr, NaN where missing: one chunk a block, with a checksum.

    Beside the chunks a digest of each, with the run's config and the block's place in it: a chunk of another run, or of
    another block, passes its own checksum.
    """

    def __init__(self, out: pathlib.Path, name: str, grid: Grid):
        self.path, self.name, self.grid = out / RESULTS, name, grid
        self.run = run_of(out)
        # Told at every opening: without it a block of NaN alone, which may be an answer, leaves no chunk.
        self.array = zarr.open_array(self.path / name, mode="r+").with_config({"write_empty_chunks": True})

    @classmethod
    def create(cls, out: pathlib.Path, name: str, grid: Grid) -> None:
        """Coordinates and the empty variable, whole or not at all; keeps what is there already.

        Raises: UsageError if what is there is damaged, or of another shape.
        """
        path = out / RESULTS
        if path.exists():
            cls.check(out, name, grid)
            return
        run = run_of(out)
        beside = files.beside(path)
        shutil.rmtree(beside, ignore_errors=True)
        _write(beside, xr.Dataset(coords=coordinates(grid)), "w")
        zarr.open_group(beside, mode="r+").create_array(
            name,
            shape=grid.shape,
            chunks=grid.chunks,
            dtype="float64" if _x64() else "float32",
            fill_value=np.nan,
            compressors=_CODECS,
            dimension_names=grid.dims,
        )
        zarr.open_group(beside, mode="r+").attrs["run"] = run
        os.replace(beside, path)

    @staticmethod
    def check(out: pathlib.Path, name: str, grid: Grid) -> None:
        """Raises: UsageError if the variable that is there is damaged, or of another shape."""
        path = out / RESULTS
        try:
            group = _group(path, "r")
            _check_run(group, out)
            array: Any = group[name]
            if array.shape != grid.shape or array.chunks != grid.chunks:
                raise ValueError(f"{name} has another shape")
        except Exception as error:  # zarr raises many kinds for a damaged store
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"{path} is damaged ({reason}); --overwrite measures anew.") from None

    def write(self, block: tuple[int, ...], values: np.ndarray) -> None:
        """Store a block: a whole chunk, moved into place."""
        self.array[self.grid.region(block)] = values
        self._digest_path(block).parent.mkdir(exist_ok=True)
        files.write_text(self._digest_path(block), self._digest(block))

    def _digest_path(self, block: tuple[int, ...]) -> pathlib.Path:
        return self.path / self.name / "digests" / "-".join(map(str, block))

    def _digest(self, block: tuple[int, ...]) -> str:
        return digest(self.run, self._chunk(block))

    def _chunk(self, block: tuple[int, ...]) -> pathlib.Path:
        trailing = (0,) * len(self.grid.outcomes)
        return (self.path / self.name / "c").joinpath(*map(str, (*block, *trailing)))

    def read(self) -> tuple[np.ndarray, np.ndarray, int]:
        """(values, done over `grid.blocks_shape`, number of damaged chunks, which are not done)."""
        values = np.full(self.grid.shape, np.nan, self.array.dtype)
        done, damaged = np.zeros(self.grid.blocks_shape, bool), 0
        for block in np.ndindex(*done.shape):
            if not self._chunk(block).is_file():
                continue
            region = self.grid.region(block)
            try:
                if self._digest_path(block).read_text() != self._digest(block):
                    raise ValueError("another run's chunk, or another block's")
                values[region] = self.array[region]
                done[block] = True
            except Exception:  # the checksum, or whatever the codecs say to damaged bytes
                damaged += 1
        return values, done, damaged


def run_of(out: pathlib.Path) -> str:
    """The identity of the run in a folder: its config's hash."""
    return config_hash(read_config(out))


def _check_run(group: zarr.Group, out: pathlib.Path) -> str:
    """The identity of the run. Raises: ValueError if the results are of another one."""
    run = run_of(out)
    if group.attrs.get("run") != run:
        raise ValueError("it is of another run than config.json")
    return run


def digest(run: str, chunk: pathlib.Path) -> str:
    """SHA-256 of the run's identity, the chunk's place and its bytes."""
    place = "/".join(chunk.parts[-chunk.parts[::-1].index(RESULTS) :])
    return hashlib.sha256(f"{run} {place} ".encode() + chunk.read_bytes()).hexdigest()


def _group(path: pathlib.Path, mode: Literal["r", "r+"] = "r+") -> zarr.Group:
    return zarr.open_group(path, mode=mode, use_consolidated=False)


class Checkpoint:
    """The state of a block of runs in stages, and its outcomes so far: one .npz file, written whole.

    It names its run and block, as the digests of chunks do: the states of others may have the same shapes.
    """

    def __init__(self, out: pathlib.Path, run: str, block: tuple[int, ...]):
        place = "-".join(map(str, block))
        self.path, self.owner = out / _CHECKPOINTS / f"{place}.npz", f"{run} {place}"

    def load(self, program: Program) -> tuple[int, Any, list[np.ndarray]]:
        """(stages done, state, outcomes of each); (0, None, []) where there is none, or it does not fit the program.

        Raises: UsageError if it is of another run, or another block's.
        """
        import jax

        try:
            owner, state, found = self.read(program.state)
        except Exception:  # none, or whatever NumPy and its archives say to damaged bytes
            return 0, None, []
        if owner != self.owner:
            raise UsageError(f"{self.path} is another run's or block's; remove it to measure its block from the start.")
        shapes, wanted = ([(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (state, program.state))
        if shapes != wanted:
            return 0, None, []  # padded for other devices or another batch
        return len(found), state, found

    def read(self, like: Any) -> tuple[str, Any, list[np.ndarray]]:
        """(owner, state in the structure of `like`, outcomes of the stages done), as they stand in the file."""
        import jax

        wanted, structure = jax.tree.flatten(like)
        with open(self.path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            leaves = [file[f"state_{i}"] for i in range(len(wanted))]
            return str(file["owner"]), jax.tree.unflatten(structure, leaves), list(file["outcomes"])

    def save(self, state: Any, found: list[np.ndarray]) -> None:
        """Write the state after `found` stages, and their outcomes."""
        import jax

        self.path.parent.mkdir(exist_ok=True)
        leaves: dict[str, Any] = {f"state_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
        with files.whole(self.path) as new, new.open("wb") as file:
            np.savez(file, owner=np.array(self.owner), outcomes=np.stack(found), **leaves)

    def remove(self) -> None:
        """Remove the file; the folder stays, other processes may be about to write into it."""
        self.path.unlink(missing_ok=True)


def remove_checkpoints(out: pathlib.Path) -> None:
    """Remove what is left of them, once everything is measured."""
    shutil.rmtree(out / _CHECKPOINTS, ignore_errors=True)


def _x64() -> bool:
    import jax

    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]  # JAX sets it at run time


def labels(values: Any) -> np.ndarray:
    """A coordinate; strings of dtype object, the one for which Zarr has a stable type of any length."""
    values = list(values)
    return np.array(values, object) if values and isinstance(values[0], str) else np.asarray(values)


def coordinates(grid: Grid) -> dict[str, np.ndarray]:
    """The labels along the dimensions of a grid's results."""
    values = {**grid.tasks, "seed": np.arange(grid.seeds), **grid.axes, **grid.outcomes}
    return {name: labels(v) for name, v in values.items()}


def complete(out: pathlib.Path, grid: Grid, dataset: xr.Dataset) -> None:
    """Write all that is not measured into results.zarr, coordinates too, lest they are damaged; mark it complete."""
    group = _group(out / RESULTS)
    group.attrs["complete"] = False
    for name in {p.name for p in (out / RESULTS).iterdir() if p.is_dir()} - {dataset.attrs["measured"]}:
        shutil.rmtree(out / RESULTS / name)
    _write(out / RESULTS, dataset.assign_coords(coordinates(grid)), "a")
    group = _group(out / RESULTS)
    group.attrs.update({"run": run_of(out), "arrays": sorted(name for name, _ in group.arrays()), "complete": True})
    with warnings.catch_warnings(action="ignore"):  # that other programs than zarr-python may not know of it
        zarr.consolidate_metadata(out / RESULTS)


def _write(path: pathlib.Path, dataset: xr.Dataset, mode: Literal["w", "a"]) -> None:
    """Every chunk written, with a checksum, so that one that is missing or damaged is seen."""
    encoding = {name: {"compressors": _CODECS} for name in dataset.variables}
    dataset.to_zarr(path, mode=mode, consolidated=False, encoding=encoding, write_empty_chunks=True)


def progress(out: pathlib.Path) -> tuple[int, int]:
    """(blocks that are there, all blocks) of the measured variable; (0, 1) before there is one."""
    try:
        group = _group(out / RESULTS, "r")
        if group.attrs.get("complete"):
            return 1, 1
        found: Iterator[tuple[str, Any]] = group.arrays()
        arrays = [array for _, array in found if "seed" in (array.metadata.dimension_names or ())]
        array = max(arrays, key=lambda a: a.ndim)
        return array.nchunks_initialized, array.nchunks
    except Exception:  # zarr raises many kinds for what is not there or damaged
        return 0, 1


def untouched(out: pathlib.Path) -> bool:
    """Whether the folder holds no block, and no state of one, to go on from."""
    return progress(out)[0] == 0 and not any((out / _CHECKPOINTS).glob("*.npz"))


def read(out: pathlib.Path) -> xr.Dataset:
    """The complete results, in memory; raises what xarray and zarr raise if they are not whole, or another run's."""
    group = _group(out / RESULTS, "r")
    if not group.attrs.get("complete"):
        raise KeyError("complete")
    run = _check_run(group, out)
    attrs: Mapping[str, Any] = group.attrs
    arrays = dict(group.arrays())
    if absent := set(attrs["arrays"]) - set(arrays):
        raise KeyError(f"arrays {', '.join(sorted(absent))}")
    if missing := [name for name, array in arrays.items() if array.nchunks_initialized < array.nchunks]:
        raise KeyError(f"chunks of {', '.join(missing)}")
    measured = out / RESULTS / attrs["measured"]
    digests = [path for path in (measured / "digests").glob("*") if not path.name.startswith(".")]
    trailing = len(json.loads(attrs["outcomes"]))
    for path in digests:
        chunk = (measured / "c").joinpath(*path.name.split("-"), *"0" * trailing)
        if path.read_text() != digest(run, chunk):
            raise ValueError(f"block {path.name} is damaged or another run's")
    if len(digests) < arrays[attrs["measured"]].nchunks:
        raise KeyError("digests of blocks")
    with xr.open_zarr(out / RESULTS, consolidated=False) as dataset:
        return dataset.load()


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows with the same entries, as columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_csv(path: pathlib.Path, columns: Mapping[Any, Any]) -> None:
    """A table from its columns, all of one length: a mapping, or a frame of pandas."""
    with files.whole(path) as new, new.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(np.asarray(column).tolist() for _, column in columns.items()), strict=True))

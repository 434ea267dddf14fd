"""An experiment's folder: config.json, results.zarr, tables and figures, and a lock while a run writes to it.

Every write is atomic, of chunks of results.zarr too, so a run can be killed at any moment and resumed. A block is done
if its chunk exists and its checksum is right.
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

FORMAT = 2  # version of the folder's format; other versions are refused
_SAME_SINCE_1 = "clip."  # commands whose format did not change since version 1
RESULTS = "results.zarr"
_CODECS = [ZstdCodec(), Crc32cCodec()]
_CHECKPOINTS = "checkpoints"
_LOCK = ".lock"
_CONFIG = "config.json"


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the config as canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def read_config(out: pathlib.Path) -> dict[str, Any]:
    """The config of the run in this folder. Raises: UsageError if there is no run of this version."""
    path = out / _CONFIG
    try:
        stored = json.loads(path.read_text())
        config, version, digest = stored["config"], stored["format"], stored["config_hash"]
        if not isinstance(config, dict):
            raise TypeError("no config in it")
    except FileNotFoundError:
        raise UsageError(f"{out} is not the folder of a run: it has no config.json.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"--out={out} cannot be used (its config.json is damaged or of another version: {error!r}); "
            "--overwrite starts again."
        ) from None
    if version != FORMAT and not (version == 1 and str(config.get("command")).startswith(_SAME_SINCE_1)):
        raise UsageError(
            f"{out} was written in format {version}, this version has format {FORMAT}: use the one that wrote it, or"
            " repeat its command with --overwrite, which starts again."
        )
    if digest != config_hash(config):
        raise UsageError(
            f"--out={out} cannot be used (its config.json is damaged: the hash differs); --overwrite starts again."
        )
    return config


def check(out: pathlib.Path, config: Mapping[str, Any], overwrite: bool = False) -> None:
    """Check that the folder is new, empty, or of this run. Writes nothing.

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
        stored, wanted = read_config(out), json.loads(json.dumps(config))
        if stored != wanted:
            differing = sorted(k for k in {*stored, *wanted} if stored.get(k) != wanted.get(k))
            raise UsageError(
                f"--out={out} holds a different run (differs in {', '.join(differing)}); nothing was changed. "
                "Choose another folder, or --overwrite."
            )


def _empty(out: pathlib.Path) -> bool:
    return out.is_dir() and all(p.name in (_LOCK, files.beside(out / _CONFIG).name) for p in out.iterdir())


@contextlib.contextmanager
def locked(out: pathlib.Path) -> Iterator[None]:
    """Lock the folder, which is made if needed, against a second run. The lock of a killed run is released.

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
    """Write config.json if it is not there. The caller has called `check` and holds the lock.

    overwrite: first delete the run in the folder, whichever it is.
    """
    path = out / _CONFIG
    if overwrite:
        for old in out.iterdir():
            if old.is_dir() and (old.suffix == ".zarr" or old.name == _CHECKPOINTS):
                shutil.rmtree(old)
            elif old.suffix in (".csv", ".png", ".pdf"):
                old.unlink()
        path.unlink(missing_ok=True)  # last, so that if this is interrupted the folder is still a run's
    if not path.exists():
        content = {"format": FORMAT, "config": config, "config_hash": config_hash(config), "provenance": provenance()}
        files.write_text(path, json.dumps(content, indent=1) + "\n")


def check_disk(out: pathlib.Path, grid: Grid) -> None:
    """Check that the uncompressed results fit on the disk. Raises: UsageError."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    needed, free = 8 * int(np.prod(grid.shape, dtype=object)), shutil.disk_usage(existing).free
    if needed > free:
        raise UsageError(
            f"--out={out} has {free / 2**30:.1f} GiB free; the results of {grid.runs * len(grid.labels)} runs need"
            f" about {needed / 2**30:.1f} GiB."
        )


def provenance() -> dict[str, str | None]:
    """Versions of the packages and the git commit."""
    names = ("mmcl-theory", "jax", "jaxlib", "optax", "numpy", "xarray", "zarr")
    versions: dict[str, str | None] = {"python": sys.version.split()[0]}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    folder = pathlib.Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        git = subprocess.run(command, capture_output=True, text=True, check=False)
        versions["git_commit"] = git.stdout.strip() or None
    except OSError:
        versions["git_commit"] = None
    return versions


class Measured:
    """The measured variable of a grid in results.zarr, NaN where missing: one chunk per block, with a checksum.

    A digest is stored beside each chunk, of the run's config, the block's index and the chunk. It reveals a chunk that
    was copied from another run or block, whose own checksum is right.
    """

    def __init__(self, out: pathlib.Path, name: str, grid: Grid):
        """Open the variable that is there. Raises: UsageError if it is damaged, of another run or of another shape."""
        self.out, self.path, self.name, self.grid = out, out / RESULTS, name, grid
        try:
            group = _group(self.path)
            self.run = _check_run(group, out)
            array: Any = group[name]
            if array.shape != grid.shape or array.chunks != grid.chunks:
                raise ValueError(f"{name} has another shape")
        except Exception as error:  # zarr raises many kinds for a damaged store
            raise self._damaged(error) from None
        # Set on every open: Zarr skips chunks that equal the fill value, and an all-NaN block can be a valid result.
        self.array = array.with_config({"write_empty_chunks": True})

    def _damaged(self, error: Exception) -> UsageError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return UsageError(f"{self.path} is damaged ({reason}); --overwrite starts again.")

    @staticmethod
    def create(out: pathlib.Path, name: str, grid: Grid) -> None:
        """Write the coordinates and the empty variable, atomically; keep what is there already."""
        path = out / RESULTS
        if path.exists():
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

    def write(self, block: tuple[int, ...], values: np.ndarray) -> None:
        """Store a block as one chunk, atomically."""
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

    def done(self) -> tuple[np.ndarray, int]:
        """(whether each block is stored, number of damaged chunks), by the digests; a damaged block is not done."""
        done, damaged = np.zeros(self.grid.blocks_shape, bool), 0
        for block in np.ndindex(*done.shape):
            if self._chunk(block).is_file():
                with contextlib.suppress(OSError, ValueError):  # no digest, or a file that cannot be read
                    done[block] = self._digest_path(block).read_text() == self._digest(block)
                damaged += not done[block]
        return done, damaged

    def read(self) -> np.ndarray:
        """All values; NaN where nothing is stored. Raises: UsageError if the chunks are not what the metadata say."""
        try:
            values: Any = self.array[...]
        except Exception as error:  # of the codecs
            raise self._damaged(error) from None
        return np.asarray(values)


def run_of(out: pathlib.Path) -> str:
    """The identity of the run in a folder: its config's hash."""
    return config_hash(read_config(out))


def _check_run(group: zarr.Group, out: pathlib.Path) -> str:
    """The identity of the run. Raises: ValueError if the results are of another run."""
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
    """The state of a block of runs in stages, and its outcomes so far: one .npz file, written atomically.

    The file names its run and block, because the state of another one may have the same shapes.
    """

    def __init__(self, out: pathlib.Path, run: str, block: tuple[int, ...]):
        place = "-".join(map(str, block))
        self.path, self.owner = out / _CHECKPOINTS / f"{place}.npz", f"{run} {place}"

    def load(self, program: Program) -> tuple[int, Any, list[np.ndarray]]:
        """(number of stages done, state, outcomes of each); (0, None, []) if there is no file, or it does not fit.

        Raises: UsageError if the file is of another run or block.
        """
        import jax

        try:
            owner, state, outcomes = self.read(program.state)
        except Exception:  # no file, or any error of NumPy for a damaged one
            return 0, None, []
        if owner != self.owner:
            raise UsageError(f"{self.path} is another run's or block's; remove it to measure its block from the start.")
        shapes, wanted = ([(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (state, program.state))
        if shapes != wanted:
            return 0, None, []  # written with another number of devices or another batch
        return len(outcomes), state, outcomes

    def read(self, like: Any) -> tuple[str, Any, list[np.ndarray]]:
        """What the file holds: (owner, state in the structure of `like`, outcomes of the stages done)."""
        import jax

        wanted, structure = jax.tree.flatten(like)
        with open(self.path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            leaves = [file[f"state_{i}"] for i in range(len(wanted))]
            return str(file["owner"]), jax.tree.unflatten(structure, leaves), list(file["outcomes"])

    def save(self, state: Any, outcomes: list[np.ndarray]) -> None:
        """Write the state after the last of these stages, and the outcomes of each."""
        import jax

        self.path.parent.mkdir(exist_ok=True)
        leaves: dict[str, Any] = {f"state_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
        with files.whole(self.path) as new, new.open("wb") as file:
            np.savez(file, owner=np.array(self.owner), outcomes=np.stack(outcomes), **leaves)

    def remove(self) -> None:
        """Remove the file; keep the folder, which other processes may write into."""
        self.path.unlink(missing_ok=True)


def remove_checkpoints(out: pathlib.Path) -> None:
    """Remove all checkpoints of the folder."""
    shutil.rmtree(out / _CHECKPOINTS, ignore_errors=True)


def _x64() -> bool:
    import jax

    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]  # JAX sets it at run time


def labels(values: Any) -> np.ndarray:
    """A coordinate; strings have dtype object, for which Zarr has a stable type of any length."""
    values = list(values)
    return np.array(values, object) if values and isinstance(values[0], str) else np.asarray(values)


def coordinates(grid: Grid) -> dict[str, np.ndarray]:
    """The labels along the dimensions of a grid's results."""
    values = {**grid.tasks, "seed": np.arange(grid.seeds), **grid.axes, **grid.outcomes}
    return {name: labels(v) for name, v in values.items()}


def complete(out: pathlib.Path, grid: Grid, dataset: xr.Dataset) -> None:
    """Write all but the measured variable into results.zarr, the coordinates again too; mark it complete."""
    group = _group(out / RESULTS)
    group.attrs["complete"] = False
    for name in {p.name for p in (out / RESULTS).iterdir() if p.is_dir()} - {dataset.attrs["measured"]}:
        shutil.rmtree(out / RESULTS / name)
    _write(out / RESULTS, dataset.assign_coords(coordinates(grid)), "a")
    group = _group(out / RESULTS)
    group.attrs.update({"run": run_of(out), "arrays": sorted(name for name, _ in group.arrays()), "complete": True})
    with warnings.catch_warnings(action="ignore"):  # it warns that only zarr-python reads consolidated metadata
        zarr.consolidate_metadata(out / RESULTS)


def _write(path: pathlib.Path, dataset: xr.Dataset, mode: Literal["w", "a"]) -> None:
    """Write every chunk with a checksum, so that `read` notices a missing or damaged one."""
    encoding = {name: {"compressors": _CODECS} for name in dataset.variables}
    dataset.to_zarr(path, mode=mode, consolidated=False, encoding=encoding, write_empty_chunks=True)


def progress(out: pathlib.Path) -> tuple[int, int]:
    """(number of stored blocks, of all blocks) of the measured variable; (0, 1) before it exists."""
    try:
        group = _group(out / RESULTS, "r")
        if group.attrs.get("complete"):
            return 1, 1
        named: Iterator[tuple[str, Any]] = group.arrays()
        arrays = [array for _, array in named if "seed" in (array.metadata.dimension_names or ())]
        array = max(arrays, key=lambda a: a.ndim)
        return array.nchunks_initialized, array.nchunks
    except Exception:  # zarr raises many kinds for a missing or damaged store
        return 0, 1


def untouched(out: pathlib.Path) -> bool:
    """Whether the folder holds neither a block nor a checkpoint."""
    return progress(out)[0] == 0 and not any((out / _CHECKPOINTS).glob("*.npz"))


def read(out: pathlib.Path) -> xr.Dataset:
    """The complete results, in memory. Raises what xarray and zarr raise if they are incomplete or of another run."""
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
    """Rows with the same keys, as columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_csv(path: pathlib.Path, columns: Mapping[Any, Any]) -> None:
    """Write a table. columns: a mapping of names to columns of equal length, or a pandas DataFrame."""
    with files.whole(path) as new, new.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(np.asarray(column).tolist() for _, column in columns.items()), strict=True))

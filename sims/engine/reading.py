"""Arrays of features and labels from files. Imports neither JAX nor plotting; pickled objects are never loaded.

A source is FILE or FILE:NAME. FILE is .npy, .npz, .safetensors, .csv or .parquet, and NAME an array or a column of it.
A folder of .npy files, each named after its array, is a source too.
"""

import json
import pathlib
from typing import Any

import numpy as np

from sims.engine.flags import UsageError

KINDS = (".npy", ".npz", ".safetensors", ".csv", ".parquet")
TABLES = (".csv", ".parquet")


def read(flag: str, source: str, name: str) -> np.ndarray:
    """The array of a source; `name` is the one that a file without :NAME is asked for.

    Raises: UsageError that names the flag, the file and what it holds.
    """
    file, given = _split(source, name)
    if file.suffix not in KINDS:
        raise UsageError(
            f"--{flag} must be a file of {', '.join(KINDS)}, with :NAME if it holds several, got {source}."
        )
    try:
        return _READERS[file.suffix](flag, file, given or name)
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"--{flag}={source}: needs the package {error.name}.") from None
    except Exception as error:  # what the readers raise for damaged files differs from release to release
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"--{flag}={source}: cannot be read ({reason}).") from None


def holds(source: str, name: str) -> bool:
    """Whether a folder, or a file that can hold several arrays, has this one."""
    file, _ = _split(source, name)
    try:
        if pathlib.Path(source).is_dir():
            return file.is_file()
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return name in arrays
        if file.suffix == ".safetensors":
            return name in _header(file)
        return file.suffix in TABLES and name in _columns(file)
    except Exception:  # `read` says what is wrong
        return False


def _split(source: str, array: str) -> tuple[pathlib.Path, str | None]:
    """(the file, what follows its colon); of a folder, the file of the array."""
    if (folder := pathlib.Path(source)).is_dir():
        return folder / f"{array}.npy", None
    path, colon, name = source.rpartition(":")
    if colon and pathlib.Path(path).suffix in KINDS:
        return pathlib.Path(path), name
    return pathlib.Path(source), None


def _npy(flag: str, file: pathlib.Path, name: str) -> np.ndarray:
    return np.load(file, mmap_mode="r", allow_pickle=False)


def _npz(flag: str, file: pathlib.Path, name: str) -> np.ndarray:
    with np.load(file, allow_pickle=False) as arrays:
        return arrays[_known(flag, file, name, list(arrays))]


def _header(file: pathlib.Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        content = json.loads(opened.read(min(size, 100_000_000)))
    return {name: entry for name, entry in content.items() if name != "__metadata__"}


def _safetensors(flag: str, file: pathlib.Path, name: str) -> np.ndarray:
    from safetensors import safe_open

    _known(flag, file, name, list(_header(file)))
    with safe_open(file, framework="numpy") as tensors:
        return tensors.get_tensor(name)


def _columns(file: pathlib.Path) -> list[str]:
    """The names of a table's columns."""
    import pandas as pd

    if file.suffix == ".csv":
        return list(map(str, pd.read_csv(file, nrows=0).columns))
    from pyarrow import parquet  # type: ignore[import-not-found]  # what pandas reads Parquet with

    return list(parquet.read_schema(file).names)


def _column(flag: str, file: pathlib.Path, name: str) -> np.ndarray:
    import pandas as pd

    _known(flag, file, name, _columns(file))
    if file.suffix == ".csv":  # "NA" and "None" are words; only an empty cell is none
        table = pd.read_csv(file, usecols=[name], keep_default_na=False, na_values=[""])
    else:
        table = pd.read_parquet(file, columns=[name])
    column = table[name]
    if column.isna().any():
        raise UsageError(f"--{flag}={file}:{name}: row {int(column.isna().to_numpy().argmax())} has no value.")
    values = column.to_numpy()
    if values.dtype != object:
        return values
    if all(isinstance(value, str) for value in values):
        return values.astype(str)
    return np.stack([np.asarray(value, float) for value in values])  # a list in every row


_READERS = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".csv": _column, ".parquet": _column}


def _known(flag: str, file: pathlib.Path, name: str, names: list[str]) -> str:
    if name not in names:
        raise UsageError(f"--{flag}={file} has no {name!r}; it has {', '.join(names)}; give one as {file}:NAME.")
    return name

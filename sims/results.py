"""What every experiment does with its folder: open it for one config, keep results and figure, measure once."""

import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sims import store


def run_once(
    out: pathlib.Path, config: Mapping[str, Any], make: Callable[[], xr.Dataset], names: tuple[str, ...]
) -> xr.Dataset:
    """The results of `config` in `out`: those it holds already, else make()'s, written there.

    names: the variables that the results have.  Raises: UsageError for a folder of another run; then nothing is made.
    """
    store.prepare(out, config)
    dataset = store.read_results(out, names)
    if dataset is None:
        dataset = make()
        dataset.attrs = {"config": json.dumps(config), **{k: str(v) for k, v in store.provenance().items()}}
        store.write_results(out, dataset)
    else:
        print(f"{out} already holds this run; nothing was measured again.", file=sys.stderr)
    return dataset


def save_figure(figure: Figure, out: pathlib.Path, name: str, dpi: int) -> None:
    """`figure` as NAME.png and NAME.pdf, each written whole."""
    for suffix in ("png", "pdf"):
        beside = out / f".figure.new.{suffix}"
        figure.savefig(beside, dpi=dpi)
        os.replace(beside, out / f"{name}.{suffix}")


def names(values: tuple[str, ...] | list[str]) -> np.ndarray:
    """Strings as a coordinate: of dtype object, the one for which Zarr has a stable type of any length."""
    return np.array(values, object)


def z_scores(
    predicted: np.ndarray, samples: np.ndarray, left_out: np.ndarray | float, trials: np.ndarray | float = np.inf
) -> np.ndarray:
    """(|mean - predicted| - left_out)+ in standard errors of the mean over seeds; NaN where either is missing.

    samples: (..., seeds).  predicted: (...).  left_out: what the prediction leaves out.  trials: draws behind each
    sample where it is a share; the standard error is then at least that of a share of the predicted size, so that
    samples that happen to agree are not taken for exact.
    """
    count = samples.shape[-1]
    share = np.clip(predicted, 0, 1)
    error = samples.std(-1, ddof=1) / count**0.5
    error = np.maximum(error, np.sqrt(share * (1 - share) / (count * trials)))
    excess = np.maximum(np.abs(samples.mean(-1) - predicted) - left_out, 0)
    z = np.divide(excess, error, out=np.full_like(excess, np.inf), where=error > 0)
    return np.where(np.isnan(excess), np.nan, np.where(excess == 0, 0.0, z))

"""Named axes -> cells -> chunks: every cell and seed of a sweep, vmapped in chunks of one compiled shape.

The random draws of a run depend on the sweep's seed, the cell's index in the grid and the run's number only.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sims.config import Setting
from sims.measure import Cell, kernel

BYTES_BUDGET = 1 << 30


def cells(axes: Mapping[str, Sequence[float]]) -> list[tuple[float, ...]]:
    """All combinations of the axes' values, the last axis varying fastest."""
    return list(itertools.product(*axes.values()))


def cell_arrays(points: Sequence[tuple[float, ...]]) -> Cell:
    """Cells as one pytree of arrays (len(points),)."""
    columns = np.asarray(points, float).reshape(len(points), -1).T
    return Cell(*(jnp.asarray(column, float) for column in columns))


def chunk_size(setting: Setting, learner: str, runs: int) -> int:
    """Runs per chunk: as many as the memory budget holds, at most 64, in chunks as equal as can be."""
    largest = int(np.clip(BYTES_BUDGET // setting.run_bytes(learner), 1, 64))
    return -(-runs // -(-runs // largest))


def run_chunks(
    setting: Setting, learner: str, points: Sequence[tuple[float, ...]], seeds: int, seed: int, skip: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Measure every (cell, seed) whose chunk is not in `skip`; yields (flat indices cell * seeds + run, (k, 2)
    accuracies).

    skip: (chunks,) bool, True where a chunk is already measured; see `num_chunks`.
    """
    runs = len(points) * seeds
    size = chunk_size(setting, learner, runs)
    root = jax.random.key(seed)
    run_kernel = kernel(setting, learner)

    def one(cell_number: jax.Array, run_number: jax.Array, cell: Cell) -> jax.Array:
        return run_kernel(jax.random.fold_in(jax.random.fold_in(root, cell_number), run_number), cell)

    compiled = jax.jit(jax.vmap(one))
    for chunk, start in enumerate(range(0, runs, size)):
        if skip[chunk]:
            continue
        flat = np.arange(start, start + size)
        wanted = flat[flat < runs]
        flat = np.minimum(flat, runs - 1)  # one compiled shape: the last chunk repeats its last run
        cell_number = flat // seeds
        values: Any = compiled(
            jnp.asarray(cell_number), jnp.asarray(flat % seeds), cell_arrays([points[i] for i in cell_number])
        )
        yield wanted, np.asarray(values, np.float64)[: len(wanted)]


def num_chunks(setting: Setting, learner: str, runs: int) -> int:
    """Chunks that `run_chunks` makes of this many runs."""
    return -(-runs // chunk_size(setting, learner, runs))

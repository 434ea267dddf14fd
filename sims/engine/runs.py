"""What every experiment does: plan, measure what is missing in its folder, add the predictions, show the results."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.experimental import multihost_utils
from matplotlib.figure import Figure
from tqdm import tqdm

from sims.engine import files, processes, store
from sims.engine.flags import FULL_DISK, NothingStored, Options, UsageError, WorkFailed
from sims.engine.grid import Grid, Programs, run_blocks


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What distinguishes one experiment's results: names, and functions of the dataset.

    figure: name of the figure's files; {flag} stands for the config's value.  variable: name of the measured variable.
    """

    figure: str
    variable: str
    table: Callable[[xr.Dataset], Mapping[Any, Any]]  # columns of summary.csv
    draw: Callable[[xr.Dataset], Figure]
    text: Callable[[xr.Dataset], str]

    def run(
        self,
        config: Mapping[str, Any],
        grid: Grid,
        complete: Callable[[np.ndarray], xr.Dataset],
        out: pathlib.Path,
        options: Options,
    ) -> xr.Dataset | None:
        """`measure`, then write table and figure into `out`; returns the dataset.

        Raises: UsageError for a folder of another run, say; then nothing is written.
        """
        dataset = measure(out, config, self.variable, grid, complete, options)
        if dataset is not None:
            self.show(dataset, out)
        return dataset

    def show(self, dataset: xr.Dataset, out: pathlib.Path) -> str:
        """Write table and figure into `out`; returns the text."""
        store.write_csv(out / "summary.csv", self.table(dataset))
        figure = self.draw(dataset)
        save_figure(figure, out, self._figure(dataset), figure.dpi)
        return self.text(dataset)

    def report(self, dataset: xr.Dataset, out: pathlib.Path) -> int:
        """Print the text and the names of the files; returns the exit code of `closing`."""
        print(f"{self.text(dataset)}\n\nFigure: {out / self._figure(dataset)}.png")
        print(f"Table: {out / 'summary.csv'}\nData: {out / store.RESULTS}")
        return closing(out, dataset)

    def _figure(self, dataset: xr.Dataset) -> str:
        return self.figure.format(**json.loads(dataset.attrs["config"]))


def measure(
    out: pathlib.Path,
    config: Mapping[str, Any],
    variable: str,
    grid: Grid,
    complete: Callable[[np.ndarray], xr.Dataset],
    options: Options,
) -> xr.Dataset | None:
    """Measure the missing blocks of the run `config` in the folder `out`, complete its results and load them.

    complete: measured values -> all other variables. Runs without an answer and failed runs are NaN.
    Returns: the dataset, in which failed runs are NaN and attrs["failed"] is their number. None for a dry run, and in
    all processes but the first.
    Raises: UsageError if the folder holds another run, or memory or disk is too small; then nothing is written.
    WorkFailed if the disk fills up; then what is stored is kept.
    """
    first = jax.process_index() == 0
    config = {**config, "x64": bool(jax.config.jax_enable_x64)}  # type: ignore[attr-defined]  # JAX sets it at run time
    if first:
        store.check(out, config, options.overwrite)
    fresh = options.overwrite or not (out / store.RESULTS).exists()
    if first and not fresh and not options.dry_run and (dataset := _loaded(out)) is not None:
        print(f"{out} already holds this run; nothing was measured again.", file=sys.stderr)
        for name in ("begun", "read", "measured", "finished"):  # the other processes have nothing to measure
            _barrier(name)
        return dataset
    programs = Programs(grid, memory_budget(options.memory_gb))
    if fresh:
        store.check_disk(out, grid)
        done = np.zeros(grid.blocks_shape, bool)
    else:
        done, _ = store.Measured(out, variable, grid).done()
    if options.dry_run:
        plan = _plan(grid, done, programs)
        if first:
            print(plan)
        return None
    _check_memory(grid, done, programs)
    with store.locked(out) if first else contextlib.nullcontext():
        try:
            if first:
                store.check(
                    out, config, options.overwrite
                )  # again, now under the lock: another run may have started since
                store.begin(out, config, options.overwrite)
                store.Measured.create(out, variable, grid)
            _barrier("begun")
            measured = store.Measured(out, variable, grid)
            _measure_missing(measured, programs, options.keep_checkpoints)
            _barrier("measured")
            if first and not options.keep_checkpoints:
                store.remove_checkpoints(out)
            dataset = _finish(measured, config, complete) if first else None
            _barrier("finished")  # JAX aborts processes whose peers have exited, so all leave together
            return dataset
        except KeyboardInterrupt as error:
            if store.untouched(out):
                raise NothingStored from error
            raise
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            raise WorkFailed(
                f"--out={out}: {error.strerror}; results so far are kept; the same command continues."
            ) from None


def _loaded(out: pathlib.Path) -> xr.Dataset | None:
    try:
        return load(out)
    except Exception:  # unfinished or damaged: the caller measures what is missing and completes it again
        return None


def load(out: pathlib.Path) -> xr.Dataset:
    """The complete results; failed runs are NaN, attrs["failed"] is their number. Raises what `store.read` raises."""
    dataset = store.read(out)
    measured = dataset[dataset.attrs["measured"]].astype(float)
    failed = np.isinf(measured)
    dataset[measured.name] = measured.where(~failed)
    within = [d for d in measured.dims if d in json.loads(dataset.attrs["outcomes"])]
    dataset.attrs["failed"] = int(failed.any(within).sum())
    return dataset


def _measure_missing(measured: store.Measured, programs: Programs, keep_checkpoints: bool) -> None:
    """Measure this process's share of the missing blocks."""
    grid = measured.grid
    done, damaged = measured.done()
    _barrier("read")  # before any process writes
    if damaged:
        print(f"{damaged} damaged blocks (by their checksum) are measured again.", file=sys.stderr)
    if done.any():
        print(f"resuming: {done.sum()} of {done.size} blocks were already measured.", file=sys.stderr)
    others = np.arange(done.size).reshape(done.shape) % jax.process_count() != jax.process_index()
    whole, size = grid.runs * len(grid.labels), int(np.prod(grid.block_shape))
    left = int((~(done | others)).sum()) * size
    quiet = None if jax.process_index() == 0 else True
    with tqdm(total=min(left, whole), unit="run", unit_scale=True, disable=quiet, smoothing=0.1) as bar:
        keep = functools.partial(store.Checkpoint, measured.out, measured.run)
        for block, values in run_blocks(grid, done | others, programs, keep):
            measured.write(block, values)
            if not keep_checkpoints:
                keep(block).remove()
            bar.set_description(" ".join(names[i] for i, names in zip(block, grid.tasks.values(), strict=False)))
            bar.update(
                min(values.size // max(1, int(np.prod(grid.chunks[len(grid.dims) - len(grid.outcomes) :]))), left)
            )


def _finish(
    measured: store.Measured, config: Mapping[str, Any], complete: Callable[[np.ndarray], xr.Dataset]
) -> xr.Dataset:
    out, grid = measured.out, measured.grid
    done, _ = measured.done()
    if not done.all():
        raise WorkFailed(f"{(~done).sum()} of {done.size} blocks are missing from {out}; the same command continues.")
    values = measured.read()
    failed = np.isinf(values)
    if failed.any():
        store.write_csv(out / "failed.csv", _failed_runs(grid, failed))
    dataset = complete(np.where(failed, np.nan, values.astype(float)))
    dataset.attrs |= {"measured": measured.name, "outcomes": json.dumps(list(grid.outcomes))}
    dataset.attrs |= {"config": json.dumps(config), **{k: str(v) for k, v in store.provenance().items()}}
    store.complete(out, grid, dataset)
    return load(out)


def _failed_runs(grid: Grid, failed: np.ndarray) -> dict[str, Any]:
    """Coordinates of the failed runs, as columns."""
    runs = failed.any(tuple(range(failed.ndim - len(grid.outcomes), failed.ndim)))
    coordinates = {**grid.tasks, "seed": np.arange(grid.seeds), **grid.axes}
    return {name: store.labels(v)[at] for (name, v), at in zip(coordinates.items(), np.nonzero(runs), strict=True)}


def closing(out: pathlib.Path, dataset: xr.Dataset) -> int:
    """Exit code: 0, or 1 after reporting failed runs on stderr."""
    failed = dataset.attrs.get("failed", 0)
    if failed:
        print(f"error: {failed} runs gave no finite number; {out / 'failed.csv'} lists them.", file=sys.stderr)
    return int(failed > 0)


def memory_budget(memory_gb: float | None) -> float:
    """Memory limit of a compiled block in bytes; by default half of the machine's memory, or 0.8 of a device's."""
    if memory_gb is not None:
        return memory_gb * 2**30
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return 0.5 * processes.memory()
    return 0.8 * (device.memory_stats() or {"bytes_limit": 2**33})["bytes_limit"]


def _check_memory(grid: Grid, done: np.ndarray, programs: Programs) -> None:
    """Check that the last missing block of each task, its largest, fits in memory. Raises: UsageError."""
    for number, labels in zip(np.ndindex(*(len(v) for v in grid.tasks.values())), grid.labels, strict=True):
        missing = np.argwhere(~done[number])
        program = programs.get((*number, *missing[-1].tolist())) if len(missing) else None
        if program is not None and program.bytes > programs.budget:
            raise UsageError(
                f"a run of {' '.join(labels)} needs about {program.bytes / 2**30:.2g} GiB at these sizes; there are"
                f" {programs.budget / 2**30:.2g} (--memory_gb)."
            )


def _plan(grid: Grid, done: np.ndarray, programs: Programs) -> str:
    """What is missing: cells, memory, and times estimated by compiling each task and running one of its blocks."""
    devices = jax.local_devices()
    cells = grid.runs // grid.seeds
    lines = [
        f"{cells} cells, {grid.seeds} seeds, {len(grid.labels)} tasks: {grid.runs * len(grid.labels)} runs in"
        f" {done.size} blocks of {int(np.prod(grid.block_shape))}, {done.sum()} of them done; {len(devices)} devices"
        f" ({devices[0].device_kind}) in each of {jax.process_count()} processes; results"
        f" {8 * np.prod(grid.shape) / 2**20:.3g} MiB",
        "task                    left      memory GiB   batch   compile s     run s",
    ]
    total, root = 0.0, jax.random.key(grid.seed)
    for number, labels in zip(np.ndindex(*(len(v) for v in grid.tasks.values())), grid.labels, strict=True):
        missing = np.argwhere(~done[number])
        block = (*number, *missing[-1].tolist()) if len(missing) else None
        program = None if block is None else programs.get(block)
        if block is None or program is None:
            continue
        seconds = program.seconds_of_block(root, grid.inputs(block)) * len(missing) / jax.process_count()
        total += program.seconds + seconds
        lines.append(
            f"{' '.join(labels):20s}{len(missing):8d}{program.bytes / 2**30:16.3g}{program.batch:8d}"
            f"{program.seconds:12.1f}{seconds:10.3g}"
        )
    return "\n".join([*lines, f"about {total:.3g} s in all; nothing was written."])


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def save_figure(figure: Figure, out: pathlib.Path, name: str, dpi: float) -> None:
    """Write `figure` as NAME.png and NAME.pdf, each whole, and close it.

    Raises: WorkFailed if the file system refuses (a full disk, say).
    """
    import matplotlib.pyplot as plt  # already loaded, with the backend of `style`, by the figure's author

    for suffix in ("png", "pdf"):
        path = out / f"{name}.{suffix}"
        try:
            with files.whole(path) as new:
                figure.savefig(new, format=suffix, dpi=dpi)
        except OSError as error:
            raise WorkFailed(f"{path} cannot be written ({error.strerror}); `python -m sims.show` draws it.") from None
    plt.close(figure)

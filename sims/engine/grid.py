"""Named axes -> blocks -> devices: every task at every cell and seed, in blocks of one compiled shape.

The random draws of a run depend only on the root seed, the cell's index in the grid and the run's number: not on
blocks, their order, devices or processes. Keys are Threefry's, because under `vmap` the draws of JAX's faster
generators depend on the whole batch.

Symbols: a run is one seed of one cell; a block is a box of runs (seed, *axes) that is computed and stored as a whole;
the batch is the number of runs that a device maps together; batches follow one another in a loop.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

Point = Mapping[str, Any]  # one cell: parameters by name
Inputs = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]  # of a block: cell numbers, run numbers, axis values

_LEAST_BLOCKS = 64  # per task, so that progress is visible and an interrupt loses little
_SMALLEST_BLOCK = 8  # runs: one for each of a host's devices
_LARGEST_BLOCK = 1 << 16  # runs
# A CPU is fastest if a batch fits in its cache; other devices, if a batch fills their memory.
_CACHE_BYTES = 2 << 20
_FIRST_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured: kernel(key, point) -> outcomes of one run.

    may_lack: NaN is a valid outcome (max-margin on inseparable data, say). All other non-finite values are failures and
    are stored as infinite.
    start, stages: for long runs, whose state is saved between stages. start(key, point) -> state, then for each stage
    kernel(key, point, number, state) -> (state, outcomes[number]). stages: the relative work of each stage.
    shared: arrays that all runs share, added to the point by name.
    """

    kernel: Callable[..., Any]
    may_lack: bool = False
    start: Callable[[jax.Array, Point], Any] | None = None
    stages: tuple[int, ...] = ()
    shared: Point = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Every task at all combinations of the axes' values, `seeds` times.

    tasks: labels along each leading dimension of the results.
    task: labels of one task -> the task, or None to measure nothing.
    axes: increasing values by name.
    outcomes: labels along each trailing dimension: the shape of a kernel's outcomes.
    sizes: axes of whole numbers that determine shapes. The kernel gets them as int, and is compiled for each value.
    """

    tasks: Mapping[str, Sequence[str]]
    task: Callable[..., Task | None]
    axes: Mapping[str, Sequence[float]]
    outcomes: Mapping[str, Sequence[Any]]
    seeds: int
    seed: int
    sizes: tuple[str, ...] = ()

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """The tasks, in the order of the results' leading dimensions."""
        return list(itertools.product(*self.tasks.values()))

    @property
    def dims(self) -> tuple[str, ...]:
        return (*self.tasks, "seed", *self.axes, *self.outcomes)

    @property
    def run_shape(self) -> tuple[int, ...]:
        """(seeds, length of each axis)."""
        return (self.seeds, *(len(values) for values in self.axes.values()))

    @property
    def shape(self) -> tuple[int, ...]:
        lead = (len(labels) for labels in self.tasks.values())
        return (*lead, *self.run_shape, *(len(labels) for labels in self.outcomes.values()))

    @property
    def runs(self) -> int:
        """Runs of each task."""
        return math.prod(self.run_shape)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape (seed, *axes) of a block: about 1/64 of all runs, last axes first, in blocks of nearly equal size."""
        wanted = int(np.clip(-(-self.runs // _LEAST_BLOCKS), _SMALLEST_BLOCK, _LARGEST_BLOCK))
        extents: list[int] = []
        for name, length in reversed(list(zip(("seed", *self.axes), self.run_shape, strict=True))):
            length = max(length, 1)
            most = 1 if name in self.sizes else max(1, min(length, wanted // math.prod(extents)))
            extents.append(-(-length // -(-length // most)))
        return tuple(reversed(extents))

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a stored chunk: one task, one block, all outcomes."""
        return (*(1 for _ in self.tasks), *self.block_shape, *(len(labels) for labels in self.outcomes.values()))

    @property
    def blocks_shape(self) -> tuple[int, ...]:
        """Blocks along each of the dimensions (*tasks, seed, *axes)."""
        lead = tuple(len(labels) for labels in self.tasks.values())
        return lead + tuple(-(-n // b) for n, b in zip(self.run_shape, self.block_shape, strict=True))

    def region(self, block: tuple[int, ...]) -> tuple[slice, ...]:
        """The slices of the results that a block fills. block: its index in `blocks_shape`."""
        lead = len(self.tasks)
        where = [slice(i, i + 1) for i in block[:lead]]
        for i, size, length in zip(block[lead:], self.block_shape, self.run_shape, strict=True):
            where.append(slice(i * size, min((i + 1) * size, length)))
        return tuple(where)

    def static(self, block: tuple[int, ...]) -> dict[str, int]:
        """The values of `sizes` in a block."""
        numbers = dict(zip(self.axes, block[len(self.tasks) + 1 :], strict=True))
        return {name: int(self.axes[name][numbers[name]]) for name in self.sizes}

    def inputs(self, block: tuple[int, ...]) -> Inputs:
        """(cell numbers, run numbers, axis values) of a block's runs, flat; beyond the grid's edge the edge repeats."""
        index = np.indices(self.block_shape).reshape(len(self.run_shape), -1)
        index += np.array(block[len(self.tasks) :])[:, None] * np.array(self.block_shape)[:, None]
        run, *cell = np.minimum(index, np.array(self.run_shape)[:, None] - 1)
        number = np.ravel_multi_index(cell, self.run_shape[1:]) if cell else np.zeros_like(run)
        values = {
            name: np.asarray(self.axes[name], float)[at]
            for name, at in zip(self.axes, cell, strict=True)
            if name not in self.sizes
        }
        return number.astype(np.uint32), run.astype(np.uint32), values


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled block.

    start, state: compiled start of a task in stages, and the shapes of its state.
    size, padded: runs of the block, and runs that are computed.
    batch: runs mapped together.
    bytes: memory by XLA's analysis; on a CPU of all devices together, else of each device.
    seconds: time that compilation took.
    """

    task: Task
    call: Callable[..., Any]
    start: Callable[..., Any] | None
    state: Any
    size: int
    padded: int
    batch: int
    bytes: int
    seconds: float

    def __call__(self, root: jax.Array, inputs: Inputs, kept: "Kept | None" = None) -> jax.Array:
        """Outcomes (padded, ...) of the runs; the first `size` rows count.

        Without stages, returns before they are computed. kept: saves the state between stages.
        """
        given = self._given(root, inputs)
        if self.start is None:
            return self.call(*given)
        done, state, measured = kept.load(self) if kept else (0, None, [])
        state = self.start(*given) if state is None else state
        for number in range(done, len(self.task.stages)):
            state, outcomes = self.call(*given, np.uint32(number), state)
            measured = [*measured, np.asarray(outcomes)]
            if kept:
                kept.save(state, measured)
        return jnp.stack(measured, axis=1)

    def _given(self, root: jax.Array, inputs: Inputs) -> tuple[Any, ...]:
        extra = self.padded - self.size
        return root, self.task.shared, *jax.tree.map(lambda x: _as_input(np.pad(x, (0, extra), "edge")), inputs)

    def seconds_of_block(self, root: jax.Array, inputs: Inputs) -> float:
        """Seconds that a block takes, extrapolated from its first stage."""
        begin = time.perf_counter()
        if self.start is None:
            jax.block_until_ready(self(root, inputs))
            return time.perf_counter() - begin
        given = self._given(root, inputs)
        state = jax.block_until_ready(self.start(*given))
        started = time.perf_counter()
        jax.block_until_ready(self.call(*given, np.uint32(0), state))
        share = self.task.stages[0] / sum(self.task.stages)
        return started - begin + (time.perf_counter() - started) / share


class Kept(Protocol):
    """Saves the state of a block in stages until the block is done."""

    def load(self, program: Program) -> tuple[int, Any, list[np.ndarray]]:
        """(number of stages done, state after them, their outcomes); (0, None, []) if nothing is saved."""

    def save(self, state: Any, outcomes: list[np.ndarray]) -> None:
        """Save the state after the last of these stages, and the outcomes of each."""


def _as_input(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.uint32 else x.astype(jnp.zeros((), float).dtype)


def compile_task(task: Task, size: int, axes: Sequence[str], static: Point, budget: float) -> Program:
    """The compiled program for `size` runs of a task, in batches that fit the budget.

    On a CPU a kernel that factorises matrices is not batched: jaxlib's batched LAPACK waits for XLA's thread pool from
    inside that pool. On two cores, two batched factorisations at once can deadlock.
    axes: names of the swept parameters.
    static: values of the sizes.
    budget: bytes; a batch of one run may exceed it.
    """
    start = time.perf_counter()
    devices = jax.local_devices()
    per_device = -(-size // len(devices))
    cpu = devices[0].platform == "cpu"
    batch, allowed = (_FIRST_BATCH, min(budget, _CACHE_BYTES * len(devices))) if cpu else (per_device, budget)
    while True:
        batch = _even(per_device, batch)
        padded = -(-per_device // batch) * batch * len(devices)
        programs, state = traced(task, padded, batch, axes, static, devices)
        parts = [program.lower(*given) for program, given in programs]
        if cpu and batch > 1 and any("lapack" in part.as_text() for part in parts):
            batch = 1
            continue
        compiled = [part.compile() for part in parts]
        needed = max(map(_bytes, compiled)) * (len(devices) if cpu else 1)
        if needed <= allowed or batch == 1:
            seconds = time.perf_counter() - start
            first = compiled[0] if task.start else None
            return Program(task, compiled[-1], first, state, size, padded, batch, needed, seconds)
        batch = max(1, min(batch - 1, int(batch * allowed / needed)))


def _bytes(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes


def _even(runs: int, batch: int) -> int:
    """The smallest batch with the same number of rounds as `batch`."""
    return -(-runs // -(-runs // min(runs, batch)))


def traced(
    task: Task, padded: int, batch: int, axes: Sequence[str], static: Point, devices: list[jax.Device]
) -> tuple[list[tuple[Any, tuple[Any, ...]]], Any]:
    """Traced programs for `padded` runs, a multiple of batch times devices.

    Returns: (program, shapes of its arguments) of the task's start, if it has one, and of its kernel; then the shapes
    of the state, None without a start.

    Matrix products use full float32 precision. The default precision of GPUs (10 bits) and TPUs (7 bits) is too low to
    compare theory with measurement.
    """

    def mapped(f: Callable[..., Any]) -> Any:
        """f(key, point, *stage, *state) of every run, in batches on each device."""

        def one(root: Any, shared: Any, stage: Any, cell: Any, run: Any, values: dict[str, Any], state: Any) -> Any:
            key = jax.random.fold_in(jax.random.fold_in(root, cell), run)
            with jax.default_matmul_precision("highest"):
                return f(key, {**static, **shared, **values}, *stage, *state)

        def on_device(root: Any, shared: Any, cell: Any, run: Any, values: Any, *more: Any) -> Any:
            stage, rows = more[:1], (cell, run, values, more[1:])
            if batch == 1:  # no vmap, not even over one run: a batched factorisation is another routine
                return jax.lax.map(lambda row: one(root, shared, stage, *row), rows)
            rows = jax.tree.map(lambda x: x.reshape(-1, batch, *x.shape[1:]), rows)
            each = jax.vmap(one, (None, None, None, 0, 0, 0, 0))
            outcomes = jax.lax.map(lambda row: each(root, shared, stage, *row), rows)
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outcomes)

        return on_device

    mesh = Mesh(np.array(devices), ("run",))
    whole, common = PartitionSpec("run"), PartitionSpec()
    root = jax.eval_shape(lambda: jax.random.key(0))
    number = jax.ShapeDtypeStruct((padded,), np.uint32)
    values = {name: jax.ShapeDtypeStruct((padded,), jnp.zeros((), float).dtype) for name in axes}

    def program(f: Callable[..., Any], *more: Any) -> tuple[Any, tuple[Any, ...]]:
        specs = (common, common, whole, whole, whole, *(common, whole)[: len(more)])
        sharded = jax.shard_map(mapped(f), mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
        return jax.jit(sharded), (root, task.shared, number, number, values, *more)

    if task.start is None:
        return [program(task.kernel)], None
    begun, given = start = program(task.start)
    state = jax.eval_shape(begun, *given)
    return [start, program(task.kernel, jax.ShapeDtypeStruct((), np.uint32), state)], state


def evaluate(f: Callable[[Point], jax.Array], axes: Mapping[str, Sequence[float]], sizes: tuple[str, ...] = ()) -> Any:
    """f at all cells, (*axes, ...), in float64; for predictions, which have no seeds."""
    with jax.enable_x64(True):
        outcomes = jax.eval_shape(
            lambda: f({k: int(v[0]) if k in sizes else jnp.asarray(v[0], float) for k, v in axes.items()})
        )
        trailing = {f"outcome_{i}": range(n) for i, n in enumerate(outcomes.shape)}
        grid = Grid({}, lambda: Task(lambda _, point: f(point), may_lack=True), axes, trailing, 1, 0, sizes)
        results = np.empty(grid.shape)
        for block, values in run_blocks(grid, np.zeros(grid.blocks_shape, bool), Programs(grid, np.inf)):
            results[grid.region(block)] = values
    return results[0]


class Programs:
    """The compiled programs of a grid, each compiled on first use. budget: bytes of memory."""

    def __init__(self, grid: Grid, budget: float):
        self.grid, self.budget = grid, budget
        self.made: dict[tuple[Any, ...], Program | None] = {}

    def get(self, block: tuple[int, ...]) -> Program | None:
        """The program of a block; None where its task measures nothing."""
        grid = self.grid
        number, static = block[: len(grid.tasks)], grid.static(block)
        key = (number, tuple(static.values()))
        if key not in self.made:
            task = grid.task(*(labels[i] for i, labels in zip(number, grid.tasks.values(), strict=True)))
            axes = [name for name in grid.axes if name not in grid.sizes]
            size = math.prod(grid.block_shape)
            self.made[key] = None if task is None else compile_task(task, size, axes, static, self.budget)
        return self.made[key]


def run_blocks(
    grid: Grid, skip: np.ndarray, programs: Programs, keep: Callable[[tuple[int, ...]], Kept] | None = None
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Measure every block that is not in `skip`; yields (index, values of its region), NaN if its task is None.

    While the caller handles one block, the next is computed. keep: block -> saver of its state between stages.
    """
    root = jax.random.key(grid.seed)
    pending: tuple[tuple[int, ...], Program | None, Any] | None = None
    for block in np.ndindex(*grid.blocks_shape):
        if skip[block]:
            continue
        program = programs.get(block)
        in_stages = program is not None and program.start is not None
        if pending is not None and in_stages:  # yield it now: a block in stages takes long
            yield pending[0], _collect(grid, *pending)
            pending = None
        started = None if program is None else program(root, grid.inputs(block), keep and keep(block))
        if in_stages:
            yield block, _collect(grid, block, program, started)
            continue
        if pending is not None:
            yield pending[0], _collect(grid, *pending)
        pending = block, program, started
    if pending is not None:
        yield pending[0], _collect(grid, *pending)


def _collect(grid: Grid, block: tuple[int, ...], program: Program | None, started: Any) -> np.ndarray:
    """A block's values in the shape of its region."""
    inside = tuple(slice(0, where.stop - where.start) for where in grid.region(block)[len(grid.tasks) :])
    lead = (1,) * len(grid.tasks)
    outcomes = tuple(len(labels) for labels in grid.outcomes.values())
    if program is None:
        return np.full((*lead, *(where.stop for where in inside), *outcomes), np.nan)
    values = np.asarray(started)[: program.size].reshape(*grid.block_shape, *outcomes)
    answer = np.isnan(values) if program.task.may_lack else False
    values = np.where(np.isfinite(values) | answer, values, np.inf)
    return values[inside].reshape(*lead, *(where.stop for where in inside), *outcomes)

"""Named axes -> blocks -> devices: every task at every cell and seed, in blocks of one compiled shape.

The random draws of a run depend on the root seed, on the cell's index in the grid and on the run's number only: not on
blocks, their order, devices or processes. Threefry keys, since under `vmap` the draws of JAX's faster generators depend
on the whole batch.

Symbols: a run is one seed of one cell; a block is a box of runs (seed, *axes) that is computed and stored as a whole;
the batch is the number of runs that are mapped together on a device, the others following in a loop.
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
Inputs = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]  # of a block: cell and run numbers, axis values

_LEAST_BLOCKS = 64  # of a task, so that progress shows and little is lost
_SMALLEST_BLOCK = 8  # runs: one for each of a host's devices
_LARGEST_BLOCK = 1 << 16  # runs
# A CPU is fastest where a batch stays in its cache; other devices take as much as memory holds.
_CACHE_BYTES = 2 << 20
_FIRST_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured: kernel(key, point) -> outcomes of one run.

    may_lack: NaN is an answer, such as max-margin's on inseparable data. Other values that are not finite are failures,
    and stored as infinite.
    start, stages: a run that takes long, in stages between which its state is kept: start(key, point) -> state, then
    kernel(key, point, number, state) -> (state, outcomes[number]) for each stage; the entries of stages are each one's
    work, to some scale.
    shared: arrays that all runs see, by name, in the point.
    """

    kernel: Callable[..., Any]
    may_lack: bool = False
    start: Callable[[jax.Array, Point], Any] | None = None
    stages: tuple[int, ...] = ()
    shared: Point = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Every task at all combinations of the axes' values, `seeds` times.

    tasks: labels of each leading dimension of the results.  task: the labels of one task -> it, None to measure none.
    axes: increasing values by name.  outcomes: labels of each trailing dimension, the shape of what a kernel gives.
    sizes: axes of whole numbers on which shapes depend; the kernel gets them as int, and is compiled for each.
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
        """Runs (seed, *axes) of a block: last axes first, about 1/64 of all, in blocks as equal as can be."""
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
        """The part of the results that a block fills, for its index in `blocks_shape`."""
        lead = len(self.tasks)
        where = [slice(i, i + 1) for i in block[:lead]]
        for i, size, length in zip(block[lead:], self.block_shape, self.run_shape, strict=True):
            where.append(slice(i * size, min((i + 1) * size, length)))
        return tuple(where)

    def static(self, block: tuple[int, ...]) -> dict[str, int]:
        """The sizes of a block's cells."""
        numbers = dict(zip(self.axes, block[len(self.tasks) + 1 :], strict=True))
        return {name: int(self.axes[name][numbers[name]]) for name in self.sizes}

    def inputs(self, block: tuple[int, ...]) -> Inputs:
        """(cell number, run number, axis values) of a block's runs, flat; beyond the grid its edge repeats."""
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
    """A compiled block. bytes: memory that it takes, of all devices on a CPU, of each elsewhere; from XLA's analysis.

    start, state: of a task in stages; the latter's shapes.  batch: runs mapped together.  seconds: time that
    compilation took.
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

        Without stages they are computed while the caller goes on. kept: where states are kept between stages.
        """
        given = self._given(root, inputs)
        if self.start is None:
            return self.call(*given)
        done, state, found = kept.load(self) if kept else (0, None, [])
        state = self.start(*given) if state is None else state
        for number in range(done, len(self.task.stages)):
            state, outcomes = self.call(*given, np.uint32(number), state)
            found = [*found, np.asarray(outcomes)]
            if kept:
                kept.save(state, found)
        return jnp.stack(found, axis=1)

    def _given(self, root: jax.Array, inputs: Inputs) -> tuple[Any, ...]:
        extra = self.padded - self.size
        return root, self.task.shared, *jax.tree.map(lambda x: _as_input(np.pad(x, (0, extra), "edge")), inputs)

    def seconds_of_block(self, root: jax.Array, inputs: Inputs) -> float:
        """Time that a block takes, from a run of its first stage."""
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
    """Where the state of a block in stages is kept until the block is done."""

    def load(self, program: Program) -> tuple[int, Any, list[np.ndarray]]:
        """(stages done, state after them, their outcomes); (0, None, []) where nothing is kept."""

    def save(self, state: Any, found: list[np.ndarray]) -> None:
        """Keep the state after `found` stages, and their outcomes."""


def _as_input(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.uint32 else x.astype(jnp.zeros((), float).dtype)


def compile_task(task: Task, size: int, axes: Sequence[str], static: Point, budget: float) -> Program:
    """The program for `size` runs of a task, in batches that fit.

    On a CPU a kernel that factorises matrices runs alone: jaxlib's batched LAPACK waits on XLA's thread pool from
    within it, so that two batched factorisations which may run at once can wait for ever on two cores.
    axes: names of the swept parameters.  static: sizes.  budget: bytes; the smallest batch is compiled even where it
    takes more.
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
    """The batch at most this large that fills its last round best."""
    return -(-runs // -(-runs // min(runs, batch)))


def traced(
    task: Task, padded: int, batch: int, axes: Sequence[str], static: Point, devices: list[jax.Device]
) -> tuple[list[tuple[Any, tuple[Any, ...]]], Any]:
    """(program, shapes of its arguments) for `padded` runs, a multiple of batch times devices: the task's start, if
    any, and its kernel. And the shapes of the state, None without a start.

    Products are those of the full float32: by default a GPU rounds their factors to 10 bits, a TPU to 7, which is more
    than what theory and measurement are compared at.
    """

    def mapped(f: Callable[..., Any]) -> Any:
        """f(key, point, *stage, *state) of every run, in batches on each device."""

        def one(root: Any, shared: Any, stage: Any, cell: Any, run: Any, values: dict[str, Any], state: Any) -> Any:
            key = jax.random.fold_in(jax.random.fold_in(root, cell), run)
            with jax.default_matmul_precision("highest"):
                return f(key, {**static, **shared, **values}, *stage, *state)

        def on_device(root: Any, shared: Any, cell: Any, run: Any, values: Any, *more: Any) -> Any:
            stage, rows = more[:1], (cell, run, values, more[1:])
            if batch == 1:  # not even a map of one: a batched factorisation is another routine
                return jax.lax.map(lambda row: one(root, shared, stage, *row), rows)
            rows = jax.tree.map(lambda x: x.reshape(-1, batch, *x.shape[1:]), rows)
            each = jax.vmap(one, (None, None, None, 0, 0, 0, 0))
            found = jax.lax.map(lambda row: each(root, shared, stage, *row), rows)
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

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
    """f at all cells, (*axes, ...), in float64: for predictions, which have no seeds and are stored whole."""
    with jax.enable_x64(True):
        outcomes = jax.eval_shape(
            lambda: f({k: int(v[0]) if k in sizes else jnp.asarray(v[0], float) for k, v in axes.items()})
        )
        trailing = {f"outcome_{i}": range(n) for i, n in enumerate(outcomes.shape)}
        grid = Grid({}, lambda: Task(lambda _, point: f(point), may_lack=True), axes, trailing, 1, 0, sizes)
        found = np.empty(grid.shape)
        for block, values in run_blocks(grid, np.zeros(grid.blocks_shape, bool), Programs(grid, np.inf)):
            found[grid.region(block)] = values
    return found[0]


class Programs:
    """The compiled programs of a grid, each made when it is first asked for. budget: bytes of memory."""

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
    """Measure every block that is not in `skip`; yields (index, values of its region), NaN where a task measures none.

    The next block is already being computed while one is taken. keep: where the states of blocks in stages are kept.
    """
    root = jax.random.key(grid.seed)
    pending: tuple[tuple[int, ...], Program | None, Any] | None = None
    for block in np.ndindex(*grid.blocks_shape):
        if skip[block]:
            continue
        program = programs.get(block)
        in_stages = program is not None and program.start is not None
        if pending is not None and in_stages:  # it is not to wait for one that takes long
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

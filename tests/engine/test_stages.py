"""Tasks in stages: the same runs as in one piece, whatever is killed in between."""

import dataclasses
import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from sims.engine import grid, runs, store
from sims.engine.flags import DEFAULTS, Options, UsageError, WorkFailed
from sims.engine.grid import Grid, Programs, Task, run_blocks
from tests.helpers import ROOT

STAGES = (2, 3, 5)
BOUNDS = np.cumsum((0, *STAGES))
AXES = {"x": [0.0, 1.0, 2.0]}


def begin(key, point):
    return {"total": jnp.zeros(()), "least": jax.random.normal(jax.random.fold_in(key, 0)) + point["x"]}


def steps(key, point, state, first, last):
    def step(i, state):
        draw = jax.random.normal(jax.random.fold_in(key, i + 1)) * point["table"][i]
        return {"total": state["total"] + draw, "least": jnp.minimum(state["least"], draw)}

    return jax.lax.fori_loop(first, last, step, state)


def outcome(state):
    return jnp.stack([state["total"], state["least"]])


def stage(key, point, number, state):
    bounds = jnp.asarray(BOUNDS)
    state = steps(key, point, state, bounds[number], bounds[number + 1])
    return state, outcome(state)


def whole(key, point):
    """All stages in one kernel."""
    state, found = begin(key, point), []
    for first, last in zip(BOUNDS[:-1].tolist(), BOUNDS[1:].tolist(), strict=True):
        state = steps(key, point, state, first, last)
        found.append(outcome(state))
    return jnp.stack(found)


TABLE = np.linspace(0.5, 2, BOUNDS[-1])
STAGED = Task(stage, start=begin, stages=STAGES, shared={"table": TABLE})


def a_grid(task=STAGED, seeds=5):
    outcomes = {"step": BOUNDS[1:].tolist(), "measure": ("total", "least")}
    return Grid({"arm": ("a", "b")}, lambda _: task, AXES, outcomes, seeds, 3)


@functools.cache
def compiled():
    """The programs of the ordinary grid, compiled once."""
    return Programs(a_grid(), np.inf)


def run(plan=None, keep=None):
    programs = compiled() if plan is None else Programs(plan, np.inf)
    plan = programs.grid
    values = np.full(plan.shape, np.nan)
    for block, found in run_blocks(plan, np.zeros(plan.blocks_shape, bool), programs, keep):
        values[plan.region(block)] = found
    return values


@pytest.mark.slow
def test_stages_are_the_run_cut_in_parts():
    together = run(a_grid(Task(whole, shared={"table": TABLE})))
    np.testing.assert_allclose(run(), together, rtol=0, atol=1e-12)
    assert np.unique(together[0, ..., -1, 0]).size == 15
    other = dataclasses.replace(STAGED, shared={"table": 2 * TABLE})
    assert not np.allclose(run(a_grid(other)), together)


class Killed(BaseException):
    pass


def killed_after(out, saves):
    """Checkpoints of which the one after the last of `saves` is never written."""
    left = [saves]

    class Dying(store.Checkpoint):
        def save(self, state, found):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            super().save(state, found)

    return functools.partial(Dying, out, "run")


@pytest.mark.slow
@pytest.mark.parametrize("saves", [0, 1, 2, 4])
def test_a_killed_block_goes_on_after_its_last_stage(tmp_path, monkeypatch, saves):
    expected = run()
    with pytest.raises(Killed):
        run(keep=killed_after(tmp_path, saves))
    kept = sorted((tmp_path / "checkpoints").glob("*.npz"))
    assert len(kept) == -(-saves // len(STAGES))
    calls = []

    class Counting(store.Checkpoint):
        def save(self, state, found):
            calls.append(len(found))
            super().save(state, found)

    resumed = run(keep=functools.partial(Counting, tmp_path, "run"))
    np.testing.assert_array_equal(resumed, expected)
    blocks = int(np.prod(a_grid().blocks_shape))
    assert len(calls) == len(STAGES) * blocks - saves


@pytest.mark.costly
def test_a_checkpoint_is_what_the_run_goes_on_from(tmp_path):
    """The state on disk counts: another one gives other outcomes."""
    with pytest.raises(Killed):
        run(keep=killed_after(tmp_path, 1))
    path = next((tmp_path / "checkpoints").glob("*.npz"))
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    np.savez(path, **{name: x + 1.0 if name.startswith("state") else x for name, x in found.items()})
    resumed, expected = run(keep=functools.partial(store.Checkpoint, tmp_path, "run")), run()
    first = a_grid().region((0,) * len(a_grid().blocks_shape))
    assert not np.allclose(resumed[first][..., 1:, :], expected[first][..., 1:, :])
    np.testing.assert_array_equal(resumed[first][..., 0, :], expected[first][..., 0, :])


@pytest.mark.parametrize(("run_name", "moved"), [("another", False), ("run", True)])
def test_the_state_of_another_run_or_block_is_refused(tmp_path, run_name, moved):
    """Its shapes are right; the test above goes on from the same file under its own name."""
    with pytest.raises(Killed):
        run(keep=killed_after(tmp_path, 1))
    (path,) = (tmp_path / "checkpoints").glob("*.npz")
    if moved:
        path = path.rename(path.with_name("1-0-0.npz"))
    with pytest.raises(UsageError, match=rf"^{path} is another run's or block's; remove it to .*\.$"):
        run(keep=functools.partial(store.Checkpoint, tmp_path, run_name))


def cut(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[:100])


def flip(path: pathlib.Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def of_another_shape(path: pathlib.Path):
    with np.load(path) as file:
        np.savez(path, **{name: x if x.ndim == 0 else np.concatenate([x] * 2) for name, x in file.items()})


def lacking(path: pathlib.Path):
    with np.load(path) as file:
        np.savez(path, owner=file["owner"], outcomes=file["outcomes"])


def empty(path: pathlib.Path):
    path.write_bytes(b"")


def flip_directory(path: pathlib.Path):
    """A bit of the archive's own table, such as says that a file in it is encrypted."""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, flip, of_another_shape, lacking, empty, flip_directory])
def test_a_damaged_checkpoint_is_left_aside(tmp_path, damage):
    with pytest.raises(Killed):
        run(keep=killed_after(tmp_path, 2))
    damage(next((tmp_path / "checkpoints").glob("*.npz")))
    np.testing.assert_array_equal(run(keep=functools.partial(store.Checkpoint, tmp_path, "run")), run())


def measure(out, options=DEFAULTS, task=STAGED):
    return runs.measure(out, {"command": "test"}, "measured", a_grid(task), lambda _: xr.Dataset(), options)


@pytest.mark.slow
def test_checkpoints_go_with_their_block_unless_kept(tmp_path):
    gone, kept = measure(tmp_path / "gone"), measure(tmp_path / "kept", Options(keep_checkpoints=True))
    assert not (tmp_path / "gone" / "checkpoints").exists()
    files = list((tmp_path / "kept" / "checkpoints").iterdir())
    assert len(files) == int(np.prod(a_grid().blocks_shape))
    np.testing.assert_array_equal(gone.measured, kept.measured)
    measure(tmp_path / "kept", Options(overwrite=True))
    assert not (tmp_path / "kept" / "checkpoints").exists()


@pytest.mark.slow
def test_a_kill_inside_a_write_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    save = np.savez
    left = [1]

    def half(file, **arrays):
        if left[0] == 0:
            file.write(b"half of it")
            raise Killed
        left[0] -= 1
        save(file, **arrays)

    monkeypatch.setattr(store.np, "savez", half)
    with pytest.raises(Killed):
        run(keep=functools.partial(store.Checkpoint, tmp_path, "run"))
    monkeypatch.setattr(store.np, "savez", save)
    (path,) = (tmp_path / "checkpoints").glob("[!.]*")
    with np.load(path) as file:
        assert len(file["outcomes"]) == 1
    np.testing.assert_array_equal(run(keep=functools.partial(store.Checkpoint, tmp_path, "run")), run())


@pytest.mark.slow
def test_a_checkpoint_of_a_block_that_is_done_goes_too(tmp_path, monkeypatch):
    """Killed after the block was stored and before its checkpoint went."""

    def dying(self):
        raise Killed

    remove = store.Checkpoint.remove
    monkeypatch.setattr(store.Checkpoint, "remove", dying)
    with pytest.raises(Killed):
        measure(tmp_path)
    monkeypatch.setattr(store.Checkpoint, "remove", remove)
    assert list((tmp_path / "checkpoints").iterdir())
    measure(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_a_start_that_factorises_runs_alone():
    def factorising(key, point):
        return {**begin(key, point), "least": jnp.linalg.solve(jnp.eye(3), jnp.ones(3))[0]}

    assert grid.compile_task(STAGED, 16, ["x"], {}, np.inf).batch > 1
    assert grid.compile_task(dataclasses.replace(STAGED, start=factorising), 16, ["x"], {}, np.inf).batch == 1


@pytest.mark.slow
def test_a_full_disk_between_stages_stops_the_run_which_goes_on_later(tmp_path, monkeypatch):
    save = store.Checkpoint.save

    def full(self, state, found):
        if len(found) == 2:
            raise OSError(28, "No space left on device")
        save(self, state, found)

    monkeypatch.setattr(store.Checkpoint, "save", full)
    with pytest.raises(WorkFailed, match="No space left on device; results so far are kept"):
        measure(tmp_path)
    monkeypatch.setattr(store.Checkpoint, "save", save)
    np.testing.assert_array_equal(measure(tmp_path).measured, run())


def test_a_dry_run_times_a_stage_and_writes_nothing(tmp_path, capsys):
    measure(tmp_path / "dry", Options(dry_run=True))
    printed = capsys.readouterr().out
    assert "30 runs in" in printed and "nothing was written" in printed
    assert not (tmp_path / "dry").exists()


@pytest.mark.slow
def test_the_estimate_of_a_block_scales_with_its_stages(monkeypatch):
    plan = a_grid()
    program = compiled().get((0,) * len(plan.blocks_shape))
    clock = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(grid.time, "perf_counter", lambda: next(clock))
    seconds = program.seconds_of_block(jax.random.key(0), plan.inputs((0,) * len(plan.blocks_shape)))
    assert seconds == 1 + 2 * sum(STAGES) / STAGES[0]


@pytest.mark.slow
def test_a_stage_that_fails_is_marked(tmp_path):
    def failing(key, point, number, state):
        state, found = stage(key, point, number, state)
        return state, jnp.where((number == 1) & (point["x"] == 1), jnp.nan, found)

    values = run(a_grid(dataclasses.replace(STAGED, kernel=failing)))
    assert np.isposinf(values[:, :, 1, 1]).all()
    assert np.isfinite(np.delete(values, 1, axis=2)).all() and np.isfinite(values[:, :, 1, [0, 2]]).all()
    lacks = run(a_grid(dataclasses.replace(STAGED, kernel=failing, may_lack=True)))
    assert np.isnan(lacks[:, :, 1, 1]).all()


@pytest.mark.costly
def test_a_dry_run_of_a_finished_folder_changes_nothing(tmp_path, capsys):
    measure(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert measure(tmp_path, Options(dry_run=True)) is None
    assert "nothing was written" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_damaged_metadata_are_told_in_a_line(tmp_path):
    measure(tmp_path)
    (tmp_path / "results.zarr" / "measured" / "zarr.json").write_text("")
    with pytest.raises(UsageError, match=r"is damaged .*--overwrite starts again"):
        measure(tmp_path)


def test_a_run_that_began_in_the_meantime_is_seen(tmp_path, monkeypatch):
    """Another config is written between the check of the folder and its lock."""
    checked = runs._check_memory

    def meanwhile(*args):
        checked(*args)
        store.begin(tmp_path, {"command": "another", "x64": True})

    monkeypatch.setattr(runs, "_check_memory", meanwhile)
    tmp_path.joinpath(".lock").touch()
    with pytest.raises(UsageError, match="differs in command"):
        measure(tmp_path)
    assert store.read_config(tmp_path)["command"] == "another"


@pytest.mark.long
def test_stages_on_several_devices_are_the_same(tmp_path):
    code = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
from tests.engine import test_stages as stages
assert jax.device_count() == 8
np.save(sys.argv[1], stages.run(stages.a_grid()))
"""
    path = tmp_path / "found.npy"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True)
    np.testing.assert_allclose(np.load(path), run(), rtol=0, atol=1e-12)

"""The engine: every run once, draws that depend on nothing but the cell and the seed, memory that is kept to."""

import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sims.engine import grid, store
from sims.engine.flags import Options, UsageError
from sims.engine.grid import Grid, Programs, Task, compile_task, evaluate, run_blocks
from sims.sweep_spurious import experiment
from sims.sweep_spurious.config import Config, Setting
from tests.helpers import ROOT

AXES = {"x": [0.0, 1.0, 2.0], "y": [1.0, 3.0, 4.0, 7.0, 8.0]}


def draws(key, point):
    """Two numbers of a run: a draw moved by the cell's parameters, and a sum over many draws."""
    key_one, key_many = jax.random.split(key)
    return jnp.stack([jax.random.normal(key_one) + 10 * point["x"], jax.random.normal(key_many, (50,)).sum()])


def a_grid(task=None, seeds=7, axes=AXES, tasks=("a", "b"), **more):
    return Grid(
        {"learner": tasks}, task or (lambda _: Task(draws)), axes, {"outcome": ("one", "two")}, seeds, 5, **more
    )


def run(plan, budget=np.inf, skip=None):
    values = np.full(plan.shape, -1.0)
    skip = np.zeros(plan.blocks_shape, bool) if skip is None else skip
    for block, found in run_blocks(plan, skip, Programs(plan, budget)):
        region = plan.region(block)
        assert (values[region] == -1).all()
        values[region] = found
    return values


def smaller_blocks(monkeypatch, size):
    monkeypatch.setattr(grid, "_LARGEST_BLOCK", size)
    monkeypatch.setattr(grid, "_SMALLEST_BLOCK", 1)


@pytest.mark.parametrize(
    "seeds, lengths", [(1, (1,)), (20, (8,)), (7, (3, 5)), (1000, ()), (2, (100, 70)), (3, (0, 2))]
)
def test_blocks_tile_the_runs(seeds, lengths):
    axes = {f"axis_{i}": list(range(n)) for i, n in enumerate(lengths)}
    plan = a_grid(seeds=seeds, axes=axes)
    seen = np.zeros(plan.shape, int)
    for block in np.ndindex(*plan.blocks_shape):
        seen[plan.region(block)] += 1
    assert (seen == 1).all()
    blocks, runs = int(np.prod(plan.blocks_shape)) // 2, plan.runs
    assert blocks <= 130
    if runs:
        assert blocks * np.prod(plan.block_shape) <= 2 * runs + 16


@pytest.mark.costly
def test_every_run_has_its_own_draws_at_its_own_cell():
    plan = a_grid()
    values = run(plan)
    one = values[..., 0] - 10 * np.array(AXES["x"])[None, None, :, None]
    assert np.unique(one[0]).size == plan.runs
    assert abs(one[0].mean()) < 5 / plan.runs**0.5
    np.testing.assert_array_equal(values[0], values[1])  # two learners see the same draws


@pytest.mark.costly
def test_a_runs_draws_are_those_of_its_cell_and_seed():
    values = run(a_grid())
    for seed, i, j in ((0, 0, 0), (6, 2, 4), (3, 1, 2)):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), i * 5 + j), seed)
        expected = draws(key, {"x": AXES["x"][i], "y": AXES["y"][j]})
        np.testing.assert_allclose(values[0, seed, i, j], expected, rtol=0, atol=1e-12)


@pytest.mark.costly
@pytest.mark.parametrize("x64, tolerance", [pytest.param(True, 1e-12, marks=pytest.mark.long), (False, 1e-6)])
def test_draws_do_not_depend_on_blocks_or_batches(monkeypatch, x64, tolerance):
    with jax.enable_x64(x64):
        plan = a_grid(seeds=40, tasks=("a",))
        whole = run(plan)
        np.testing.assert_array_equal(run(plan), whole)
        for size, batch in ((5, 256), (64, 3), (64, 1)):
            monkeypatch.setattr(grid, "_FIRST_BATCH", batch)
            smaller_blocks(monkeypatch, size)
            np.testing.assert_allclose(run(plan), whole, rtol=0, atol=tolerance * np.abs(whole).max())


def test_skipped_blocks_are_not_run_and_change_nothing():
    plan = a_grid(seeds=40, tasks=("a",))
    whole = run(plan)
    skip = np.random.default_rng(0).random(plan.blocks_shape) < 0.5
    some = run(plan, skip=skip)
    for block in np.ndindex(*plan.blocks_shape):
        region = plan.region(block)
        assert (some[region] == -1).all() if skip[block] else (some[region] == whole[region]).all()


@pytest.mark.costly
def test_sizes_are_whole_numbers_and_compiled_one_by_one():
    def kernel(key, point):
        assert isinstance(point["n"], int)
        return jnp.stack([jnp.zeros(point["n"]).size + point["x"], jax.random.normal(key, (point["n"],)).mean()])

    plan = a_grid(lambda _: Task(kernel), axes={"n": [2.0, 50.0], "x": [0.25, 0.5]}, sizes=("n",), seeds=30)
    values = run(plan)
    np.testing.assert_array_equal(values[0, 0, :, :, 0], [[2.25, 2.5], [50.25, 50.5]])
    assert values[0, :, 1, :, 1].std() < values[0, :, 0, :, 1].std() / 2


def test_a_task_that_measures_nothing_is_missing():
    values = run(a_grid(lambda name: Task(draws) if name == "a" else None))
    assert np.isfinite(values[0]).all() and np.isnan(values[1]).all()


def test_what_is_not_finite_fails_unless_it_is_an_answer():
    def kernel(key, point):
        return jnp.stack([jnp.where(point["x"] == 1, jnp.nan, 0.0), jnp.where(point["x"] == 2, -jnp.inf, 0.0)])

    values = run(a_grid(lambda name: Task(kernel, may_lack=name == "b")))
    assert np.isposinf(values[0, :, 1, :, 0]).all() and np.isnan(values[1, :, 1, :, 0]).all()
    assert np.isposinf(values[:, :, 2, :, 1]).all()
    assert (values[:, :, 0] == 0).all()


def big(key, point):
    return jnp.sort(jax.random.normal(key, (20_000,)))[:2] + point["x"]


@pytest.mark.costly
def test_memory_is_measured_and_kept_to():
    roomy = compile_task(Task(big), 64, ["x"], {}, 2**40)
    tight = compile_task(Task(big), 64, ["x"], {}, 2**20)
    assert roomy.bytes >= roomy.batch * 20_000 * 8
    assert tight.bytes <= 2**20 and 1 <= tight.batch < roomy.batch
    impossible = compile_task(Task(big), 64, ["x"], {}, 1000)
    assert impossible.batch == 1 and impossible.bytes > 1000


def test_factorisations_run_one_at_a_time():
    def factorise(key, point):
        return jnp.linalg.eigh(jax.random.normal(key, (3, 3)) + point["x"])[0][:2]

    assert compile_task(Task(factorise), 64, ["x"], {}, np.inf).batch == 1
    assert compile_task(Task(draws), 64, ["x"], {}, np.inf).batch > 1


def test_predictions_are_evaluated_at_every_cell_in_float64():
    with jax.enable_x64(False):
        found = evaluate(lambda at: jnp.stack([at["x"] * at["y"], at["x"] / 3]), AXES)
    x, y = np.meshgrid(*AXES.values(), indexing="ij")
    # A compiler may divide by 3 or multiply by 1/3: two roundings, far from those of float32.
    np.testing.assert_allclose(found, np.stack([x * y, x / 3], -1), rtol=2 * np.finfo(float).eps)
    assert found.dtype == np.float64
    sized = evaluate(lambda at: jnp.ones(at["m"]).sum() * at["x"], {"m": [1, 3], "x": [0.5, 1.0]}, ("m",))
    np.testing.assert_array_equal(sized, [[0.5, 1.0], [1.5, 3.0]])


SWEEP = ["--p_spu=0.6,0.9", "--learners=mmcl,supervised", "--sampler=latent", "--seeds=17", "--n=40", "--dim_image=30"]


def sweep(out, *more):
    return [sys.executable, "-m", "sims.sweep_spurious", f"--out={out}", *SWEEP, *more]


def stored(out):
    import xarray as xr

    with xr.open_zarr(out / "results.zarr", consolidated=False) as data:
        return data.accuracy_measured.values


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("grid") / "alone"
    subprocess.run(sweep(out, "--cpu_devices=1"), cwd=ROOT, check=True, capture_output=True, timeout=300)
    return stored(out)


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(alone, tmp_path):
    subprocess.run(sweep(tmp_path, "--cpu_devices=8"), cwd=ROOT, check=True, capture_output=True, timeout=300)
    found = stored(tmp_path)
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_processes_share_one_store_and_give_the_numbers_of_one(alone, tmp_path, count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", "--cpu_devices=1"]
    for again in range(2 if count == 2 else 1):
        outputs = together(tmp_path, more, count)
        assert ["Figure" in out for out, _ in outputs] == [True] + [False] * (count - 1)  # the first alone reports
        assert ("already holds this run" in outputs[0][1]) is bool(again)
        np.testing.assert_array_equal(stored(tmp_path), alone)


def together(out, more, count):
    """(stdout, stderr) of the processes of one run."""
    running = [
        subprocess.Popen(
            sweep(out, *more, f"--process_id={i}"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    outputs = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * count, outputs
    return outputs


TINY = Config(p_spu=(0.6, 0.9), learners=("mmcl",), seeds=17, setting=Setting(n=40, dim_image=30, sampler="ambient"))


@pytest.mark.costly
def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    assert experiment.run(TINY, tmp_path / "new", Options(dry_run=True)) is None
    printed = capsys.readouterr().out
    assert "2 cells, 17 seeds, 1 tasks: 34 runs" in printed
    for words in ("memory GiB", "compile s", "run s", "mmcl", "nothing was written"):
        assert words in printed
    assert not (tmp_path / "new").exists()


@pytest.mark.costly
def test_a_run_that_memory_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^a run of mmcl needs about .* GiB at these sizes; .*--memory_gb\)\.$"):
        experiment.run(TINY, tmp_path / "new", Options(memory_gb=1e-5))
    assert not (tmp_path / "new").exists()


@pytest.mark.long
def test_the_config_tells_x64_apart(tmp_path):
    for x64 in (False, True):
        with jax.enable_x64(x64):
            experiment.run(TINY, tmp_path, Options(overwrite=True))
        assert stored(tmp_path).dtype == (np.float64 if x64 else np.float32)
        assert store.read_config(tmp_path)["x64"] is x64
    with jax.enable_x64(False), pytest.raises(UsageError, match="differs in x64"):
        experiment.run(TINY, tmp_path)

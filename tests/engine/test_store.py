"""A run's folder: what is refused, what survives damage, that files are written whole or not at all, and the lock."""

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
import zarr

from sims import show
from sims.engine import store
from sims.engine.flags import UsageError
from sims.engine.grid import Grid
from sims.sweep_spurious.config import Config
from tests.helpers import ROOT

CONFIG = Config(seeds=3).flat()
ATTRS = {"measured": "accuracy", "outcomes": '["group"]'}
GRID = Grid({"learner": ("a", "b")}, lambda _: None, {"x": [0.0, 1.0, 2.0]}, {"group": ("one", "two")}, 11, 0)


def assert_one_line(error, *mentioned):
    assert "\n" not in str(error.value)
    for words in mentioned:
        assert words in str(error.value)


def begin(out, config=CONFIG, overwrite=False):
    store.check(out, config, overwrite)
    with store.locked(out):
        store.begin(out, config, overwrite)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_is_begun_once(tmp_path):
    out = tmp_path / "deep" / "run"
    begin(out)
    assert names(out) == [".lock", "config.json"]
    text = (out / "config.json").read_text()
    found = json.loads(text)
    assert found["config"] == json.loads(json.dumps(CONFIG)) == store.read_config(out)
    assert {"python", "jax", "numpy", "git_commit"} <= set(found["provenance"])
    begin(out)
    assert (out / "config.json").read_text() == text


def test_checking_a_folder_writes_nothing(tmp_path):
    store.check(tmp_path / "deep" / "run", CONFIG)
    assert names(tmp_path) == []


def test_a_begin_goes_on_where_it_was_killed(tmp_path):
    (tmp_path / ".config.json.new").write_text('{"conf')
    begin(tmp_path)
    assert names(tmp_path) == [".lock", "config.json"]


def test_a_different_run_is_refused_and_what_differs_is_named(tmp_path):
    begin(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UsageError) as error:
        begin(tmp_path, {**CONFIG, "seed": 1, "p_spu": (0.5,)})
    assert_one_line(error, f"--out={tmp_path} ", "differs in p_spu, seed", "nothing was changed", "--overwrite")
    assert (tmp_path / "config.json").read_bytes() == before


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    begin(tmp_path)
    begin(tmp_path)
    store.Measured.create(tmp_path, "accuracy", GRID)
    (tmp_path / "summary.csv").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    begin(tmp_path, {**CONFIG, "seed": 1}, overwrite=True)
    assert names(tmp_path) == [".lock", "config.json", "notes.txt"]
    assert store.read_config(tmp_path)["seed"] == 1


def test_an_overwriting_that_is_killed_can_be_repeated(tmp_path, monkeypatch):
    begin(tmp_path)
    begin(tmp_path)
    store.Measured.create(tmp_path, "accuracy", GRID)
    (tmp_path / "summary.csv").write_text("old")
    unlink = pathlib.Path.unlink
    left = [2]

    def dying(self, missing_ok=False):
        if self.name == "config.json" or left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(self, missing_ok)

    monkeypatch.setattr(pathlib.Path, "unlink", dying)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, {**CONFIG, "seed": 1}, overwrite=True)
    monkeypatch.setattr(pathlib.Path, "unlink", unlink)
    assert "config.json" in names(tmp_path) and "results.zarr" not in names(tmp_path)
    begin(tmp_path, {**CONFIG, "seed": 1}, overwrite=True)
    assert store.read_config(tmp_path)["seed"] == 1


def test_overwriting_spares_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError) as error:
        begin(tmp_path, overwrite=True)
    assert_one_line(error, "is not the folder of a run")
    assert names(tmp_path) == ["thesis.tex"]


def damaged_configs():
    begin_text = {"format": store.FORMAT, "config": {"seeds": 1}, "config_hash": "0" * 64}
    return [b"", b"{", b"[]", b"{}", b"3", b'{"config": []}', b"\xff\xfe", json.dumps(begin_text).encode()]


@pytest.mark.parametrize("damage", damaged_configs())
def test_a_damaged_config_is_refused(tmp_path, damage):
    (tmp_path / "config.json").write_bytes(damage)
    with pytest.raises(UsageError) as error:
        begin(tmp_path)
    assert_one_line(error, f"--out={tmp_path} ", "config.json is damaged", "--overwrite")
    assert (tmp_path / "config.json").read_bytes() == damage


def test_another_versions_folder_is_refused(tmp_path):
    begin(tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**found, "format": store.FORMAT + 1}))
    with pytest.raises(UsageError) as error:
        begin(tmp_path)
    assert_one_line(error, f"was written in format {store.FORMAT + 1}", f"has format {store.FORMAT}")


def test_a_complete_folder_of_an_earlier_version_is_told_to_be_measured_anew(tmp_path):
    """The same by `show` and by the command, so that neither sends one to the other; networks are kept."""

    def age(config):
        begin(tmp_path, config, overwrite=True)
        found = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**found, "format": 1}))

    complete_run(tmp_path)
    age({**CONFIG, "command": "sweep_spurious"})
    for read in (lambda: show.show(tmp_path, tmp_path), lambda: begin(tmp_path)):
        with pytest.raises(UsageError) as error:
            read()
        assert_one_line(error, "was written in format 1", "with --overwrite, which starts again")
    age({"command": "clip.train"})
    assert store.read_config(tmp_path) == {"command": "clip.train"}


def measured(out):
    begin(out)
    store.Measured.create(out, "accuracy", GRID)
    return store.Measured(out, "accuracy", GRID)


def block_values(block):
    region = GRID.region(block)
    shape = (*(s.stop - s.start for s in region), 2)
    return np.random.default_rng(abs(hash(block))).random(shape).astype(np.float32)


def test_blocks_come_back_as_written(tmp_path):
    blocks = list(np.ndindex(*GRID.blocks_shape))
    assert len(blocks) > 4
    written = measured(tmp_path)
    for block in blocks[::2]:
        written.write(block, block_values(block))
    again = store.Measured(tmp_path, "accuracy", GRID)
    values, (done, damaged) = again.read(), again.done()
    assert damaged == 0
    for i, block in enumerate(blocks):
        assert done[block] == (i % 2 == 0)
        where = values[GRID.region(block)]
        assert np.isnan(where).all() if i % 2 else (where == block_values(block)).all()
    assert store.progress(tmp_path) == (len(blocks[::2]), len(blocks))
    with xr.open_zarr(tmp_path / "results.zarr", consolidated=False) as data:
        assert data.accuracy.dims == ("learner", "seed", "x", "group")
        assert list(data.learner.values) == ["a", "b"]


def test_a_block_without_an_answer_is_done_too(tmp_path):
    block = (0,) * len(GRID.blocks_shape)
    measured(tmp_path).write(block, np.full_like(block_values(block), np.nan))
    done, damaged = store.Measured(tmp_path, "accuracy", GRID).done()
    assert done[block] and done.sum() == 1 and damaged == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_chunk_is_seen_and_counts_as_missing(tmp_path, damage):
    blocks = list(np.ndindex(*GRID.blocks_shape))
    written = measured(tmp_path)
    for block in blocks:
        written.write(block, block_values(block))
    chunk = tmp_path.joinpath("results.zarr", "accuracy", "c", *map(str, (*blocks[1], 0)))
    content = chunk.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    chunk.write_bytes({"flip": flipped, "cut": content[:-3], "empty": b"", "text": b"mine"}[damage])
    done, damaged = store.Measured(tmp_path, "accuracy", GRID).done()
    assert damaged == 1
    assert not done[blocks[1]] and done.sum() == len(blocks) - 1


def test_a_chunk_without_a_checksum_would_hide_the_flip(tmp_path):
    """The twin of the test above: it is the checksum that sees a flipped bit."""
    group = zarr.open_group(tmp_path / "plain.zarr", mode="w")
    plain = group.create_array("values", shape=(4,), chunks=(4,), dtype="float32", compressors=None)
    plain[:] = np.arange(4.0)
    chunk = tmp_path / "plain.zarr" / "values" / "c" / "0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert plain[3] != 3.0


@pytest.mark.parametrize("key, value", [("data_type", "int16"), ("codecs", [{"name": "bytes"}])])
def test_chunks_that_their_metadata_do_not_describe_are_refused(tmp_path, key, value):
    written = measured(tmp_path)
    for block in np.ndindex(*GRID.blocks_shape):
        written.write(block, block_values(block))
    file = tmp_path / "results.zarr" / "accuracy" / "zarr.json"
    described = json.loads(file.read_text())
    assert described[key] != value
    file.write_text(json.dumps({**described, key: value, "fill_value": 0}))
    with pytest.raises(UsageError) as error:
        store.Measured(tmp_path, "accuracy", GRID).read()
    assert_one_line(error, str(tmp_path / "results.zarr"), "is damaged", "--overwrite")
    file.write_text(json.dumps(described))
    assert np.isfinite(store.Measured(tmp_path, "accuracy", GRID).read()).all()


def test_damaged_results_are_refused(tmp_path):
    def remove_metadata(path):
        (path / "zarr.json").unlink()

    def empty_metadata(path):
        (path / "accuracy" / "zarr.json").write_text("")

    def remove_variable(path):
        shutil.rmtree(path / "accuracy")

    def replace_by_a_file(path):
        shutil.rmtree(path)
        path.write_text("")

    def other_shape(path):
        shutil.rmtree(path)
        store.Measured.create(path.parent, "accuracy", Grid(GRID.tasks, GRID.task, {"x": [0.0]}, GRID.outcomes, 2, 0))

    for damage in (remove_metadata, empty_metadata, remove_variable, replace_by_a_file, other_shape):
        out = tmp_path / damage.__name__
        out.mkdir()
        measured(out)
        damage(out / "results.zarr")
        with pytest.raises(UsageError) as error:
            measured(out)
        assert_one_line(error, str(out / "results.zarr"), "is damaged", "--overwrite")


def test_results_are_complete_only_once_marked(tmp_path):
    measured(tmp_path)
    with pytest.raises(KeyError, match="complete"):
        store.read(tmp_path)
    store.complete(tmp_path, GRID, xr.Dataset({"prediction": (("x",), np.arange(3.0))}, attrs=ATTRS))
    with pytest.raises(KeyError, match="chunks of accuracy"):
        store.read(tmp_path)
    for block in np.ndindex(*GRID.blocks_shape):
        store.Measured(tmp_path, "accuracy", GRID).write(block, block_values(block))
    found = store.read(tmp_path)
    assert set(found) == {"accuracy", "prediction"}
    np.testing.assert_array_equal(found.prediction, np.arange(3.0))


def complete_run(out, config=CONFIG):
    begin(out, config)
    store.Measured.create(out, "accuracy", GRID)
    for block in np.ndindex(*GRID.blocks_shape):
        store.Measured(out, "accuracy", GRID).write(block, block_values(block))
    store.complete(out, GRID, xr.Dataset({"prediction": (("x",), np.arange(3.0))}, attrs=ATTRS))
    store.read(out)


@pytest.mark.parametrize("name", ["x", "learner", "group", "prediction", "accuracy"])
def test_a_missing_array_is_not_made_up(tmp_path, name):
    complete_run(tmp_path)
    shutil.rmtree(tmp_path / "results.zarr" / name)
    with pytest.raises(KeyError, match=name):
        store.read(tmp_path)


def test_results_and_chunks_of_another_run_are_not_taken(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    complete_run(mine)
    complete_run(other, {**CONFIG, "seed": 1})
    chunk = pathlib.Path("results.zarr/accuracy/c/0/0/0/0")
    kept = (mine / chunk).read_bytes()
    shutil.copy(other / chunk, mine / chunk)  # the values are the same: the digest says whose it is, not what it holds
    store.read(mine)
    (mine / chunk).write_bytes((mine / chunk.parents[2] / "1/0/0").read_bytes())  # another block's
    with pytest.raises(ValueError, match="another run's"):
        store.read(mine)
    assert store.Measured(mine, "accuracy", GRID).done()[1] == 1
    (mine / chunk).write_bytes(kept)
    digests = pathlib.Path("results.zarr/accuracy/digests/0-0-0")
    shutil.copy(other / digests, mine / digests)
    assert store.Measured(mine, "accuracy", GRID).done()[1] == 1
    shutil.rmtree(mine / "results.zarr")
    shutil.copytree(other / "results.zarr", mine / "results.zarr")
    with pytest.raises(ValueError, match="another run"):
        store.read(mine)
    with pytest.raises(UsageError, match="another run"):
        store.Measured(mine, "accuracy", GRID)


def test_finished_results_open_without_a_warning(tmp_path):
    complete_run(tmp_path)
    with xr.open_zarr(tmp_path / "results.zarr") as dataset:  # warnings are errors
        assert "accuracy" in dataset


def test_the_disk_is_asked_before_anything_is_written(tmp_path):
    huge = Grid(GRID.tasks, GRID.task, {"x": range(10**6), "y": range(10**6)}, GRID.outcomes, 1000, 0)
    with pytest.raises(UsageError) as error:
        store.check_disk(tmp_path / "new", huge)
    assert_one_line(error, "GiB free", "2000000000000000 runs")
    assert names(tmp_path) == []
    store.check_disk(tmp_path / "new", GRID)


@pytest.mark.costly
def test_a_second_run_is_refused_while_the_first_holds_the_folder(tmp_path):
    code = (
        "import pathlib, sys; from sims.engine import store\n"
        f"with store.locked(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError) as error, store.locked(tmp_path):
            pass
        assert_one_line(error, "is being written by another run", f"process {other.pid} on")
        other.kill()
    with store.locked(tmp_path):  # a killed run's lock ends with it
        descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.csv"
    store.write_csv(path, {"a": [1, 2], "b": ["x, y", "z"]})
    assert path.read_text() == 'a,b\n1,"x, y"\n2,z\n'
    before = path.read_bytes()
    with pytest.raises(ValueError, match="shorter"):
        store.write_csv(path, {"a": [1, 2], "b": [1]})
    assert path.read_bytes() == before


def test_names_keep_their_length():
    assert store.labels(["a", "longer"]).dtype == object

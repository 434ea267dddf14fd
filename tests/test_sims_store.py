"""A sweep's folder: what is refused, what survives damage, and that files are written whole or not at all."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr

from sims import store
from sims.config import Config
from sims.flags import UsageError
from sims.sweep import VARIABLES

CONFIG = Config(seeds=3).flat()


def assert_one_line(error, *mentioned):
    assert "\n" not in str(error.value)
    for words in mentioned:
        assert words in str(error.value)


def dataset():
    names = np.array(["mmcl", "info_nce"], object)
    values = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("learner", "seed"), coords={"learner": names})
    return xr.Dataset(
        {f"accuracy_{name}": values for name in ("predicted", "measured", "curve")}, attrs={"config": "{}"}
    )


def test_prepare_makes_the_folder_once(tmp_path):
    out = tmp_path / "deep" / "run"
    store.prepare(out, CONFIG)
    assert [p.name for p in out.iterdir()] == ["config.json"]
    text = (out / "config.json").read_text()
    found = json.loads(text)
    assert found["config"] == json.loads(json.dumps(CONFIG))
    assert {"python", "jax", "numpy", "git_commit"} <= set(found["provenance"])
    store.prepare(out, CONFIG)
    assert (out / "config.json").read_text() == text


def test_prepare_goes_on_where_it_was_killed(tmp_path):
    (tmp_path / ".config.json.new").write_text('{"conf')
    store.prepare(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_prepare_names_what_differs(tmp_path):
    store.prepare(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UsageError) as error:
        store.prepare(tmp_path, {**CONFIG, "seed": 1, "p_spu": (0.5,)})
    assert_one_line(error, f"--out={tmp_path} ", "differs in p_spu, seed", "nothing was changed")
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"{}", b"3", b'{"config": []}', b'{"config": null}', b"\xff\xfe", b'{"config": {"seeds"'],
)
def test_prepare_refuses_a_damaged_config(tmp_path, damage):
    (tmp_path / "config.json").write_bytes(damage)
    with pytest.raises(UsageError) as error:
        store.prepare(tmp_path, CONFIG)
    assert_one_line(error, f"--out={tmp_path} ", "config.json is damaged")
    assert (tmp_path / "config.json").read_bytes() == damage


def test_partial_results_come_back_as_saved(tmp_path):
    first = store.Partial(tmp_path, 2, 7, 2, [3, 2])
    assert np.isnan(first.values).all()
    np.testing.assert_array_equal(first.done, [[False, False, False], [False, False, True]])
    first.values[1, 3:5] = 0.25
    first.done[1, 0] = True
    first.save()
    again = store.Partial(tmp_path, 2, 7, 2, [3, 2])
    np.testing.assert_array_equal(again.values, first.values)
    np.testing.assert_array_equal(again.done, first.done)
    assert [p.name for p in tmp_path.iterdir()] == ["partial.npz"]


def test_partial_results_cut_into_other_chunks_are_not_used(tmp_path):
    first = store.Partial(tmp_path, 1, 6, 2, [3])
    first.values[:] = 0.25
    first.done[:] = True
    first.save()
    again = store.Partial(tmp_path, 1, 6, 2, [2])
    assert np.isnan(again.values).all() and not again.done.any()


def damaged_partials(folder):
    sound = store.Partial(folder, 1, 6, 2, [3])
    sound.save()
    whole = (folder / "partial.npz").read_bytes()
    np.savez(folder / "lacking.npz", values=sound.values)
    lacking = (folder / "lacking.npz").read_bytes()
    np.save(folder / "other.npy", np.array([{}], object))
    other = (folder / "other.npy").read_bytes()
    middle = len(whole) // 2
    flipped = whole[:100] + bytes([whole[100] ^ 255]) + whole[101:]
    return [b"", b"text", whole[:middle], b"PK\x03\x04 no", lacking, other, flipped]


def test_damaged_partial_results_are_refused(tmp_path):
    for content in damaged_partials(tmp_path):
        (tmp_path / "partial.npz").write_bytes(content)
        with pytest.raises(UsageError) as error:
            store.Partial(tmp_path, 1, 6, 2, [3])
        assert_one_line(error, str(tmp_path / "partial.npz"), "is damaged", "remove it")


def test_results_come_back_as_written_and_replace_the_old(tmp_path):
    assert store.read_results(tmp_path, VARIABLES) is None
    store.write_results(tmp_path, dataset() * 0)
    store.write_results(tmp_path, dataset())
    xr.testing.assert_identical(store.read_results(tmp_path, VARIABLES), dataset())
    assert [p.name for p in tmp_path.iterdir()] == ["results.zarr"]


def test_results_half_written_do_not_count(tmp_path):
    store.write_results(tmp_path, dataset())
    (tmp_path / "results.zarr").rename(tmp_path / ".results.new.zarr")
    assert store.read_results(tmp_path, VARIABLES) is None
    store.write_results(tmp_path, dataset())
    xr.testing.assert_identical(store.read_results(tmp_path, VARIABLES), dataset())


def test_damaged_results_are_refused(tmp_path):
    def remove_metadata(path):
        (path / "zarr.json").unlink()

    def empty_metadata(path):
        (path / "zarr.json").write_text("")

    def remove_variable(path):
        shutil.rmtree(path / "accuracy_measured")

    def spoil_chunks(path):
        for chunk in (path / "accuracy_measured" / "c").rglob("*"):
            if chunk.is_file():
                chunk.write_bytes(b"spoilt")

    def replace_by_a_file(path):
        shutil.rmtree(path)
        path.write_text("")

    for damage in (remove_metadata, empty_metadata, remove_variable, spoil_chunks, replace_by_a_file):
        out = tmp_path / damage.__name__
        out.mkdir()
        store.write_results(out, dataset())
        damage(out / "results.zarr")
        with pytest.raises(UsageError) as error:
            store.read_results(out, VARIABLES)
        assert_one_line(error, str(out / "results.zarr"), "is damaged", "remove it")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.csv"
    store.write_csv(path, [{"a": 1, "b": "x, y"}, {"a": 2, "b": "z"}])
    assert path.read_text() == 'a,b\n1,"x, y"\n2,z\n'
    before = path.read_bytes()
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        store.write_csv(path, [{"a": 1}, {"a": 2, "surprise": 3}])
    assert path.read_bytes() == before

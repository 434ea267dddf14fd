"""`sims.explore`: what it refuses, the file that it writes, and its port."""

import functools
import socket
import webbrowser

import numpy as np
import pytest

from sims.explore import __main__ as command
from sims.explore import export, page, server
from sims.explore.config import DIALS, Config, shown
from tests.explore import stand_in
from tests.helpers import assert_refused, contents

LARGEST = 5e6  # bytes of a file


@pytest.fixture
def run(mmcl, monkeypatch, tmp_path):
    """Arguments -> (exit code, stdout, stderr), in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(mmcl, command)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--sigma_spu=0.123", "--sigma_spu must be a value of its slider, from 0 to 2 in steps of 0.05, got 0.123."),
        ("--sigma_spu=2.5", "--sigma_spu must be a value of its slider, from 0 to 2 in steps of 0.05, got 2.5."),
        ("--sigma_spu=-1", "--sigma_spu must be >= 0, got -1."),
        ("--n=300", "--n must be a value of its slider, one of 10, 20, 50, 100, 200,"),
        ("--n=inf", "--n must be a value of its slider"),
        ("--kappa=nan", "flag --kappa=nan: needs finite numbers"),
        ("--masking=all", "--masking must be of named, mean, zero, got 'all'."),
        ("--port=65536", "--port must be <= 65535, got 65536."),
        ("--port=x", "flag --port=x: needs a whole number"),
        ("--export=none/page.html", "--export=none/page.html cannot be written: there is no folder none."),
        ("--export=.", "--export must be a file, got the folder ."),
        ("--export=mine.html", "--export=mine.html exists; give another name, or --overwrite to replace it."),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, argument, said):
    (tmp_path / "mine.html").write_text("mine")
    before = contents(tmp_path)
    assert_refused(run(argument), said)
    assert contents(tmp_path) == before


def test_a_port_that_is_taken_is_one_line(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(run("--noopen", f"--port={port}"), f"--port={port} is taken; give another, or 0 for a free one.")


def test_no_browser_is_one_line(run, monkeypatch):
    def none():
        raise webbrowser.Error

    monkeypatch.setattr(webbrowser, "get", none)
    assert_refused(run(), "there is no browser to open; give --noopen")


def test_the_server_listens_to_this_machine_alone():
    bound = server.start(Config())
    try:
        assert {s.getsockname()[0] for s in bound._http._sockets.values()} == {server.ADDRESS} == {"127.0.0.1"}
        assert server.address(bound) == f"http://localhost:{bound.port}/" and bound.port > 0
    finally:
        bound.stop()


def test_ctrl_c_ends_it_in_one_line(run, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "compile_all", interrupted)
    code, out, err = run("--noopen")
    assert (code, out) == (0, "") and err.splitlines()[1:] == ["Stopped."]


def test_overwrite_replaces_the_file(run, tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text("old")
    monkeypatch.setattr(export, "html", lambda config: f"{config.at['p_spu']}")
    assert run("--export=page.html", "--overwrite", "--p_spu=0.9")[0] == 0
    assert (tmp_path / "page.html").read_text() == "0.9"


def test_an_interrupted_file_is_not_there(run, tmp_path, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "html", interrupted)
    code, out, err = run("--export=page.html")
    assert (code, out, err) == (130, "", "error: interrupted; nothing is stored yet.\n") and contents(tmp_path) == {}


@pytest.mark.slow
def test_the_file_is_small():
    assert len(export.html(Config()).encode()) < LARGEST


def test_stored_numbers_are_rounded_to_four_digits():
    table = stand_in.tables(Config().at, "named", Config().grid)["mmcl"]
    stored = page._stored("mmcl", table, Config().grid)
    codes = stored["codes"].reshape(table.shape).astype(float)
    np.testing.assert_allclose(codes[..., :2] / 1e4, np.where(np.isnan(table), 6.5535, table)[..., :2], atol=0.5e-4)
    angle = np.where(np.isnan(table), 6.5535 - stored["turn"], table)[..., 2]
    np.testing.assert_allclose(codes[..., 2] / 1e4 - stored["turn"], angle, atol=0.5e-4)


@pytest.mark.parametrize("name", DIALS)
def test_a_slider_tells_its_values_apart(name):
    dial = DIALS[name]
    assert len({shown(value) for value in dial.values}) == len(dial.values)
    assert list(dial.values) == sorted(set(dial.values)) and {dial.start, *dial.grid} <= set(dial.values)

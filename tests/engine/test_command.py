"""The command `python -m sims.sweep_spurious` as a user types it: help, refusals, exit codes."""

import errno
import functools
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import zarr
from absl import flags

from sims import show
from sims.engine import devices, runs, store
from sims.engine.flags import Options, UsageError, WorkFailed
from sims.sweep_spurious import __main__ as sweep_spurious
from sims.sweep_spurious import experiment
from sims.sweep_spurious.config import AXES, LEARNERS, Config
from tests.helpers import ROOT, assert_refused, contents, interrupt_write, own_flags

ENGINE = {"memory_gb", "overwrite", "dry_run", "x64", "cpu_devices", "coordinator", "num_processes", "process_id"}
ALL_FLAGS = set(Config().flat()) - {"command"} | {"out"} | ENGINE


@pytest.fixture
def command(mmcl, monkeypatch):
    """(arguments) -> (exit code, stdout, stderr) of the command, in this process, where JAX runs already."""
    monkeypatch.setattr(devices, "_start_jax", lambda *_: None)
    return functools.partial(mmcl, sweep_spurious)


@pytest.fixture
def nothing_measured(monkeypatch):
    def fail(*_):
        raise AssertionError("these arguments were accepted")

    monkeypatch.setattr(runs, "_check_memory", fail)


def another_run(out):
    store.check(out, {})
    with store.locked(out):
        store.begin(out, {**Config(seeds=3).flat(), "x64": True})


def process(*args):
    command = [sys.executable, "-m", "sims.sweep_spurious", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


LIST, FINITE = "needs numbers such as 0.5,0.9", "0 or 1e-06 to 1e+06 in size"
BAD = [
    *(("--p_spu=1.2", "in [0, 1]"), ("--p_spu=0.5,1.1", "in [0, 1]"), ("--pi_core=-0.1", "in [0, 1]")),
    *(("--sigma_core=-1", ">= 0"), ("--sigma_spu=-1", ">= 0"), ("--same_class_weight=2", "in [0, 1]")),
    *((f"--{axis}={value}", FINITE) for axis in AXES for value in ("nan", "inf")),
    *((f"--{axis}=", LIST) for axis in AXES),
    *((f"--{axis}=0.5,", LIST) for axis in AXES),
    *((f"--{axis}=0.5,0.50", "increase, none twice") for axis in AXES),
    *((f"--{axis}=0.5,0.25", "increase, none twice") for axis in AXES),
    *(("--sampler=exact", "auto, statistics, latent, ambient"), ("--sampler=latent", "does not draw mmcl_gradient")),
    *(("--memory_gb=0", "> 0"), ("--memory_gb=x", "needs numbers"), ("--cpu_devices=0", ">= 1")),
    *(("--coordinator=here:1", "given together"), ("--process_id=1", "given together")),
    *(("--p_spu=0:1", "start:stop:count"), ("--p_spu=0:1:0", "from 1 to 100000")),
    *((f"--{name}=nan", FINITE) for name in ("sigma_image", "sigma_text", "mu_core", "mu_spu")),
    *((f"--{name}=nan", FINITE) for name in ("pi_spu", "temperature")),
    *(("--sigma_image=-1", ">= 0"), ("--sigma_text=-1", ">= 0"), ("--mu_core=0", "> 0"), ("--mu_spu=-1", ">= 0")),
    *(("--pi_spu=1.5", "in [0, 1]"), ("--temperature=0", "> 0"), ("--sigma_image=1e39", FINITE)),
    *((f"--{name}=2.5", "whole number") for name in ("n", "dim_image", "dim_text", "seeds", "seed", "gradient_steps")),
    *((f"--{name}=x", "whole number") for name in ("batch_size", "embed_dim")),
    *(("--n=1", ">= 2"), ("--dim_image=1", ">= 2"), ("--dim_text=1", ">= 2"), ("--gradient_steps=0", ">= 1")),
    *(("--embed_dim=0", ">= 1"), ("--embed_dim=21", "<= 20"), ("--batch_size=1", ">= 2")),
    *(("--seeds=0", ">= 1"), ("--seed=-1", ">= 0"), ("--seed=4294967296", "<= 4294967295")),
    ("--batch_size=501", "<= 500"),
    *((f"--{name}=1000000000000", "this machine has") for name in ("n", "dim_image", "dim_text", "seeds")),
    *(("--learners=svm", ", ".join(LEARNERS)), ("--learners=", ", ".join(LEARNERS))),
    ("--learners=mmcl,mmcl", "differ from each other"),
]  # fmt: skip


@pytest.mark.parametrize("argument, allowed", BAD, ids=[argument for argument, _ in BAD])
def test_a_bad_value_is_refused_in_one_line_and_nothing_is_written(
    command, nothing_measured, tmp_path, argument, allowed
):
    out = tmp_path / "out"
    flag, value = argument.split("=")
    shown = value.removeprefix("0.5,") if allowed.startswith("in [") else value
    assert_refused(command(f"--out={out}", argument), flag, shown, allowed)
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments, mentioned",
    [
        (["--sigma=1"], "'sigma'"),
        (["--p_spuu=1"], "p_spuu"),
        (["--nop_spu"], "nop_spu"),
        (["0.5"], "unexpected argument '0.5'"),
        (["--", "0.5"], "unexpected argument '0.5'"),
        (["--p_spu"], "Missing value for flag --p_spu"),
        (["--n=20", "--n=30"], "--n is given more than once"),
        (["--p_spu", "0.5", "--p_spu", "0.6"], "--p_spu is given more than once"),
        (["--x64", "--nox64"], "--x64 is given more than once"),
        (["--flagfile=/nowhere"], "/nowhere"),
    ],
)
def test_a_bad_command_is_refused_in_one_line(command, nothing_measured, tmp_path, arguments, mentioned):
    assert_refused(command(f"--out={tmp_path / 'out'}", *arguments), mentioned, "--help")
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_used_is_refused(command, nothing_measured, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    another_run(tmp_path / "other")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    before = contents(tmp_path)
    for name, reason in {
        "file": "not the folder of a run; give a new or empty folder",
        "foreign": "not the folder of a run; give a new or empty folder",
        "file/below": "Not a directory",
        "other": "holds a different run (differs in seeds)",
        "damaged": "config.json is damaged",
        "x" * 300: "File name too long",
    }.items():
        assert_refused(command(f"--out={tmp_path / name}"), f"--out={tmp_path / name} ", reason)
    assert contents(tmp_path) == before
    assert_refused(command("--out=/proc/nowhere"), "--out=/proc/nowhere ", "give a folder that can be written")


def test_no_folder_is_no_folder(command):
    assert_refused(command("--out="), "needs the name of a folder")


def test_a_home_is_a_home(command, nothing_measured, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").write_text("")
    assert_refused(command("--out=~/x"), f"--out={tmp_path / 'x'} ")


def test_a_long_value_is_shortened(command, nothing_measured, tmp_path):
    for value in ("--p_spu=0.5," + "x" * 300_000, "--n=" + "7" * 300_000, "--learners=" + "a" * 300_000):
        result = command(f"--out={tmp_path / 'out'}", value)
        assert_refused(result, value.partition("=")[0])
        assert len(result[2]) < 1100


@pytest.mark.parametrize("kind", ["a reader that has left", "a full disk"])
def test_what_goes_wrong_outside_is_one_line(command, monkeypatch, tmp_path, kind):
    raised, expected = {
        "a reader that has left": (BrokenPipeError(errno.EPIPE, "Broken pipe"), (0, "")),
        "a full disk": (OSError(errno.ENOSPC, "No space left on device", "a.png"), (1, "error: a.png: No space left")),
    }[kind]

    def fail(*_):
        raise raised

    monkeypatch.setattr(experiment, "run", fail)
    monkeypatch.setattr("sims.engine.flags._leave_stdout", lambda: None)
    code, _, err = command(f"--out={tmp_path / 'out'}")
    assert code == expected[0] and err.startswith(expected[1]) and err.count("\n") <= 1


@pytest.mark.costly
@pytest.mark.parametrize("platform", ["cuda", "nowhere"])
@pytest.mark.parametrize("module", ["sims.sweep_spurious --n=20", "sims.bench --jobs=start"])
def test_a_device_that_is_not_there_is_a_line(tmp_path, platform, module):
    command = [sys.executable, "-m", *module.split()]
    env = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(command, cwd=tmp_path, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr.startswith(f"error: JAX_PLATFORMS={platform} names no device of this machine")
        and done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize("command_of", ["clip.train", "clip.compare"])
def test_show_says_what_it_does_not_draw(tmp_path, command_of):
    with store.locked(tmp_path):
        store.begin(tmp_path, {"command": command_of})
    with pytest.raises(UsageError, match=f"is a run of sims.{command_of}: "):
        show.show(tmp_path, tmp_path)


def test_results_of_another_run_are_not_shown(tmp_path):
    with store.locked(tmp_path):
        store.begin(tmp_path, Config().flat())
    zarr.create_group(tmp_path / "results.zarr", attributes={"complete": True, "run": "another"})
    with pytest.raises(UsageError, match="of another run"):
        show.show(tmp_path, tmp_path)


def test_a_figure_that_cannot_be_written_is_a_line(tmp_path):
    figure = plt.figure()
    figure.savefig = lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(WorkFailed, match=r"a\.png cannot be written \(No space left on device\)"):
        runs.save_figure(figure, tmp_path, "a", 50)
    plt.close(figure)


@pytest.mark.costly
def test_a_notebook_s_backend_does_not_matter():
    run = "flags.run_main('', lambda: None, lambda: __import__('matplotlib.pyplot'), ['x'])"
    code = f"from sims.engine import flags; {run}"
    env = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, timeout=120)
    assert b"Error" not in done.stderr


@pytest.mark.parametrize("signal_number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_exits_with_its_code_and_one_line(command, monkeypatch, tmp_path, signal_number, code):
    monkeypatch.setattr(runs, "_check_memory", lambda *_: signal.raise_signal(signal_number))
    before = signal.getsignal(signal.SIGTERM)
    found, out, err = command(f"--out={tmp_path / 'out'}")
    signal.signal(signal.SIGTERM, before)
    assert (found, out) == (code, "")
    assert err == "error: interrupted; nothing is stored yet.\n"


@pytest.mark.costly
@pytest.mark.parametrize("done", [0, 1])
def test_an_interrupt_says_what_stays(command, monkeypatch, tmp_path, done):
    interrupt_write(monkeypatch, done + 1)
    code, _, err = command(f"--out={tmp_path / 'out'}", "--learners=mmcl", "--n=20")
    assert code == 130
    assert ("results so far are kept" if done else "nothing is stored yet") in err.splitlines()[-1]


@pytest.mark.costly
def test_a_full_disk_exits_with_1_and_one_line(command, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.Measured, "write", full)
    code, out, err = command(f"--out={tmp_path / 'out'}", "--learners=mmcl", "--n=20")
    assert (code, out) == (1, "")
    said = f"error: --out={tmp_path / 'out'}: No space left on device; "
    assert err.splitlines()[-1] == said + "results so far are kept; the same command continues."


def test_refusals_of_the_process(tmp_path):
    """What the parametrised tests see inside this process, seen from outside for one."""
    new = f"--out={tmp_path / 'new'}"
    assert_refused(process(new, "--p_spu=0.5,1.2"), "--p_spu must be in [0, 1], got 1.2")
    assert contents(tmp_path) == {}


def test_help_lists_every_flag():
    code, out, err = process("--help")
    assert (code, err) == (0, "")
    assert out.startswith(sweep_spurious.__doc__.strip())
    assert {*re.findall(r"^  --(?:\[no\])?(\w+):", out, re.MULTILINE)} == ALL_FLAGS | {"help"}


def test_help_may_lose_its_reader():
    command = f"{shlex.quote(sys.executable)} -m sims.sweep_spurious --help | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_flag_says_its_unit_and_range():
    with own_flags():
        sweep_spurious._define_flags()
        texts = {name: flags.FLAGS[name].help for name in ALL_FLAGS}
    for name in ALL_FLAGS - {"out", "learners", "sampler"} - (ENGINE - {"memory_gb", "cpu_devices"}):
        assert re.search(r"(>=|>) \d|in \[\d", texts[name]), f"--{name} has no range: {texts[name]}"
    for name in ("sigma_core", "sigma_spu", "mu_core", "mu_spu"):
        assert "in latent units" in texts[name]
    for name in ("p_spu", "pi_core", "pi_spu"):
        assert re.search("probability|chance", texts[name])
    for name in AXES:
        assert "number list" in texts[name]
    assert all(learner in texts["learners"] for learner in LEARNERS)


def test_flags_reach_the_config(command, monkeypatch, tmp_path):
    seen = []

    def record(config, out, options):
        seen.extend([config, out, options])
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", record)
    given = {
        **{"p_spu": (0.5, 0.75, 1.0), "sigma_core": (2.0,), "sigma_spu": (0.2, 0.3), "pi_core": (0.0, 1.0)},
        **{"same_class_weight": (0.25,), "n": 30, "dim_image": 9, "dim_text": 7, "sigma_image": 0.5},
        **{"sigma_text": 0.25, "mu_core": 2.0, "mu_spu": 3.0, "pi_spu": 0.5, "embed_dim": 2, "gradient_steps": 4},
        **{"batch_size": 8, "temperature": 0.5, "learners": ("info_nce", "mmcl"), "seeds": 3, "seed": 5},
        **{"sampler": "ambient"},
    }
    assert set(given) == set(Config().flat()) - {"command"}
    typed = {**given, "p_spu": "0.5:1:3"}
    texts = [f"--{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in typed.items()]
    command(f"--out={tmp_path}", *texts, "--memory_gb=0.5", "--overwrite", "--dry_run")
    assert seen[0].flat() == {"command": "sweep_spurious", **given}
    assert seen[1:] == [tmp_path, Options(memory_gb=0.5, overwrite=True, dry_run=True)]


def test_importing_experiments_defines_no_flags():
    before = set(flags.FLAGS)
    for name in ("first_experiment", "second_experiment"):
        spec = importlib.util.spec_from_file_location(name, ROOT / "sims/sweep_spurious/__main__.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert set(flags.FLAGS) == before

"""The list of commands, their names under `mmcl`, and what all of them keep to."""

import importlib.util
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import mmcl_theory
from sims import __main__ as mmcl
from sims.engine import devices, runs
from tests.helpers import ROOT, assert_refused, contents, interrupt_write, own_flags


def process(*args):
    done = subprocess.run([sys.executable, "-m", "sims", *args], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", mmcl.COMMANDS)
def test_every_command_has_a_line_in_the_list(name):
    line = re.search(rf"^{name} +(.+)$", mmcl.listing(), re.M)
    assert line and line[1].endswith(".") and line[1] == mmcl.summary(mmcl.COMMANDS[name])


def test_every_command_of_the_project_is_listed():
    """A command is a module that does something where it is the main one; these serve others."""
    parts = {"sims.bench.gpu", "sims.bench.gpu_parts", "sims.bench.devices_server", "sims.clip.records.make_maps"}
    parts |= {"proofs_checks.pages", "proofs_checks.mutants"}
    found = set()
    for package in ("sims", "proofs_checks"):
        for file in (ROOT / package).rglob("*.py"):
            if '__name__ == "__main__"' in file.read_text():
                found.add(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    assert found - parts - {"sims"} == set(mmcl.COMMANDS.values())
    assert all(importlib.util.find_spec(module) for module in mmcl.COMMANDS.values())


def test_the_project_lists_its_commands_and_refuses_another():
    assert process() == (0, mmcl.listing() + "\n", "")
    code, out, err = process("dynamic")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("error: 'dynamic' is no command; the commands are sweep-spurious")


def test_help_loads_nothing_heavy():
    """Nor does importing the packages: JAX, plotting and stores are loaded once the arguments are good."""
    code = """
import sys
from absl import flags
from sims import __main__ as mmcl
before = set(flags.FLAGS)
for name in mmcl.COMMANDS:
    sys.argv = ["mmcl", name, "--help"]
    try:
        mmcl.main()
    except SystemExit as end:
        assert end.code == 0, name
    heavy = {"jax", "flax", "scipy", "matplotlib", "xarray", "pandas", "zarr", "mmcl_theory"} & set(sys.modules)
    assert not heavy, (name, heavy)
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--largest_rate" in done.stdout


def test_a_package_that_is_not_there_is_named_with_its_extra():
    """As where the library alone is installed: its requirements are not those of the commands."""
    hide = (
        "import sys; sys.modules['absl'] = None; sys.argv = ['mmcl', 'train']; from sims.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", hide], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: train needs absl: pip install 'mmcl-theory[clip]'.\n")


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """(name, arguments) -> (exit code, stdout, stderr) of `mmcl`, in this process and in a folder of its own."""
    monkeypatch.setattr(devices, "_start_jax", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)

    def call(name, *args):
        code = 0
        with monkeypatch.context() as patch, own_flags():
            patch.setattr(sys, "argv", ["mmcl", name, *args])
            try:
                mmcl.main()
            except SystemExit as end:
                code = end.code
        return code, *capsys.readouterr()

    return call


_MODEL = f"--model={ROOT}/examples/models/label_shift.yaml --x=n=20,30"
# A bad value of a flag and what is said of it; arguments that name the folder `mine`, which is not the command's.
REFUSED = {
    "sweep-spurious": ("--p_spu=1.2", "--p_spu must be in [0, 1], got 1.2.", "--out=mine"),
    "sweep-captions": ("--pi_core=0,nan", "0 or 1e-06 to 1e+06 in size", "--out=mine"),
    "sweep-model": ("--prompts=other", "--prompts must be of core, train_mean, got 'other'.", f"{_MODEL} --out=mine"),
    "phase-diagram": ("--diagram=other", "--diagram must be of robustness,", "--out=mine"),
    "dynamics": ("--rate=nan", "flag --rate=nan: needs finite numbers", "--out=mine"),
    "explore": ("--p_spu=1.2", "--p_spu must be in [0, 1], got 1.2.", "--export=mine"),
    "captions": ("--least=0", "--least must be >= 1, got 0.", "--captions=mine/thesis.tex --labels=a --attributes=b"),
    "diagnose": ("--learners=other", "--learners must be of mmcl, whitened", "--data=mine/thesis.tex --out=out"),
    "features": ("--arms=other", "--arms must be of clip, clip_no_intra,", "--train=mine/thesis.tex --out=mine"),
    "digits": ("--preset=other", "--preset must be of ", "--preset=smoke --study=captions --out=mine"),
    "digits-readouts": ("--cpu_devices=0", "--cpu_devices must be >= 1, got 0.", "mine"),
    "make-scenes": ("--side=0", "--side must be ", "--out=mine"),
    "train": ("--log_every=0", "--log_every must be >= 1, got 0.", "--data=coco:mine --out=mine"),
    "evaluate": ("--batch_size=0", "--batch_size must be >= 1, got 0.", "--run=mine --root=mine"),
    "embed": (
        "--precision=float64",
        "--precision must be of float16, float32,",
        "--encoder=json:loads --data=csv:mine",
    ),
    "compare": ("--workers=0", "--workers must be >= 1, got 0.", "--root=mine"),
    "lines": ("--scale=other", "--scale must be of share, percent, got 'other'.", "--points=mine/thesis.tex --out=out"),
    "show": ("--out=", "needs the name of a folder", "mine"),
    "report": ("--rows=0", "--rows must be >= 1, got 0.", "mine --out=out.html"),
    "bench": ("--repeats=4", "--repeats must be ", "--json=mine/thesis.tex/table"),
    "check": ("--only=T99", "--only must be of T1, ", "--json=mine"),
}
NEEDED = {
    "lines": ["--points=paper:3a"],
    "digits-readouts": ["run"],
    "show": ["run"],
    "report": ["run"],
    "evaluate": ["--run=run"],
    "make-scenes": ["--out=out"],
}
# What measures a grid, at sizes at which nothing is slow but compilation.
GRIDS = {
    "sweep-spurious": "--learners=mmcl --n=20",
    "sweep-captions": "--model=intra_class",
    "sweep-model": f"--learners=mmcl {_MODEL}",
    "phase-diagram": "--diagram=whitening",
    "dynamics": "--seeds=30 --end=1",
    "digits": "--preset=smoke --study=captions",
}
run_as_main = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")


@run_as_main
@pytest.mark.parametrize("name", mmcl.COMMANDS)
def test_help_explains_the_command_and_its_flags(command, name):
    code, out, err = command(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(mmcl.summary(mmcl.COMMANDS[name])) and len(re.findall(r"^  --\S+: \S", out, re.M)) >= 2


@run_as_main
@pytest.mark.parametrize("name", mmcl.COMMANDS)
def test_a_refusal_is_one_line_and_leaves_no_file(command, tmp_path, name):
    value, said, arguments = REFUSED[name]
    for folder in (tmp_path / "mine", tmp_path / "mine" / "captions"):
        folder.mkdir()
        (folder / "thesis.tex").write_text("mine")
    before = contents(tmp_path)
    assert_refused(command(name, "--nonsense=1", *NEEDED.get(name, [])), "'nonsense'", "--help")
    assert_refused(command(name, value, *NEEDED.get(name, [])), said)
    assert_refused(command(name, *arguments.split()), "mine")
    assert contents(tmp_path) == before


@run_as_main
@pytest.mark.parametrize("name", GRIDS)
def test_a_dry_run_writes_nothing(command, tmp_path, monkeypatch, name):
    monkeypatch.setattr(runs, "_plan", lambda grid, *_: f"{grid.runs} runs of a task")
    code, out, err = command(name, "--dry_run", "--out=out", *GRIDS[name].split())
    assert (code, err) == (0, "") and re.match(r"[1-9]\d* runs of a task\n", out)
    assert contents(tmp_path) == {}


@run_as_main
@pytest.mark.parametrize(
    "name", [name for name in GRIDS if name != "digits"]
)  # whose own tests stop and resume it, in stages
def test_an_interrupted_command_goes_on_and_says_so(command, monkeypatch, name):
    """Every accuracy is a half, and the second block of each call is interrupted before it is stored."""

    def halves(grid, skip, *_):
        for block in map(tuple, np.argwhere(~skip)):
            yield block, np.full(grid.shape, 0.5)[grid.region(block)]

    monkeypatch.setattr(runs, "run_blocks", halves)
    monkeypatch.setattr(runs, "_check_memory", lambda *_: None)
    for done in (0, 1):
        with monkeypatch.context() as patch:
            interrupt_write(patch, 2)
            code, out, err = command(name, "--out=out", *GRIDS[name].split())
        assert (code, out) == (130, "")
        assert (f"resuming: {done} of " in err) is bool(done)
        said = "error: interrupted; results so far are kept, and the same command continues from them."
        assert err.splitlines()[-1] == said


def test_one_version():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited and cited[1] == mmcl_theory.__version__

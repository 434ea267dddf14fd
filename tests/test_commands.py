"""The list of commands, and their names under `mmcl`."""

import importlib.util
import re
import subprocess
import sys

import pytest

import mmcl_theory
from sims import __main__ as mmcl
from tests.helpers import ROOT


def mmcl_command(*args):
    return subprocess.run([sys.executable, "-m", "sims", *args], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", mmcl.COMMANDS)
def test_every_command_has_a_line_in_the_list(name):
    line = re.search(rf"^{name} +(.+)$", mmcl.listing(), re.M)
    assert line and line[1].endswith(".") and line[1] == mmcl.summary(mmcl.COMMANDS[name])


def test_every_command_of_the_project_is_listed():
    """A command is a module that does something where it is the main one; these serve others."""
    parts = {"sims.bench.gpu", "sims.bench.gpu_parts", "sims.bench.devices_server"}
    parts |= {"proofs_checks.pages", "proofs_checks.mutants"}
    found = set()
    for package in ("sims", "proofs_checks"):
        for file in (ROOT / package).rglob("*.py"):
            if '__name__ == "__main__"' in file.read_text():
                found.add(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    assert found - parts - {"sims"} == set(mmcl.COMMANDS.values())
    assert all(importlib.util.find_spec(module) for module in mmcl.COMMANDS.values())


def test_a_name_runs_the_module_and_another_is_refused():
    refused = mmcl_command("dynamics", "--rate=nan")
    assert refused.returncode == 2 and refused.stderr.startswith("error: flag --rate=nan: needs finite numbers")
    none = mmcl_command("dynamic")
    assert none.returncode == 2 and none.stderr.startswith("error: 'dynamic' is no command; they are sweep-spurious")
    assert none.stderr.count("\n") == 1 and not none.stdout
    assert mmcl_command().stdout == mmcl.listing() + "\n"
    assert "--largest_rate" in mmcl_command("dynamics", "--help").stdout


def test_a_package_that_is_not_there_is_named_with_its_extra():
    """As where the library alone is installed: its requirements are not those of the commands."""
    hide = (
        "import sys; sys.modules['absl'] = None; sys.argv = ['mmcl', 'train']; from sims.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", hide], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: train needs absl: pip install 'mmcl-theory[clip]'.\n")


def test_one_version():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited and cited[1] == mmcl_theory.__version__

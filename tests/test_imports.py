"""Imports point one way: what a room may import, and no circle of modules (docs: CONTRIBUTING.md)."""

import ast
import functools
import graphlib

import pytest

from tests.helpers import ROOT

# A room and the rooms that it may import from, beside itself. A module belongs to the longest name that begins its own.
LIBRARY = ("mmcl_theory",)
ENTRIES = ("make_scenes", "train", "evaluate", "embed", "compare")
ROOMS = {
    "mmcl_theory": (
        "mmcl_theory.data",
        "mmcl_theory.theory",
        "mmcl_theory.learners",
        "mmcl_theory.features",
    ),  # of which `__init__` gives names
    "mmcl_theory.data": ("mmcl_theory",),
    "mmcl_theory.theory": ("mmcl_theory", "mmcl_theory.data"),
    "mmcl_theory.learners": ("mmcl_theory", "mmcl_theory.data", "mmcl_theory.theory"),
    "mmcl_theory.features": ("mmcl_theory", "mmcl_theory.data", "mmcl_theory.theory", "mmcl_theory.learners"),
    "sims.engine": (),
    "sims.latent": ("sims.engine", *LIBRARY),
    "sims.sweep_spurious": ("sims.latent", "sims.engine", *LIBRARY),
    "sims.sweep_captions": ("sims.latent", "sims.engine", *LIBRARY),
    "sims.sweep_model": ("sims.latent", "sims.engine", *LIBRARY),
    "sims.phase_diagram": ("sims.latent", "sims.engine", *LIBRARY),
    "sims.dynamics": ("sims.latent", "sims.engine", *LIBRARY),
    "sims.explore": ("sims.latent", "sims.engine", *LIBRARY),
    "sims.digits": ("sims.lines", "sims.engine", *LIBRARY),
    "sims.diagnose": ("sims.features", "sims.engine", *LIBRARY),
    "sims.features": ("sims.lines", "sims.engine", *LIBRARY),
    "sims.clip.config": ("sims.engine",),
    "sims.clip.records": ("sims.clip.config", "sims.engine"),
    "sims.clip.scenes": ("sims.clip.records", "sims.engine"),
    "sims.clip.model": ("sims.clip.records", "sims.clip.config", "sims.engine", *LIBRARY),
    "sims.clip.fit": ("sims.clip.model", "sims.clip.records", "sims.clip.config", "sims.engine"),
    "sims.clip.zero_shot": ("sims.clip.fit", "sims.clip.model", "sims.clip.records", "sims.clip.config", "sims.engine"),
    "sims.clip.comparison": (
        *("sims.clip.zero_shot", "sims.clip.scenes", "sims.clip.fit", "sims.clip.model", "sims.clip.records"),
        *("sims.clip.config", "sims.lines", "sims.engine", *LIBRARY),
    ),
    "sims.clip": (  # its commands
        *("sims.clip.comparison", "sims.clip.zero_shot", "sims.clip.scenes", "sims.clip.fit", "sims.clip.model"),
        *("sims.clip.records", "sims.clip.config", "sims.engine", *LIBRARY),
    ),
    "sims.bench": (
        *("sims.sweep_spurious", "sims.latent", "sims.digits", "sims.features", "sims.clip", "sims.engine"),
        *LIBRARY,
    ),
    "sims.captions_audit": ("sims.clip.records", "sims.engine"),
    "sims.lines": ("sims.engine",),
    "sims": ("sims.engine",),
    "sims.show": (
        *("sims.sweep_spurious", "sims.sweep_captions", "sims.sweep_model", "sims.phase_diagram"),
        *("sims.dynamics", "sims.digits", "sims.features"),
        "sims.engine",
    ),
    "sims.report": ("sims.show", "sims.engine"),
    "proofs_checks": ("sims.engine.flags", "sims.engine.files", "sims.engine.tables", *LIBRARY),
}
# All modules of the rooms that hold others: a new module belongs to a room of its own, or to one of these.
HALLS = {"sims": {"sims", "sims.__main__"}, "sims.clip": {"sims.clip", *(f"sims.clip.{x}" for x in ENTRIES)}}


def names_of(package):
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in sorted((ROOT / package).rglob("*.py"))]


MODULES = {
    name.removesuffix(".__init__") for package in ("mmcl_theory", "sims", "proofs_checks") for name in names_of(package)
}


def file_of(module):
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def imported(source, late=True):
    """Names of this project's modules that the source imports; not late: at once, when it is imported itself."""
    nodes = list(ast.walk(ast.parse(source)))
    if not late:
        inside = {id(x) for node in nodes if isinstance(node, (ast.FunctionDef, ast.If)) for x in ast.walk(node)}
        nodes = [node for node in nodes if id(node) not in inside]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (below & MODULES) or {node.module}
    return found & MODULES


def room_of(module):
    return max((room for room in ROOMS if within(module, room)), key=len)


def within(module, room):
    return module == room or module.startswith(room + ".")


def forbidden(module, source):
    room = room_of(module)
    allowed = (room, *ROOMS[room])
    return sorted(x for x in imported(source) if not any(permits(name, module, x) for name in allowed))


def permits(name, importing, x):
    """Whether x is of the allowed room `name`: from outside, rooms within it count too; from inside, they do not."""
    return room_of(x) == name or (within(x, name) and not within(importing, name))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_below_it(room):
    for module in sorted(MODULES):
        if room_of(module) == room:
            assert not forbidden(module, file_of(module).read_text()), module


def test_what_points_the_other_way_is_seen():
    assert forbidden("sims.engine.grid", "from sims.latent import measure") == ["sims.latent.measure"]
    assert forbidden("sims.engine.grid", "import mmcl_theory") == ["mmcl_theory"]
    assert forbidden("sims.dynamics.experiment", "def f():\n    from sims.phase_diagram import diagrams")
    assert forbidden("mmcl_theory.theory.mmcl", "from mmcl_theory.learners import linear_optimum")
    assert forbidden("sims.clip.records.tars", "from sims.clip.zero_shot.scoring import Share")
    assert forbidden("sims.clip.train", "from sims.digits import arms")
    assert forbidden("sims.bench.jobs", "from sims import show") == ["sims.show"]
    with pytest.raises(AssertionError, match="whole path"):
        forbidden("sims.engine.grid", "from ..latent import measure")
    assert not forbidden("sims.latent.panels", "import mmcl_theory as mt\nfrom sims.engine.grid import evaluate")


@pytest.mark.parametrize("room", HALLS)
def test_a_new_module_needs_a_room(room):
    assert {module for module in MODULES if room_of(module) == room} == HALLS[room]


LATENT = ("sweep_spurious", "sweep_captions", "sweep_model", "phase_diagram", "dynamics")
EXPERIMENTS = tuple(f"sims.{name}" for name in LATENT)


@pytest.mark.parametrize("module", [f"{x}.{y}" for x in EXPERIMENTS for y in ("__main__", "config")])
def test_flags_and_configs_import_no_experiment_at_once(module):
    assert not {x for x in imported(file_of(module).read_text(), late=False) if x.endswith(("experiment", "diagrams"))}


def circle(graph):
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_no_circle_of_modules():
    graph = {module: imported(file_of(module).read_text(), late=False) - {module} for module in MODULES}
    assert circle(graph) is None
    assert circle({**graph, "sims.engine.flags": {"sims.engine.grid"}, "sims.engine.grid": {"sims.engine.flags"}})

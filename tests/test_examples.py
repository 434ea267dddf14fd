"""The examples in the library's docstrings print what they say, and every public module has one."""

import ast
import doctest
import importlib
import types

import pytest

from tests.helpers import ROOT

PACKAGES = ("mmcl_theory", "mmcl_theory.data", "mmcl_theory.features", "mmcl_theory.learners", "mmcl_theory.theory")


def public_modules():
    """Modules that define what the packages' `__init__` export, and the modules among the exports themselves."""
    names = set()
    for package in map(importlib.import_module, PACKAGES):
        for exported in (getattr(package, name) for name in package.__all__):
            if not isinstance(exported, types.ModuleType):
                names.add(getattr(exported, "__module__", ""))  # "" of a constant
            elif exported.__name__ not in PACKAGES:
                names.add(exported.__name__)
    return sorted(name for name in names if name.startswith("mmcl_theory."))


def file_of(module):
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def examples(code, name):
    """The doctests of a module's source. `DocTestFinder` misses functions that the shape checks of the tests wrap."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    parser = doctest.DocTestParser()
    tests = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, kinds) and (doc := ast.get_docstring(node)):
            first = node.body[0].lineno - 1
            tests.append(parser.get_doctest(doc, {}, f"{name}.{getattr(node, 'name', '')}", name, first))
    return [test for test in tests if test.examples]


def failures(tests):
    """Reports of the examples that print something else than they say."""
    runner, reports = doctest.DocTestRunner(verbose=False), []
    for test in tests:
        runner.run(test, out=reports.append)
    return reports


MODULES = public_modules()
SLOW = ("mmcl_theory.theory.info_nce", "mmcl_theory.theory.supervised")  # seconds of compilation each


def test_public_modules_are_found():
    assert {"mmcl_theory.losses", "mmcl_theory.zero_shot", "mmcl_theory.data.captions"} <= set(MODULES)
    assert "mmcl_theory.theory.mmcl" in MODULES and "mmcl_theory.learners.ridge" in MODULES
    assert not [name for name in MODULES if "._" in name]


@pytest.mark.parametrize("name", MODULES)
def test_a_public_module_has_an_example(name):
    assert examples(file_of(name).read_text(), name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in (*PACKAGES, *MODULES)]
)
def test_examples(name):
    assert not failures(examples(file_of(name).read_text(), name))


DOC = 'def f(x):\n    """Twice x.\n\n    Example:\n        >>> 2 * 1.5\n        {}\n    """\n'


@pytest.mark.parametrize("text", ["3.1", "", "3.0\n        >>> 1 / 0\n        0"])
def test_wrong_examples_are_noticed(text):
    assert failures(examples(DOC.format(text), "wrong"))


def test_right_examples_pass():
    tests = examples(DOC.format("3.0"), "right")
    assert len(tests) == 1 and not failures(tests)
    assert examples(DOC.replace(">>>", "").format("3.0"), "none") == []

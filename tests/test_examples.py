"""The examples in the library's docstrings print what they say, and every public function and class has one."""

import ast
import doctest
import importlib
import inspect
import re
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


API = sorted(set(re.findall(r"automodule:: (\S+)", "".join(page.read_text() for page in ROOT.glob("docs/api/*.md")))))
MODULES = sorted({*public_modules(), *API} - {*PACKAGES})
SLOW = (  # seconds of compilation each
    "mmcl_theory.learners.samplers.sample_gram",
    "mmcl_theory.learners.samplers.sample_rule_latent",
    "mmcl_theory.learners.samplers.sample_rule_statistics",
    "mmcl_theory.theory.design.WeightOptimum",
    "mmcl_theory.theory.design.optimal_same_class_weight",
    "mmcl_theory.theory.finite_sample.mmcl_accuracy_cumulants",
    "mmcl_theory.theory.info_nce.BalancedCaptions",
    "mmcl_theory.theory.info_nce.InfoNceOptimum",
    "mmcl_theory.theory.info_nce.info_nce_balanced_captions",
    "mmcl_theory.theory.info_nce.info_nce_batch_optimum",
    "mmcl_theory.theory.info_nce.info_nce_optimum",
    "mmcl_theory.theory.ridge.RidgeOptimum",
    "mmcl_theory.theory.ridge.optimal_ridge",
    "mmcl_theory.theory.supervised.max_margin_rule",
    "mmcl_theory.theory.supervised.supervised_accuracy",
)


def test_public_modules_are_found():
    assert {"mmcl_theory.losses", "mmcl_theory.zero_shot", "mmcl_theory.features.estimator"} <= set(MODULES)
    assert "mmcl_theory.theory.mmcl" in MODULES and "mmcl_theory.learners.ridge" in MODULES
    assert not [name for name in MODULES if "._" in name]


def without_example(module):
    """Names of a module's public functions and classes whose docstring has no `Example:` with a prompt.

    They are those that `__all__` names or, without it, those that the module defines.
    """
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    parts = {name: getattr(module, name) for name in names}
    docs = {name: x.__doc__ or "" for name, x in parts.items() if inspect.isfunction(x) or inspect.isclass(x)}
    return sorted(name for name, doc in docs.items() if ">>> " not in doc.partition("Example:")[2])


@pytest.mark.parametrize("name", ["mmcl_theory", *API])
def test_public_functions_and_classes_have_an_example(name):
    assert without_example(importlib.import_module(name)) == []


def test_the_api_has_all_packages():
    assert {*PACKAGES[1:], "mmcl_theory.losses", "mmcl_theory.zero_shot"} <= set(API)


@pytest.mark.parametrize("listed, missing", [(None, ["Bare", "bare", "later"]), (["bare", "shown"], ["bare"])])
def test_functions_and_classes_without_an_example_are_noticed(listed, missing):
    module = types.ModuleType("toy")
    code = """
import math
from pathlib import PurePath

CONSTANT = 1.0

def shown():
    "Example:\\n    >>> 1 + 1\\n    2"

def bare(): ...

def later():
    "Prints, before the example >>> 1. Example:\\n    to be written"

class Bare:
    def method(self):
        "Example:\\n    >>> 1 + 1\\n    2"

def _private(): ...
"""
    exec(code, vars(module))
    if listed is not None:
        module.__all__ = listed
    assert without_example(module) == missing


@pytest.mark.costly
@pytest.mark.parametrize("name", (*PACKAGES, *MODULES))
def test_examples(name):
    tests = examples(file_of(name).read_text(), name)
    assert tests or name in PACKAGES
    assert not failures([test for test in tests if test.name not in SLOW])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_slow_examples(name):
    module = name.rpartition(".")[0]
    (test,) = (test for test in examples(file_of(module).read_text(), module) if test.name == name)
    assert not failures([test])


DOC = 'def f(x):\n    """Twice x.\n\n    Example:\n        >>> 2 * 1.5\n        {}\n    """\n'


@pytest.mark.parametrize("text", ["3.1", "", "3.0\n        >>> 1 / 0\n        0"])
def test_wrong_examples_are_noticed(text):
    assert failures(examples(DOC.format(text), "wrong"))


def test_right_examples_pass():
    tests = examples(DOC.format("3.0"), "right")
    assert len(tests) == 1 and not failures(tests)
    assert examples(DOC.replace(">>>", "").format("3.0"), "none") == []

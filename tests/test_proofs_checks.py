"""The ledger: comparisons accept what is true and reject what is not, rows are good only so, the command's exits."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import mpmath
import numpy as np
import pytest
import scipy.stats
import sympy

import mmcl_theory as mt
from proofs_checks import __main__ as command
from proofs_checks import ambient, ledger, mutants, pages, paper, run, store, symbolic, t2, t5
from tests.helpers import exit_code

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_draws(monkeypatch):
    """A test's draws do not depend on which ran before it on this worker."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


def test_mean_judges_by_standard_errors():
    samples = RNG.normal([0.3, -1.0], [0.1, 2.0], (4000, 2))
    compare = ledger.mean(samples)
    assert compare([0.3, -1.0]).holds
    assert not compare([0.31, -1.0]).holds and not compare([0.3, -0.7]).holds
    gap = compare([0.31, -1.0])
    assert gap.predicted == 0.31 and abs(gap.measured - 0.3) < 0.01 and abs(gap.se - 0.1 / 4000**0.5) < 1e-4
    assert ledger.mean(samples, bias=0.02)([0.31, -1.0]).holds


def test_mean_counts_its_entries_and_refuses_nan():
    one, many = (ledger.mean(RNG.normal(size=(50, k)))(np.zeros(k)).limit for k in (1, 1000))
    assert abs(one - scipy.stats.t.isf(5e-7, 49)) < 1e-9 and many > one + 1
    assert not ledger.mean(RNG.normal(size=(50, 2)))([0.0, np.nan]).holds
    with pytest.raises(ValueError, match="finite"):
        ledger.mean([[0.0], [np.nan]])


def test_mean_has_the_stated_false_alarm_rate(monkeypatch):
    """At z > 3, of 10,000 true claims: the share that Student's t with 199 degrees of freedom gives, within 5 se."""
    monkeypatch.setattr(scipy.stats.t, "isf", functools.cache(scipy.stats.t.isf))  # one limit, asked for 10,000 times
    z = np.array([ledger.mean(x[:, None])(0.0).z for x in RNG.normal(size=(10_000, 200))])
    assert abs((z > 3).mean() - 0.00304) < 5 * (0.003 / 10_000) ** 0.5


def test_close_is_relative_to_what_was_measured():
    assert ledger.close([1.0, 2.0], 1e-6)([1.0 + 1e-7, 2.0]).holds
    assert not ledger.close([1.0, 2.0], 1e-6)([1.0, 2.00001]).holds
    assert not ledger.close([1.0, np.nan], 1e-6)([1.0, 1.0]).holds


def test_compiler_options_are_passed_where_the_compiler_knows_them():
    known = {"xla_backend_optimization_level": 0}
    assert ambient.known_options(**known, xla_option_of_another_release=True) == known
    with pytest.raises(jax.errors.JaxRuntimeError, match="not a valid int32"):
        ambient.known_options(xla_backend_optimization_level="low")


def test_an_effect_that_is_off_by_8_percent():
    np.testing.assert_allclose(ledger.off([1.0, 0.5], 0.5), [1.04, 0.5])


def test_estimates_are_judged_by_their_errors():
    compare = ledger.estimate([1.0, 2.0], [0.01, 0.1], bias=0.02)
    assert compare([1.0, 2.3]).holds and compare([1.05, 2.0]).holds and compare([1.0, 2.0]).allowed == 0.02
    assert not compare([1.1, 2.0]).holds and not compare([1.0, 2.7]).holds and not compare([1.0, np.nan]).holds


def test_below_is_one_sided():
    compare = ledger.below(RNG.normal(0.3, 0.1, 1000))
    assert compare(1 / 3).holds and compare(0.3).holds and not compare(0.2).holds


def test_algebra_counts_entries_that_differ():
    x, y = sympy.symbols("x y")
    compare = ledger.algebra(sympy.Matrix([(x + y) ** 2, sympy.sin(x) ** 2 + sympy.cos(x) ** 2]))
    assert compare(sympy.Matrix([x**2 + 2 * x * y + y**2, 1])).holds
    assert compare(sympy.Matrix([x**2 + x * y + y**2, 2])).z == 2


def test_contained_rounds_to_the_digits_stated():
    interval = mpmath.iv.mpf(["0.81232763", "0.812327631"])
    compare = ledger.contained(interval)
    assert compare("0.8123276").holds and compare("0.8123").holds
    assert not compare("0.8123277").holds and not compare("0.81235").holds


def test_interval_of_the_normal_cdf_contains_it():
    for x in ("0.1", "0.5", "1.5", "2"):
        interval = t2.cdf_interval(x)
        with mpmath.workdps(40):
            assert mpmath.mpf(interval.a) <= mpmath.ncdf(mpmath.mpf(x)) <= mpmath.mpf(interval.b)
        assert interval.delta < 1e-25


def test_rate_is_the_exponent_of_a_power():
    n = np.array([50, 100, 200, 400])
    gaps = 3 / n * (1 + RNG.normal(0, 0.02, 4))
    compare = ledger.rate(n, gaps, 0.02 * gaps)
    assert compare(-1.0).holds and not compare(-0.5).holds and not compare(-2.0).holds


def test_approach_needs_the_exponent_and_the_limit():
    sizes = (50, 100, 200, 400)
    compare = ledger.approach(sizes, [0.7 + 3 / n + RNG.normal(0, 0.01, 2000) for n in sizes])
    assert compare((-1.0, 0.7)).holds
    assert not compare((-0.5, 0.7)).holds and not compare((-2.0, 0.7)).holds and not compare((-1.0, 0.8)).holds


def test_a_row_is_good_only_if_every_wrong_theory_is_rejected():
    compare = ledger.close(1.0, 0.01)
    assert ledger.judge("", compare, 1.0, {"2": 2.0}).good
    missed = ledger.judge("", compare, 1.0, {"2": 2.0, "1": 1.0})
    assert missed.verdict == ledger.HOLDS and missed.missed == ["1"] and not missed.good
    assert not ledger.judge("", compare, 1.0, {}).good
    assert not ledger.judge("", compare, 2.0, {"3": 3.0}).good


def test_refuted_needs_the_statement_to_fail_and_the_right_one_to_hold():
    compare = ledger.close(1.0, 0.01)
    assert ledger.refute("", compare, 2.0, 1.0).verdict == ledger.REFUTED
    for stated, right in ((1.0, 1.0), (2.0, 3.0)):
        assert not ledger.refute("", compare, stated, right).good


def test_symbolic_moments_are_those_of_drawn_latents():
    """The sums over draws against SymPy-free enumeration at one point: two pairs, masking "named"."""
    symbols = symbolic.p, symbolic.pi, symbolic.pi_s, symbolic.al, symbolic.be, symbolic.bs
    point = dict(zip(symbols, (0.8, 0.6, 0.3, 1.2, 0.5, 0.3), strict=True))
    found = np.array(symbolic.inter_class(2)["zu"].subs(point), float)
    want = mt.data.all_pairs(mt.moments(mt.inter_class(2, 0.8, 1.2, 0.5, 0.3), mt.captions(0.6, 0.3)).zu, 2)
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_every_statement_has_a_module_and_a_line():
    for label in command.LABELS:
        module = run.module(label)
        assert module.CHECKS and 10 < len(module.STATEMENT) <= 115


def test_a_check_that_raises_is_a_row_that_fails(monkeypatch):
    def broken(effort):
        raise RuntimeError("no luck")

    monkeypatch.setattr(t2, "CHECKS", (broken,))
    (row,) = run.judged(["T2"], 1)
    assert not row.good and row.label == "T2" and "broken: RuntimeError: no luck" in row.claim
    assert "BAD" in run.summary([row])


def test_quick_rows_hold_and_are_written(target, monkeypatch, capsys):
    monkeypatch.setattr(t2, "CHECKS", (t2.number_in_digits, t2.moments_from_the_definition))
    rows = run.ledger(["T2"], 1, workers=1)
    assert [row.verdict for row in rows] == ["holds", "holds"] and all(row.good for row in rows)
    assert capsys.readouterr().out.count("holds, ") == 2
    store.write(target, {"T2": t2.STATEMENT}, rows, "quick", store.version())
    content = json.loads(target.read_text())
    assert content["rows"][0]["gap"]["predicted"] == 0.81232763 and content["rows"][0]["good"]
    assert list(content["statements"]) == ["T2"] and jax.config.jax_enable_x64


def test_nan_neither_holds_nor_rejects():
    compare = ledger.close(1.0, 0.01)
    assert not ledger.judge("", compare, 1.0, {"nan": np.nan}).good
    assert not ledger.judge("", compare, np.nan, {"2": 2.0}).good
    assert not ledger.refute("", compare, np.nan, 1.0).good


def test_same_law_sees_a_spread_and_a_shift():
    x = RNG.normal(size=(8000, 2))  # of a shift by .2, D = .08: 5.0 where 2.8 rejects
    compare = ledger.same_law(x)
    assert compare(RNG.normal(size=(8000, 2))).holds
    assert not compare(1.6 * RNG.normal(size=(8000, 2))).holds
    assert not compare(RNG.normal([0, 0.2], 1, (8000, 2))).holds


# A run that is stopped


def called(*arguments):
    """Exit code of the command in this process, one worker."""
    return exit_code(command, "--workers=1", *arguments)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "l.json"


def rows_in(target):
    return json.loads(target.read_text())["rows"]


def change_row(target, number, change):
    """Apply the change to a row in the file."""
    content = json.loads(target.read_text())
    change(content["rows"][number])
    target.write_text(json.dumps(content))


@pytest.fixture
def three(monkeypatch):
    """T2 and T5 with three quick checks; the list of those that were judged, and the one at which the run stops."""
    judged, stop = [], []

    def check(name):
        def one(effort):
            if name in stop:
                raise KeyboardInterrupt
            judged.append(name)
            return ledger.judge(name, ledger.close(1.0, 0.1), 1.0, {"infinite": np.inf})

        one.__name__ = name
        return one

    monkeypatch.setattr(t2, "CHECKS", (check("first"), check("second")))
    monkeypatch.setattr(t5, "CHECKS", (check("third"),))
    return judged, stop


def test_a_stopped_run_keeps_its_rows_and_goes_on(three, target, capsys):
    judged, stop = three
    stop.append("second")
    assert called("--only=T2,T5", f"--json={target}") == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: interrupted;")
    assert [row["check"] for row in rows_in(target)] == ["first"]
    stop.clear()
    assert called("--only=T2,T5", f"--json={target}") == 0
    assert judged == ["first", "second", "third"] and "3 of 3 rows are good" in capsys.readouterr().out
    rows = rows_in(target)
    assert [row["check"] for row in rows] == judged and rows[0]["wrong"] == [["infinite", "inf"]]
    assert called("--only=T2,T5", f"--json={target}") == 0 and len(judged) == 3
    assert called("--only=T2,T5", f"--json={target}", "--overwrite") == 0 and len(judged) == 6


def test_rows_of_other_statements_stay(three, target):
    for label in ("T5", "T2"):
        assert called(f"--only={label}", f"--json={target}") == 0
    assert list(json.loads(target.read_text())["statements"]) == ["T2", "T5"]
    assert [row["label"] for row in rows_in(target)] == ["T2", "T2", "T5"]


@pytest.mark.parametrize("change", ["--overwrite", "--profile=full", "sources"])
def test_rows_of_other_statements_stay_whatever_judged_them(change, three, target, monkeypatch):
    """T2's own rows are judged again and replaced."""
    judged, _ = three
    assert called("--only=T2,T5", f"--json={target}") == 0
    before = rows_in(target)
    if change == "sources":
        monkeypatch.setattr(store, "version", lambda: "changed")
    assert called("--only=T2", f"--json={target}", *[change] * (change != "sources")) == 0
    rows = rows_in(target)
    assert judged == ["first", "second", "third", "first", "second"]
    assert [row["check"] for row in rows] == judged[:3] and rows[2] == before[2] and rows[:2] != before[:2]
    origins = [(row["profile"], row["version"]) for row in rows]
    assert origins[0] == origins[1] and (origins[1] == origins[2]) == (change == "--overwrite")


def test_rows_of_other_code_or_another_profile_are_judged_again(three, target, monkeypatch):
    judged, _ = three
    for options in ([], ["--profile=full"]):
        assert called("--only=T5", f"--json={target}", *options) == 0
    monkeypatch.setattr(store, "version", lambda: "changed")
    assert called("--only=T5", f"--json={target}", "--profile=full") == 0
    rows = rows_in(target)
    assert judged == ["third"] * 3 and [(row["profile"], row["version"]) for row in rows] == [("full", "changed")]


def test_numbers_come_back_as_written(target):
    """Minus infinity is not infinity; what has no standard error has none."""
    gap = ledger.Gap(predicted=-np.inf, measured=0.5, se=None, z=np.inf, limit=1.0)
    row = ledger.Row("", gap, ledger.REFUTED, (("as stated", np.inf),), "T2", "first", 0.1)
    store.write(target, {"T2": ""}, [row], "quick", store.version())
    (found,) = store.read(target, "quick", ["T2"])[0].values()
    assert found == row and found != dataclasses.replace(row, gap=dataclasses.replace(gap, predicted=np.inf))


def test_a_row_that_is_not_good_is_judged_again(target, three):
    judged, _ = three
    assert called("--only=T2", f"--json={target}") == 0
    change_row(target, 1, lambda row: row.update(good=False))
    assert called("--only=T2", f"--json={target}") == 0 and judged == ["first", "second", "second"]


def test_the_version_is_of_the_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    found = [store.version()]
    for package, text in (("mmcl_theory/deep", "x = 1"), ("mmcl_theory/deep", "x = 2"), ("proofs_checks", "x = 2")):
        (tmp_path / package).mkdir(parents=True, exist_ok=True)
        (tmp_path / package / "a.py").write_text(text)
        found.append(store.version())
    assert len(set(found)) == 4 and found[-1] == store.version()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"profile": "quick", "rows', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_one_line_and_stays(content, target, capsys, three):
    target.write_bytes(content)
    assert "cannot be read as a ledger" in refused(command, capsys, "--only=T2", f"--json={target}")
    assert target.read_bytes() == content
    assert called("--only=T2", f"--json={target}", "--overwrite") == 0


def test_a_damaged_row_is_one_line(target, capsys, three):
    assert called("--only=T2", f"--json={target}") == 0
    capsys.readouterr()
    change_row(target, 0, lambda row: row["gap"].pop("z"))
    assert "cannot be read as a ledger" in refused(command, capsys, "--only=T2", f"--json={target}")


def workers_of(group):
    """Command lines of the processes of a group that run its work: not the one that tracks multiprocessing's names."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_text().replace("\0", " ")
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[2]) == group and "spawn_main" in words:
                found.append(words)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_processes_end_with_a_stopped_run(sent, code, target):
    """A signal to all processes of the run, as Ctrl-C sends it, once a row is stored."""
    command = [sys.executable, "-m", "proofs_checks", "--only=T1,T2,T3", f"--json={target}"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not target.exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    lines = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == code
    assert [line for line in lines if line.startswith("error: interrupted;")] == [lines[-1]]
    assert not any("Traceback" in line for line in lines) and rows_in(target)
    assert not workers_of(process.pid)


# The paper's table


def test_every_line_of_the_paper_s_table_has_its_check():
    for label, name in paper.keys():
        assert name in [check.__name__ for check in run.module(label).CHECKS], (label, name)


def a_record(line, **changes):
    gap = {"predicted": 0.5, "measured": 0.25, "se": 0.125, "z": 1.0, "limit": 5.0, "allowed": 0.0}
    label, check = line.check
    return {"label": label, "check": check, "verdict": ledger.HOLDS, "good": True, "gap": gap} | changes


def test_the_paper_s_table_says_what_the_ledger_found():
    records = {line.check: a_record(line) for line in paper.LINES}
    assert all("FAILS" not in verdict for *_, verdict in paper.cells(list(records.values())))
    rate = paper.LINES[1]
    assert paper.cells(list(records.values()))[1][2:] == ("-.25", "0.5", "0.25 +- 0.1", f"{rate.verdict} (T1)")
    refuted = records | {rate.check: a_record(rate, verdict=ledger.REFUTED)}
    assert paper.cells(list(refuted.values()))[1][-1] == "refuted as stated (T1)"
    bad = records | {rate.check: a_record(rate, good=False)}
    assert paper.cells(list(bad.values()))[1][-1] == "FAILS (T1)"
    assert "FAILS ([T1](statements/T1.md)) |" in paper.markdown(list(bad.values()))
    del records[rate.check]
    assert paper.cells(list(records.values()))[1][-1] == "not judged (T1)"


@pytest.mark.parametrize("other", ["--only=T2", "--json=l.json", "--mutants=1"])
def test_the_paper_s_table_is_for_itself(capsys, other):
    assert "--paper must be given without" in refused(command, capsys, "--paper", other)


# Mutants


def test_mutants_differ_from_their_source_and_compile():
    found = mutants.mutants("theory.dynamics")
    source = mutants.path_of("theory.dynamics").read_text()
    assert len(found) > 20 and len({m.source for m in found}) == len(found)
    for mutant in found:
        assert mutant.source != source
        compile(mutant.source, "mutant", "exec")
    assert any(m.before == "rho_array * start * 2 * t * ratio" for m in found)
    assert not any("finfo" in m.before or "_checks" in m.before for m in found)


def test_every_theory_module_is_mutated_and_watched():
    files = {f"theory.{p.stem}" for p in (mutants.ROOT / "mmcl_theory/theory").glob("*.py")} - {"theory.__init__"}
    assert files == {module for module in mutants.WATCHERS if module.startswith("theory.")}
    for tests, labels in mutants.WATCHERS.values():
        assert (mutants.ROOT / f"tests/{tests}.py").exists() and set(labels) <= set(command.LABELS)
    few = mutants.sample(2)
    assert few == mutants.sample(2) and {m.module for m in few} == set(mutants.WATCHERS)


def test_every_explanation_is_of_a_mutant():
    known = {(m.function, m.change) for module in mutants.WATCHERS for m in mutants.mutants(module)}
    assert set(mutants.EXPLAINED) <= known
    assert not {("_direction", "sizes[chosen] * move -> move")} <= known  # of a solver that is no more


@pytest.mark.slow
def test_an_unchanged_module_is_not_noticed_and_a_mutant_is(tmp_path):
    unchanged = mutants.Mutant("theory.recovery", "", 0, "", "", mutants.path_of("theory.recovery").read_text())
    assert mutants._watched(unchanged, str(tmp_path)) is None
    mutant = next(m for m in mutants.mutants("theory.recovery") if m.after == "k")
    assert "recovery" in mutants._watched(mutant, str(tmp_path))


def refused(module, capsys, *arguments):
    """The one line that a command says to arguments it refuses, in this process."""
    code = exit_code(module, *arguments)
    out, error = capsys.readouterr()
    assert code == 2 and not out and error.count("\n") == 1
    return error


# A statement of one's own

OWN = """'''X99: one.

Fails where: it is not.
'''
from proofs_checks import ledger
STATEMENT = "One is one"
def one(effort):
    return ledger.judge("one", ledger.close(1.0, 0.1), 1.0, {"two": 2.0})
def unjudged(effort):
    pass
CHECKS = (one,)
"""


@pytest.fixture
def own_file(tmp_path):
    """Writes a file with some text in place of another; what was imported from it is forgotten."""

    def write(old="", new=""):
        assert old in OWN
        (tmp_path / "mine.py").write_text(OWN.replace(old, new) if old else OWN)
        return f"--module={tmp_path / 'mine.py'}"

    yield write
    for name in ("proofs_checks.x99", "statement_mine"):
        sys.modules.pop(name, None)


def test_a_statement_of_one_s_own_is_judged_alone_or_beside_others(own_file, three, capsys):
    assert called(own_file()) == 0 and three[0] == []
    assert re.search(r"^X99 +one .* holds, 1/1", capsys.readouterr().out, re.M)
    assert called(own_file(), "--only=T5") == 0 and three[0] == ["third"]
    assert re.search(r"^T5 .*\nX99 +one ", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ('"two": 2.0', "", "holds, 0/0"),
        ("1.0, {", "1.5, {", "fails, 1/1"),
        ('"two": 2.0', '"near": 1.05', "MISSED near"),
        ("(one,)", "(unjudged,)", "unjudged: TypeError: a check must return what ledger.judge"),
    ],
)
def test_a_statement_of_one_s_own_is_bad_as_any_is(old, new, shown, own_file, capsys):
    assert called(own_file(old, new)) == 1
    out = capsys.readouterr().out
    assert shown in out and "BAD X99" in out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("X99", "X12", "needs a label of its own: the ledger has X12"),
        ("X99: one", "one", "a docstring that starts with a label and a title"),
        ("Fails where", "Fails", "needs 'Fails where: ...'"),
        ("STATEMENT", "TEXT", "needs STATEMENT, a line of at most 115"),
        ("One is one", 200 * "1", "needs STATEMENT, a line of at most 115"),
        ("(one,)", "()", "needs CHECKS, a tuple of functions"),
        ("(one,)", "(one, 1)", "needs CHECKS, a tuple of functions"),
        ("(one,)", "(one, one)", "two CHECKS of one name"),
        ("import ledger", "import leger", "cannot be imported, line 5: ImportError: "),
        ("def one(", "def one", "cannot be imported, line 7: SyntaxError: "),
        ("CHECKS", "raise SystemExit(0)", "line 11: "),
    ],
)
def test_what_is_no_statement_is_refused(old, new, message, own_file, capsys):
    module = own_file(old, new)
    error = refused(command, capsys, module)
    assert message in error and module in error and "proofs_checks.x99" not in sys.modules


def test_the_line_of_an_error_is_found_by_a_relative_path_too(own_file, capsys, monkeypatch):
    file = pathlib.Path(own_file("import ledger", "import leger").removeprefix("--module="))
    monkeypatch.chdir(file.parent)
    assert "cannot be imported, line 5: ImportError: " in refused(command, capsys, f"--module={file.name}")


@pytest.mark.parametrize("other", ["--paper", "--json=l.json", "--mutants=1"])
def test_a_statement_of_one_s_own_is_printed_only(other, own_file, capsys):
    assert "--module must be given without" in refused(command, capsys, own_file(), other)


@pytest.mark.parametrize("name", ["none.py", ".", "README.md"])
def test_a_module_must_be_a_python_file(name, capsys):
    assert f"--module={name} must be a file whose name ends in .py" in refused(command, capsys, f"--module={name}")


@pytest.mark.slow
def test_the_skeleton_of_a_statement_holds(capsys):
    try:
        assert called("--module=examples/statement/own.py") == 0
    finally:
        sys.modules.pop("proofs_checks.x99", None)
    assert "2 of 2 rows are good (0 refuted as stated); 5 wrong theories rejected" in capsys.readouterr().out


# Pages


def of_every_statement(row):
    """Texts of all statements, and the row as a row of each."""
    statements = {label: run.module(label).STATEMENT for label in command.LABELS}
    return statements, [dataclasses.replace(row, label=label) for label in command.LABELS]


def test_pages_hold_mathematics_functions_and_rows(tmp_path, target):
    row = ledger.judge("a | claim", ledger.mean(RNG.normal(size=(50, 1)), bias=0.1), 0.0, {"ten": 10.0})
    store.write(target, *of_every_statement(row), "quick", store.version())
    pages.write(json.loads(target.read_text()), tmp_path / "out")
    text = (tmp_path / "out" / "X6.md").read_text()
    assert "strong modes first" in text and "| 0.1 |" in text
    assert "* [`mmcl_theory.theory.mode_strength`](../../mmcl_theory/theory/dynamics.py): " in text
    assert r"\frac{s / \rho}" in text and "## Where it fails\n\nWhere " in text and "X7" not in text.split("\n## ")[1]
    assert "a \\| claim [ten]" in text and "../../proofs_checks/x6.py" in text
    assert (tmp_path / "out" / "README.md").read_text().count("](X") == 14
    assert (tmp_path / "out" / "ledger.png").stat().st_size > 5000


def test_pictures_of_pages_have_a_title_a_caption_and_their_command():
    pictures = {label: getattr(run.module(label), "PICTURE", None) for label in command.LABELS}
    assert {"X11", "X13", "X14"} <= {label for label, picture in pictures.items() if picture}
    for label, picture in pictures.items():
        text = pages.page(label, [], "quick").split("\n## ")[0]
        assert ("![" in text) == (picture is not None)
        if picture:
            title, anchor = pages.gallery_entry(picture)
            assert (store.ROOT / "docs" / picture).is_file() and f"![{title}](../{picture})\n\n" in text
            caption = getattr(run.module(label), "CAPTION", "").lstrip()
            assert f"\n{caption}[The command that makes this figure](../gallery.md#{anchor})." in text
    assert pages.gallery_entry("heads.png")[1] == "heads-on-frozen-features-at-matched-id-accuracy"
    with pytest.raises(LookupError, match=r"no section with the figure head\.png"):
        pages.gallery_entry("head.png")


def test_pages_are_of_one_profile_and_version(tmp_path, target, capsys):
    row = ledger.judge("", ledger.close(1.0, 0.1), 1.0, {"two": 2.0})
    statements, (first, *rows) = of_every_statement(row)
    other = store._record(first) | {"profile": "quick", "version": "a"}
    for profile in ("quick", "full"):
        store.write(target, statements, rows, profile, "a", [other])
        if profile == "quick":
            pages.write(json.loads(target.read_text()), tmp_path / "one")
    error = refused(pages, capsys, f"--json={target}", f"--out={tmp_path / 'two'}")
    assert f"different profiles or versions of the code (T1, {command.LABELS[-1]})" in error
    assert not (tmp_path / "two").exists()
    store.write(target, statements, [], "quick", "a")
    assert "no rows; judge all again" in refused(pages, capsys, f"--json={target}", f"--out={tmp_path / 'two'}")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"profile": 1}', '{"profile": "quick", "statements": {"T2": ""}, "rows": []}']
)
def test_pages_refuse_what_is_no_ledger(content, tmp_path, target, capsys):
    target.write_text(content)
    error = refused(pages, capsys, f"--json={target}", f"--out={tmp_path / 'out'}")
    assert "l.json" in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--only=T9", "--only must be of T1"),
        ("--profile=slow", "--profile must be quick or full"),
        ("--json=/no/such/place/x.json", "there is no folder"),
        ("--json=/", "cannot be written"),
        ("--mutants=-1", "--mutants must be >= 0"),
        ("--nonsense", "Unknown command line flag"),
    ],
)
def test_bad_arguments_end_in_one_line_and_exit_2(flag, message, capsys):
    assert message in refused(command, capsys, flag)


def test_a_refusal_of_the_process():
    done = subprocess.run([sys.executable, "-m", "proofs_checks", "--only=T9"], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert "--only must be of T1" in done.stderr and done.stderr.count("\n") == 1

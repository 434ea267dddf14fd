"""docs/theory.md: what cites it finds its section, its links lead somewhere, its formulas survive GitHub's Markdown.

Each check is a function from a text to its faults, and is tried on a text that has one.
"""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "theory.md"
# Texts that are not in the repository. Written in parts, so that this file is not a fault.
ABSENT = re.compile(r"\bTHE" r"ORY\b|\b(?:PAP" r"ER|CL" r"IP|DES" r"IGN|HO" r"USE|ST" r"YLE)\.md\b")
SECTION = re.compile(r"^#{2,3} (\d+(?:\.\d+)?) ", re.MULTILINE)
LABEL = re.compile(r"^### ([TX]\d+): ", re.MULTILINE)
# "theory.md 1.3", "theory.md 1.1 and 1.3", "theory.md 2 (SL)"; not the year of a paper cited next.
CITATION = re.compile(r"theory\.md (\d(?:\.\d)?)\b(?: and (\d\.\d)\b)?")
CITED_LABEL = re.compile(r"theory\.md,? ([TX]\d+)\b")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def tracked() -> list[pathlib.Path]:
    """Files under version control in which a citation may stand."""
    command = ["git", "ls-files", "*.py", "*.md", "*.cfg", "*.toml", "Makefile"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout")
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def absent_texts(text: str) -> list[str]:
    """Names of texts that a reader of the repository cannot open."""
    return [match.group() for match in ABSENT.finditer(text)]


def lost_sections(text: str, page: str) -> list[str]:
    """Sections and labels of docs/theory.md that `text` cites and `page` does not have."""
    known = set(SECTION.findall(page)) | set(LABEL.findall(page))
    cited = [section for match in CITATION.findall(text) for section in match if section]
    return [name for name in cited + CITED_LABEL.findall(text) if name not in known]


def sources(code: str) -> str:
    """What follows `Source:` in the docstrings of a module, up to the next entry or the end of the paragraph."""
    nodes = ast.walk(ast.parse(code))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    docs = "\n\n".join(ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds))
    return "\n".join(re.findall(r"Source:(.*?)(?:Check:|\n\n|\Z)", docs, re.DOTALL))


def lost_labels(code: str, page: str) -> list[str]:
    """Statements that a docstring of `code` names as its source and that have no heading in `page`."""
    return [label for label in re.findall(r"\b[TX]\d+\b", sources(code)) if label not in LABEL.findall(page)]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken_links(text: str, folder: pathlib.Path) -> list[str]:
    """Relative links to files that do not exist, and anchors without a heading in the page they lead to."""
    faults = []
    for target in LINK.findall(text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = folder / name
        if name and not file.exists():
            faults.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text() if name else text, re.MULTILINE)
            if anchor not in map(slug, headings):
                faults.append(target)
    return faults


def formula_faults(text: str) -> list[str]:
    """Formulas that GitHub's Markdown would garble before its mathematics is typeset.

    Markdown takes a backslash before punctuation away, may read `*`, and `_` after punctuation, as emphasis, `|` as the
    end of a table's cell, `<` as HTML, and a line's first `+`, `-` or `=` as a list or a heading. GitHub refuses
    \\operatorname.
    """
    faults = []
    for line in re.sub(r"`[^`\n]*`", "code", text).splitlines():
        display = len(line) > 4 and line.startswith("$$") and line.endswith("$$")
        # Text and formulas by turns.
        parts = ["", line[2:-2], ""] if display else line.split("$")
        between, formulas = parts[::2], parts[1::2]
        if len(between) == len(formulas) or "" in formulas:
            faults.append(line)
            continue
        bad = r"\\[^a-zA-Z ]|\*|[^\w\s]_|[<>|$]|^\s|\s$|\\operatorname|\\(?:tag|newcommand|def)\b"
        faults += [formula for formula in formulas if re.search(bad, formula)]
        faults += [x for x in between[:-1] if re.search(r"\w$", x)] + [x for x in between[1:] if re.match(r"[\w%]", x)]
    return faults


def test_no_file_cites_a_text_that_is_not_here():
    faults = {str(file.relative_to(ROOT)): found for file in tracked() if (found := absent_texts(file.read_text()))}
    assert not faults


def test_absent_texts_are_noticed():
    assert absent_texts("Source: " + "THE" + "ORY 1.3.") == ["THE" + "ORY"]
    assert absent_texts("as " + "CL" + "IP.md says") == ["CL" + "IP.md"]
    assert not absent_texts("docs/theory.md 1.3; _THE" + "ORY_NAMES; docs/clip.md")


def test_every_citation_finds_its_section():
    page = PAGE.read_text()
    files = [file for file in tracked() if file != pathlib.Path(__file__).resolve()]
    faults = {str(file.relative_to(ROOT)): lost for file in files if (lost := lost_sections(file.read_text(), page))}
    assert not faults


def test_lost_sections_are_noticed():
    page = "## 1 Data\n\n### 1.1 One\n\n### X5: five\n"
    assert lost_sections("docs/theory.md 1.1, docs/theory.md 1. docs/theory.md X5", page) == []
    assert lost_sections("docs/theory.md 1.1 and 1.3", page) == ["1.3"]
    assert lost_sections("docs/theory.md 7 (SL), docs/theory.md T9", page) == ["7", "T9"]


def test_every_source_has_a_heading():
    page = PAGE.read_text()
    code = [file for file in tracked() if file.suffix == ".py" and "mmcl_theory" in file.relative_to(ROOT).parts[:1]]
    assert code and any(sources(file.read_text()) for file in code)
    faults = {file.name: lost for file in code if (lost := lost_labels(file.read_text(), page))}
    assert not faults


def test_lost_labels_are_noticed():
    doc = "X7 is not cited.\n\n    Source: T1,\n    T99 (Theorem 4.4).  Check: proofs_checks/x98.py.\n    "
    code = f'def f():\n    """{doc}"""\n'
    assert lost_labels(code, "### T1: one\n") == ["T99"]


def test_links_lead_somewhere():
    pages = [file for file in tracked() if file.suffix == ".md"]
    assert PAGE in pages
    faults = {page.name: found for page in pages if (found := broken_links(page.read_text(), page.parent))}
    assert not faults


def test_broken_links_are_noticed():
    text = "## 1 Data\n\n### T4: what is shared\n\n[a](#t4-what-is-shared) [b](verdicts.md) [c](https://arxiv.org)\n"
    assert broken_links(text, PAGE.parent) == []
    assert broken_links(text + "[d](#t4) [e](none.md) [f](verdicts.md#none)", PAGE.parent) == [
        "#t4",
        "none.md",
        "verdicts.md#none",
    ]


def test_formulas_survive_markdown():
    assert formula_faults(PAGE.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "one $x",
        "$P^*$",
        r"$\mathrm{acc}_+ + 1$",
        r"$50\%$",
        r"$a \, b$",
        r"$$\begin{matrix} a \\ b \end{matrix}$$",
        "$$a",
        "$a < b$",
        "| $|x|$ |",
        r"$\operatorname{tr} W$",
        "$ a$",
        "84$x$",
        "$x$%",
        "a $$x$$ b",
    ],
)
def test_garbled_formulas_are_noticed(text):
    assert formula_faults(text)
    assert not formula_faults(r"$P^{\ast}$ and $\lVert W \rVert_F$, `a $ b`" + "\n\n" + r"$$A = \frac{1}{m}, \ b$$")

"""The site: every page is reached, every figure has its command, notebooks run, links of the built site lead on.

Each check is a function from text to its faults, and is tried on a text that has one.
"""

import ast
import html.parser
import re
import runpy
import subprocess
import sys
import time

import pytest

from proofs_checks.__main__ import LABELS
from tests.helpers import ROOT

DOCS = ROOT / "docs"
NOTEBOOKS = sorted(page for page in (DOCS / "notebooks").glob("*.md") if page.name != "index.md")
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MINUTE = 60


def cells(text):
    """The code of a notebook's cells, without what Jupyter alone reads: options, magics, a semicolon at the end."""
    return [re.sub(r"\A(?::.*\n)+|^%.*\n|;(?=\n\Z)", "", code, flags=re.MULTILINE) for code in CELL.findall(text)]


def entries(text, page):
    """Pages that the trees of a page list, as paths without suffix from docs/."""
    lines = [line.strip() for tree in TOCTREE.findall(text) for line in tree.splitlines()]
    names = [re.sub(r"^.*<(.*)>$", r"\1", line) for line in lines if line and not line.startswith(":")]
    return [(page.parent / name).relative_to(DOCS).as_posix() for name in names]


def commands(text):
    """The figures of the gallery, each with the block of commands below it."""
    return dict(re.findall(r"!\[[^\]]*\]\(([^)]*\.png)\)\n\n```bash\n(.*?)\n```", text, re.DOTALL))


def unknown_modules(text):
    """Modules that commands of a page run and the project does not have."""
    names = re.findall(r"python -m ((?:sims|proofs_checks)[\w.]*)", text)
    files = [ROOT.joinpath(*name.split(".")) for name in names]
    return [n for n, f in zip(names, files, strict=True) if not (f.with_suffix(".py").is_file() or f.is_dir())]


class Links(html.parser.HTMLParser):
    """Targets and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.targets |= {attributes[name] for name in ("href", "src") if attributes.get(name)}
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}


def lost_links(folder):
    """(page, target) of links within a built site that lead nowhere, and of files that a page loads from elsewhere."""
    files = [file for file in sorted(folder.rglob("*.html")) if "_static" not in file.parts]  # the theme's templates
    pages = {file: Links(file.read_text(encoding="utf-8")) for file in files}
    lost = []
    for file, page in pages.items():
        for target in page.targets:
            if re.match(r"(?:data|mailto|javascript):|https?://", target):
                continue
            name, _, anchor = target.partition("#")
            to = (file.parent / name.partition("?")[0]).resolve() if name else file
            if not to.exists() or (anchor and to in pages and anchor not in pages[to].anchors):
                lost.append((file.relative_to(folder).as_posix(), target))
    return lost


def fetched(text):
    """What a page would load from a network: scripts, styles, pictures and fonts with an address."""
    return re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"((?:https?:)?//[^\"]+)\"", text)


def test_every_page_is_in_a_tree():
    pages = {page.relative_to(DOCS).with_suffix("").as_posix(): page for page in DOCS.rglob("*.md")}
    listed = [name for page in pages.values() for name in entries(page.read_text(), page)]
    assert set(listed) == set(pages) - {"index"} and len(listed) == len(set(listed))
    assert {f"statements/{label}" for label in LABELS} <= set(listed)


def test_entries_of_a_tree():
    text = "```{toctree}\n:hidden:\n\nguide\nT1: a title <statements/T1>\n```\n\nguide\n"
    assert entries(text, DOCS / "index.md") == ["guide", "statements/T1"]


def test_every_figure_has_its_command():
    text = (DOCS / "gallery.md").read_text()
    figures = {file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.png")}
    assert set(commands(text)) == figures and not unknown_modules(text)


def test_figures_without_a_command_and_unknown_commands_are_noticed():
    assert commands("![a](a.png)\n\n```bash\nmake a\n```\n\n![b](b.png)\n\ntext\n") == {"a.png": "make a"}
    assert unknown_modules("python -m sims.digits\npython -m sims.digit") == ["sims.digit"]


def test_notebooks_are_listed():
    index = (DOCS / "notebooks" / "index.md").read_text()
    assert len(NOTEBOOKS) == 6 and all(f"]({page.name})" in index for page in NOTEBOOKS)


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_is_one_and_its_cells_parse(page):
    text = page.read_text()
    assert text.startswith("---\nfile_format: mystnb\n") and len(cells(text)) >= 4
    assert text.count("{code-cell}") == len(cells(text))
    for code in cells(text):
        ast.parse(code)


def test_cells_are_read_to_their_end():
    text = "text\n\n```{code-cell} ipython3\n:tags: [a]\nx = 1\n%magic\nx;\n```\n\n```python\ny\n```\n"
    assert cells(text) == ["x = 1\nx\n"]


@pytest.fixture
def conf(monkeypatch):
    """What docs/conf.py defines."""
    pytest.importorskip("latex2mathml")
    pytest.importorskip("sphinx")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("PYTHONPATH", "JAX_PLATFORMS", "XLA_FLAGS"):
        monkeypatch.setenv(name, "")
    return runpy.run_path(str(DOCS / "conf.py"))


def test_formulas_become_mathml_and_unknown_ones_are_refused(conf):
    found = conf["mathml"](r"\begin{pmatrix} a & b \cr c & d \end{pmatrix}", "block")
    assert found.count("<mtr>") == 2 and "\\" not in found
    with pytest.raises(Exception, match=r"does not know \\nonsense"):
        conf["mathml"](r"\nonsense x", "inline")


def test_links_beside_the_docs_lead_to_pages_of_the_site(conf):
    def of(text, folder="docs", page="statements/T1.md"):
        return conf["resolved"](text, ROOT / folder, DOCS / page)

    assert of("[r](../README.md#a)") == "[r](../readme.md#a)"
    assert of("[r](docs/theory.md) ![p](docs/lines.png)", ".", "readme.md") == "[r](theory.md) ![p](lines.png)"
    link = '<a href="../code/proofs_checks/t1.py.html">c</a>'
    assert of("[c](../proofs_checks/t1.py)") == link and "proofs_checks/t1.py" in conf["linked"]
    for text in ("[n](none.md)", "[u](https://arxiv.org)", "[a](#a)", "x[0](y)"):
        assert of(text) == text


def test_docstrings_become_restructured_text(conf):
    doc = ["|w| on P* and x_ of `f*` is", "", "    w = |C| p*", "", "Args:", "    x: P*.", "", "Source: T1."]
    assert conf["as_rst"](doc) == [
        r"\|w\| on P\* and x\_ of `f*` is",
        "",
        ".. code-block:: text",
        "",
        "    w = |C| p*",
        "",
        "Args:",
        r"    x: P\*.",
        "",
        "Source: T1.",
    ]
    assert conf["as_rst"](["Example:", "    A*:", "", "    >>> f(x)", "    *", "", "    B*"])[3:] == [
        "    >>> f(x)",
        "    *",
        "",
        r"    B\*",
    ]
    assert conf["with_links"]("Source: T1.  Check: proofs_checks/t1.py.") == (
        "Source: :doc:`T1 </statements/T1>`.  Check: `proofs_checks/t1.py <../code/proofs_checks/t1.py.html>`__."
    )


def test_lost_links_are_noticed(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#one">b</a><a href="#here">h</a><p id="here"><img src="c.png">')
    (tmp_path / "b.html").write_text('<h1 id="two">t</h1><a href="https://arxiv.org">x</a>')
    assert sorted(lost_links(tmp_path)) == [("a.html", "b.html#one"), ("a.html", "c.png")]
    assert fetched('<script src="https://a.org/b.js"></script><a href="https://a.org">') == ["https://a.org/b.js"]


@pytest.mark.slow
@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_runs(page, tmp_path):
    """In a process of its own, as the site runs it. The time, which should be below a minute, is printed."""
    pytest.importorskip("sklearn")
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(cells(page.read_text())))
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment |= {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, script], env=environment, cwd=page.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"{page.stem}: {time.perf_counter() - start:.0f} s of {MINUTE}")


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_its_links_lead_on():
    """Into build/site, whose notebooks are run once for each state of the sources."""
    pytest.importorskip("latex2mathml")
    pytest.importorskip("pydata_sphinx_theme")
    site = ROOT / "build" / "site"
    command = [sys.executable, "-m", "sphinx", "-E", "-W", "--keep-going", "-q", "-b", "html", "docs", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(site.rglob("*.html"))) > 60
    assert not lost_links(site)
    texts = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert not {page: found for page, text in texts.items() if (found := fetched(text))}
    assert "<math" in texts[site / "theory.html"]
    for page in NOTEBOOKS:
        shown = texts[site / "notebooks" / f"{page.stem}.html"].count('src="../_images/')
        assert shown == page.read_text().count("plt.subplots(")

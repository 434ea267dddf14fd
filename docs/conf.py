"""The site that `make docs` builds of this folder, into build/site. Nothing in it loads from a network.

GitHub shows the same pages, so they are plain Markdown: links to files beside this folder and formulas between dollars
are resolved here. Formulas become MathML, which browsers draw without a script. The API is made of docstrings, whose
plain-text formulas are set as they are.
"""

import html
import os
import pathlib
import re

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.errors import ExtensionError

import mmcl_theory
from proofs_checks import store

DOCS = pathlib.Path(__file__).resolve().parent
ROOT = DOCS.parent
# The notebooks' processes import these sources, not installed ones.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a notebook's time is compilation, which this makes a third.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

project, author, release = "mmcl-theory", "mmcl-theory contributors", mmcl_theory.__version__
project_copyright = author
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
]
exclude_patterns = ["_static"]
templates_path: list[str] = []

html_theme = "pydata_sphinx_theme"
html_title = "mmcl-theory"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_sidebars = {"index": [], "gallery": [], "glossary": []}
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "navigation_with_keys": False,
}

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_update_mathjax = False

# What a notebook prints depends on the packages' sources too, so a change of these runs it again.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "notebooks" / store.version()[:16])
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
default_role = "py:obj"
napoleon_attr_annotations = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"


# Formulas


def mathml(tex: str, display: str) -> str:
    r"""MathML of a formula; `\cr` ends a row of a matrix, as GitHub needs it."""
    markup = convert(re.sub(r"\\cr\b", r"\\\\", tex), display=display)
    if unknown := re.findall(r"\\[a-zA-Z]+", markup):
        raise ExtensionError(f"latex2mathml does not know {unknown[0]} of the formula {tex!r}.")
    return markup


def visit_math(translator, node):
    """A formula within a line."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def visit_math_block(translator, node):
    """A formula on lines of its own, which scrolls where it is too wide."""
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>\n')
    raise SkipNode


# Links to files of the repository

PAGES = {"README.md": "readme.md", "CHANGELOG.md": "changelog.md", "BENCHMARKS.md": "benchmarks.md"}
PAGES["CONTRIBUTING.md"] = "contributing.md"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
linked: set[str] = set()  # files beside docs/, each of which gets a page under code/


def resolved(text: str, folder: pathlib.Path, page: pathlib.Path) -> str:
    """The Markdown with links, relative to `folder`, that lead on from `page`, a file in docs/."""

    def link(match: re.Match) -> str:
        image, words, name, anchor = match.groups(default="")
        target = pathlib.Path(os.path.normpath(folder / name))
        if ":" in name or not target.exists() or not target.is_relative_to(ROOT):
            return match.group()
        path = target.relative_to(ROOT).as_posix()
        if path in PAGES:
            target = DOCS / PAGES[path]
        elif target.is_dir():
            return words
        elif not target.is_relative_to(DOCS):
            linked.add(path)
            return f'<a href="{os.path.relpath(DOCS / "code" / path, page.parent)}.html">{words}</a>'
        return f"{image}[{words}]({os.path.relpath(target, page.parent)}{anchor})"

    return LINK.sub(link, text)


def read_page(app, name, source):
    """`resolved` of a page in docs/."""
    page = pathlib.Path(app.env.doc2path(name))
    source[0] = resolved(source[0], page.parent, page)


def read_included(app, path, parent, source):
    """`resolved` of a page beside docs/, included in one of docs/."""
    source[0] = resolved(source[0], (DOCS / path).resolve().parent, DOCS / parent)


def code_pages(app):
    """A page of each file that is linked."""
    for path in sorted(linked):
        language = {".py": "python", ".yaml": "yaml"}.get(pathlib.Path(path).suffix, "text")
        code = app.builder.highlighter.highlight_block((ROOT / path).read_text(encoding="utf-8"), language)
        yield f"code/{path}", {"title": path, "body": f"<h1>{html.escape(path)}</h1>\n{code}"}, "page.html"


# Docstrings

SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Example:", "Yields:")


def as_rst(lines: list[str]) -> list[str]:
    """A docstring of plain text as reStructuredText: indented blocks are literal, no sign in a sentence is markup."""
    result: list[str] = []
    section, literal, example, code = "", False, False, False
    for i, line in enumerate(lines):
        flush = line[:1] not in ("", " ")
        blank = not line.strip()
        if flush:
            section, literal = line if line in SECTIONS else "", False
        elif not section and not blank and not literal and (i == 0 or not lines[i - 1].strip()):
            literal = True
            result += [".. code-block:: text", ""]
        example = not blank and (example or line.lstrip().startswith(">>>"))
        if literal or example:
            result.append(line)
            continue
        parts = re.split("(`+)", line)
        for j, part in enumerate(parts):
            if part.startswith("`"):
                code = not code
                if not code and re.match(r"[\w(\[]", parts[j + 1]):  # what may not follow the end of code
                    parts[j] += "\\ "
            elif not code:
                parts[j] = re.sub(r"(?<!^)[*|]|\|", r"\\\g<0>", re.sub(r"(?<=\w)_(?!\w)", r"\\_", part))
        code = code and not blank
        result.append("".join(parts))
    return result


def with_links(text: str) -> str:
    """The paragraph `Source: ... Check: ...` with links, as seen from a page in docs/api."""
    text = re.sub(r"\b([TX]\d+)\b(?!\.py)", r":doc:`\1 </statements/\1>`", text)
    text = re.sub(r"docs/theory\.md", ":doc:`docs/theory.md </theory>`", text)
    linked.update(re.findall(r"proofs_checks/\w+\.py", text))
    return re.sub(r"(proofs_checks/\w+\.py)", r"`\1 <../code/\1.html>`__", text)


def read_docstring(app, what, name, value, options, lines):
    """`as_rst` and `with_links`, before napoleon reads the sections."""
    lines[:] = as_rst(lines)
    starts = [i for i, line in enumerate(lines) if line.startswith("Source: ")]
    if starts:
        lines[starts[0] :] = with_links("\n".join(lines[starts[0] :])).split("\n")


def read_signature(app, what, name, value, options, signature, result):
    """Arrays by their short name."""
    return tuple(text and re.sub(r"\b(?:jax\.)?jaxlib\._jax\.Array", "Array", text) for text in (signature, result))


def setup(app):
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("html-collect-pages", code_pages)
    app.connect("autodoc-process-signature", read_signature)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)

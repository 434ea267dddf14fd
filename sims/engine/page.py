"""An HTML page that needs no other file: style, tables and pictures are in it. Imports neither NumPy nor JAX."""

import base64
import html
from collections.abc import Iterable, Sequence

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
img { max-width: 100% } table { border-collapse: collapse; font-size: 14px; margin: 1em 0 }
td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd } td:first-child { text-align: left }
.scroll { overflow-x: auto } code, pre { background: #f3f3f3; padding: 0 .2em }
pre { overflow-x: auto; font-size: 13px }
.bad { color: #a30000; font-weight: bold }
"""


def page(title: str, body: str) -> str:
    """The page. body: HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
{body}
</body></html>
"""


def picture(png: bytes, alt: str) -> str:
    """A picture; alt: what it shows, in words."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells are shown as text."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<div class=scroll><table>{''.join(lines)}</table></div>"

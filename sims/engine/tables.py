"""Tables as text. Imports nothing."""

from collections.abc import Sequence


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """A line for each row, with columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(x.ljust(width) for x, width in zip(row, widths, strict=True)).rstrip() for row in rows)

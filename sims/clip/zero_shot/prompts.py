"""The prompts of a class for a text tower: its name in each of several templates; their embeddings are averaged."""

import pathlib
from collections.abc import Sequence

from sims.clip.records.reading import brief, read_lines
from sims.engine.flags import UsageError

# Plain sentences that say only that the thing is there.
TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "a picture of a {}",
    "an image showing a {}",
    "a {} and what is around it",
    "there is a {} here",
    "somebody's snapshot of a {}",
    "a {}, drawn or photographed",
    "this is what a {} looks like",
)
SLOT = "{}"


def read_templates(path: str | pathlib.Path | None) -> tuple[str, ...]:
    """Templates of a file, one a line or a JSON list, each with {} where the class's name goes; None: TEMPLATES.

    Raises: UsageError for a file that cannot be read, holds none, or a line without {}.
    """
    if path is None:
        return TEMPLATES
    lines = read_lines(path, "--templates")
    for number, line in enumerate(lines, 1):
        if SLOT not in line:
            raise UsageError(
                f"--templates={path}, template {number}, {brief(repr(line))}, has no {SLOT} for the class's name."
            )
    return lines


def prompts(name: str, templates: Sequence[str]) -> list[str]:
    """The sentences of one class, in the templates' order. The name is put in as it is; its braces mean nothing."""
    return [template.replace(SLOT, name) for template in templates]

"""What tests of several rooms share: flags, compilation, folders and interrupted writes."""

import contextlib
import csv
import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import pytest
from absl import flags

from sims.engine import store
from sims.engine.flags import UsageError, run_main

ROOT = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def own_flags():
    """Forget the flags that are defined inside, so that they may be defined again."""
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def exit_code(module, *args, **frame):
    """The exit code of a command, run in this process. frame: more of what `run_main` takes."""
    with own_flags():
        try:
            run_main(module.__doc__, module._define_flags, module._main, [module.__name__, *map(str, args)], **frame)
        except SystemExit as end:
            return end.code
    return 0


def python(*args, **more):
    """Run Python at the repository's root; the finished process, with its output as text."""
    return subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True, **more)


@contextlib.contextmanager
def quick_compilation():
    """Tiny runs spend their time in compilation, which this makes a third."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in sorted(folder.rglob("*"))}


def csv_rows(file):
    """The rows of a table, by column."""
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def json_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_refuses(words, call, *args, **given):
    """The call raises UsageError, whose message, which is returned, is one line that has these words (a tuple: all)."""
    with pytest.raises(UsageError) as caught:
        call(*args, **given)
    line = str(caught.value)
    assert "\n" not in line
    for each in (words,) if isinstance(words, str) else words:
        assert each in line, line
    return line


def refuses(message, call, /, *args, error=ValueError, **kwargs):
    """call(*args, **kwargs) raises the error, with a message in which the pattern is found."""
    with pytest.raises(error, match=message):
        call(*args, **kwargs)


def assert_refused(result, *mentioned):
    """(exit code, stdout, stderr) is a refusal: exit 2, and one line that has these words."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    for words in mentioned:
        assert words in err


def assert_another_run_is_refused(experiment, config, out, **change):
    """With this change the config is another run's, which the folder refuses; nothing in it changes."""
    before = contents(out)
    with pytest.raises(UsageError, match=f"differs in {next(iter(change))}"):
        experiment.run(dataclasses.replace(config, **change), out)
    assert contents(out) == before


def interrupt_write(patch, number):
    """Interrupt the number-th write of a block."""
    write, writes = store.Measured.write, []

    def interrupted(measured, block, values):
        writes.append(block)
        if len(writes) == number:
            raise KeyboardInterrupt
        write(measured, block, values)

    patch.setattr(store.Measured, "write", interrupted)

"""Flags shared by the experiments: number lists, and one clear line with exit code 2 for what is not allowed."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import flags

flags.disclaim_key_flags()  # what is defined through this module belongs to its caller, and shows in its --help

MAX_POINTS = 100_000
SMALLEST, LARGEST = 1e-6, 1e6  # their squares and fourth powers are well within float32


class UsageError(Exception):
    """Bad arguments or unusable input: one line saying what, where and what is allowed."""


def numbers(text: str) -> tuple[float, ...]:
    """`0.5,0.9` as (0.5, 0.9); `start:stop:count` as count evenly spaced numbers from start to stop, both included."""
    if ":" in text:
        parts = text.split(":")
        if len(parts) != 3:
            raise ValueError("needs start:stop:count, such as 0.5:1:11")
        start, stop, count = _number(parts[0]), _number(parts[1]), _count(parts[2])
        if count == 1 and start != stop:
            raise ValueError("needs start = stop where count is 1")
        values = [start + (stop - start) * i / max(count - 1, 1) for i in range(count)]
        values[-1] = stop
    else:
        values = [_number(part) for part in text.split(",")]
    if len(set(values)) != len(values):
        raise ValueError("needs numbers that differ from each other")
    return tuple(values)


def names(text: str) -> tuple[str, ...]:
    """`a,b` as ("a", "b")."""
    values = tuple(part.strip() for part in text.split(","))
    if len(set(values)) != len(values):
        raise ValueError("needs names that differ from each other")
    return values


def number(text: str) -> float:
    """A number: 0, or SMALLEST to LARGEST in size."""
    return _number(text)


def integer(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("needs a whole number") from None


def optional_integer(text: str) -> int | None:
    """A whole number, or "none"."""
    return None if text.lower() == "none" else integer(text)


def path(text: str) -> str:
    """The name of a folder."""
    if not text.strip():
        raise ValueError("needs the name of a folder")
    return text


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"needs numbers such as 0.5,0.9 or 0.5:1:11, not {text!r}") from None
    if not (value == 0 or SMALLEST <= abs(value) <= LARGEST):  # refuses NaN too
        raise ValueError(f"needs finite numbers, 0 or {SMALLEST:g} to {LARGEST:g} in size")
    return value


def _count(text: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= MAX_POINTS:
        raise ValueError(f"needs a count from 1 to {MAX_POINTS}")
    return int(text)


class _Parser(flags.ArgumentParser):
    """An absl parser from any text -> value function."""

    syntactic_help = ""

    def __init__(self, convert: Callable[[str], Any]):
        self.convert = convert

    def parse(self, argument: Any) -> Any:
        return self.convert(argument) if isinstance(argument, str) else argument

    def flag_type(self) -> str:
        return self.convert.__name__


class _Serializer(flags.ArgumentSerializer):
    def serialize(self, value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def define(name: str, default: Any, text: str, convert: Callable[[str], Any]) -> None:
    """Define --name with a converter of this module."""
    flags.DEFINE(_Parser(convert), name, default, text, serializer=_Serializer())


def run_main(doc: str, define: Callable[[], None], main: Callable[[], None], argv: list[str] | None = None) -> None:
    """Define and parse flags, run main(), and turn what goes wrong into the exit codes 2 (usage) and 130 (interrupt).

    Flags exist only once this is called, so that two imported experiments do not clash.
    """
    args = sys.argv if argv is None else argv
    define()
    flags.DEFINE_bool("help", False, "print this text")
    try:
        rest = flags.FLAGS(args)
    except flags.Error as error:
        _exit(2, f"{' '.join(str(error).split()).rstrip('.')}; see --help.")
    if flags.FLAGS.help:
        print(f"{doc.strip()}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    if len(rest) > 1:
        _exit(2, f"unexpected argument {rest[1]!r}: options are given as --name=value; see --help.")
    try:
        main()
    except UsageError as error:
        _exit(2, str(error))
    except KeyboardInterrupt:
        _exit(130, "interrupted; what is stored stays, and the same command goes on from it.")


def _exit(code: int, line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)

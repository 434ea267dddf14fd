"""Converters and checks of flags, and the frame of every command: an error is one line and an exit code."""

import dataclasses
import errno
import importlib.util
import itertools
import math
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from absl import flags

flags.disclaim_key_flags()  # absl then lists a flag in the --help of the module that called `define`

MAX_POINTS = 100_000
MOST_CELLS = 10_000  # of experiments that train a network in each cell
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_LARGEST_INTEGER = 10**15
_NO_DEVICE = "JAX_PLATFORMS={} names no device of this machine; leave it unset, or set it to cpu."
_LONGEST_LINE = 1000  # characters of an error message; the middle of a longer one is left out
SMALLEST, LARGEST = 1e-6, 1e6  # their squares and fourth powers are within float32's range


class UsageError(Exception):
    """Bad arguments or unusable input; the message is one line: what, where, and what is allowed."""


class WorkFailed(Exception):
    """The work cannot continue; the message is one line: why, and what is kept."""


class NothingStored(KeyboardInterrupt):
    """Interrupted before anything was stored."""


class Terminated(KeyboardInterrupt):
    """Interrupted by SIGTERM."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How a run is done; none of this changes its results.

    memory_gb: memory limit of a compiled block in GiB; None: half of the machine's memory, or 0.8 of a device's.
    overwrite: delete the run in the folder, whichever it is, and start again.
    dry_run: print the plan, write nothing.
    keep_checkpoints: keep those of finished runs.
    """

    memory_gb: float | None = None
    overwrite: bool = False
    dry_run: bool = False
    keep_checkpoints: bool = False


DEFAULTS = Options()


def numbers(text: str) -> tuple[float, ...]:
    """`0.5,0.9` as (0.5, 0.9); `start:stop:count` as count evenly spaced numbers, start and stop included."""
    if ":" in text:
        parts = text.split(":")
        if len(parts) != 3:
            raise ValueError("needs start:stop:count, such as 0.5:1:11")
        start, stop, points = _number(parts[0]), _number(parts[1]), count(parts[2], 1, MAX_POINTS)
        if points == 1 and start != stop:
            raise ValueError("needs start = stop where count is 1")
        values = [start + (stop - start) * i / max(points - 1, 1) for i in range(points)]
        values[-1] = stop
    else:
        values = [_number(part) for part in text.split(",")]
    if any(b <= a for a, b in itertools.pairwise(values)):
        raise ValueError("needs numbers that increase, none twice")
    return tuple(values)


def names(text: str) -> tuple[str, ...]:
    """`a,b` as ("a", "b")."""
    values = tuple(part.strip() for part in text.split(","))
    if len(set(values)) != len(values):
        raise ValueError("needs names that differ from each other")
    return values


def number(text: str) -> float:
    """A number, 0 or with an absolute value from SMALLEST to LARGEST."""
    return _number(text)


def integer(text: str) -> int:
    """A whole number."""
    try:
        value = int(text)
    except ValueError:
        raise ValueError("needs a whole number") from None
    if abs(value) > _LARGEST_INTEGER:
        raise ValueError(f"needs a whole number of at most {_LARGEST_INTEGER:.0e} in size")
    return value


def optional(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same converter, but `none` gives None."""

    def converted(text: str) -> Any:
        return None if text.lower() == "none" else convert(text)

    converted.__name__ = f"{convert.__name__} or none"
    return converted


def path(text: str) -> str:
    """The path of a file or folder; a leading ~ is the home folder."""
    if not text.strip():
        raise ValueError("needs the name of a folder")
    return os.path.expanduser(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"needs numbers such as 0.5,0.9 or 0.5:1:11, not {text!r}") from None
    if not (value == 0 or SMALLEST <= abs(value) <= LARGEST):  # refuses NaN too
        raise ValueError(f"needs finite numbers, 0 or {SMALLEST:g} to {LARGEST:g} in size")
    return value


def check_range(name: str, value: float, least: float, most: float = math.inf, why: str = "") -> None:
    """Raise UsageError unless least <= value of --name <= most. why: what sets the upper limit."""
    if not value >= least:
        raise UsageError(f"--{name} must be >= {least}, got {value}.")
    if value > most:
        raise UsageError(f"--{name} must be <= {most}{why}, got {value}.")


def check_positive(name: str, value: float) -> None:
    """Raise UsageError if the value of --name is not > 0."""
    if not value > 0:
        raise UsageError(f"--{name} must be > 0, got {value:g}.")


def check_choice(name: str, value: str, allowed: Iterable[str], where: str = "") -> None:
    """Raise UsageError unless the value of --name is allowed. where: the context, for the message."""
    if value not in allowed:
        raise UsageError(f"--{name} must be of {', '.join(allowed)}{where}, got {value!r}.")


def count(text: str, least: int, most: int) -> int:
    """A whole number in [least, most]."""
    digits = text.strip()
    if not digits.isdecimal() or len(digits) > 15 or not least <= int(digits) <= most:
        raise ValueError(f"needs a count from {least} to {most}")
    return int(digits)


class _Parser(flags.ArgumentParser):
    """An absl parser made from a function: text -> value."""

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
    """Define --name, converted by a function of this module."""
    flags.DEFINE(_Parser(convert), name, default, text, serializer=_Serializer())


def run_main(
    doc: str,
    define: Callable[[], None],
    main: Callable[..., int | None],
    argv: list[str] | None = None,
    operands: tuple[str, ...] = (),
    repeated: bool = False,
) -> None:
    """Define and parse flags, then run main(); an error becomes an exit code and one line on stderr.

    Exit codes: 2 for bad usage; 1 if the work failed, or main() returned 1; 130 after Ctrl-C; 143 after SIGTERM.
    operands: names of the positional arguments, which are passed to main. repeated: the last may be several.

    Flags are defined only here, so that two experiments can be imported together.
    """
    args = sys.argv if argv is None else argv
    os.environ["MPLBACKEND"] = "Agg"  # the backend that a notebook sets does not exist in a command
    define()
    flags.DEFINE_bool("help", False, "print this text")
    for name in flags.FLAGS:
        flags.FLAGS[name].allow_overwrite = False
    try:
        rest = flags.FLAGS(args)
    except flags.Error as error:
        line = " ".join(str(error).split())
        if ": already defined as " in line:
            name = line.removeprefix("flag ").partition("=")[0]
            _exit(2, f"{name} is given more than once; quote a value that the shell would expand; see --help.")
        _exit(2, f"{line.rstrip('.')}; see --help.")
    if not flags.FLAGS.help and len(rest) > 1 + len(operands) and not repeated:
        extra = rest[1 + len(operands)]
        _exit(2, f"unexpected argument {extra!r}: options are given as --name=value; see --help.")
    if not flags.FLAGS.help and len(rest) < 1 + len(operands):
        _exit(2, f"needs {operands[len(rest) - 1]}; see --help.")
    if not flags.FLAGS.help and _has_no_plugin():
        _exit(2, _NO_DEVICE.format(os.environ["JAX_PLATFORMS"]))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        if flags.FLAGS.help:
            print(f"{doc.strip()}\n{flags.FLAGS.main_module_help()}")
            code: int | None = 0
        else:
            code = main(*rest[1:])
        sys.stdout.flush()
    except UsageError as error:
        _exit(2, str(error))
    except WorkFailed as error:
        _exit(1, str(error))
    except BrokenPipeError:
        _leave_stdout()
        sys.exit(0)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        _exit(
            1, f"{error.filename or 'a file'}: {error.strerror}; results so far are kept; the same command continues."
        )
    except KeyboardInterrupt as error:
        code = 143 if isinstance(error.__cause__ or error, Terminated) else 130
        nothing = isinstance(error, NothingStored) or not _out_exists()
        stored = (
            "nothing is stored yet" if nothing else "results so far are kept, and the same command continues from them"
        )
        _exit(code, f"interrupted; {stored}.")
    except Exception:
        if _has_no_device():
            _exit(2, _NO_DEVICE.format(os.environ.get("JAX_PLATFORMS", "")))
        raise
    if code or flags.FLAGS.help:
        sys.exit(code)


def _leave_stdout() -> None:
    """The reader of stdout (`head`, say) has exited; without this Python would write to it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_no_plugin() -> bool:
    """Whether JAX_PLATFORMS names only GPUs but no GPU plugin of JAX is installed; does not import JAX."""
    wanted = {name.strip() for name in os.environ.get("JAX_PLATFORMS", "").split(",")}
    return wanted <= {"cuda", "rocm", "gpu"} and importlib.util.find_spec("jax_plugins") is None


def _has_no_device() -> bool:
    """Whether JAX is imported but has no device."""
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    try:
        return not jax.devices()
    except Exception:  # AssertionError or RuntimeError, depending on version and platform
        return True


def _out_exists() -> bool:
    out = flags.FLAGS["out"].value if "out" in flags.FLAGS else None
    return out is None or pathlib.Path(out).exists()


def _terminate(*_: Any) -> NoReturn:
    raise Terminated


def shortened(line: str) -> str:
    """The line; if it is very long, only its start and end: a bad value may be a whole file."""
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: _LONGEST_LINE - 300]} ... {line[-300:]}"


def _exit(code: int, line: str) -> NoReturn:
    print(f"error: {shortened(line)}", file=sys.stderr)
    sys.exit(code)

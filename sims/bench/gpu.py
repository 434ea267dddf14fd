"""Time and test everything on a GPU in 8 minutes: figures for BENCHMARKS.md, and tests on the device.

    make wheels                        # where there is a network: what a machine with JAX and PyTorch lacks
    make gpu                           # there; results go to runs/gpu as they come
    python -m sims.bench.gpu --tiny --out=runs/gpu_tiny    # all parts small, on a CPU too

Each part is a process of its own with a time limit; one that fails or is ended does not keep the others from running.
OUT/summary.md reports what is done, OUT/PART.json a part's figures, OUT/PART.log all that it printed. The same command
again keeps the parts that went well.  Exit code 1: a part failed.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from sims.engine import files
from sims.engine.flags import UsageError, define, names, number, optional, path, run_main

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUMMARY = "summary.json"
_GRACE = 3.0  # seconds that a part has to end by itself after SIGTERM
_TINY = 600.0  # seconds of a part at tiny sizes
_LEAST = 5.0  # seconds that must be left for a part to begin

_BESIDE_TORCH = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}  # by default JAX takes three quarters of the memory
# Several processes share the device, so JAX must not take its memory at once. XLA_FLAGS is empty: the tests' own flags
# make a CPU's compiler do less than in a run.
_TESTS = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": ""}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the run.

    about: what it does.  seconds: its limit.  env: of its process, beside the caller's.
    """

    about: str
    seconds: float
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


# The most important parts come first: when the 8 minutes are over, the last are cut short or not begun.
PARTS = {
    "devices": Part("devices, versions, matrix products", 30),
    "clip_rn50": Part("RN50: image tower and AdamW step beside open_clip's", 100, _BESIDE_TORCH),
    "clip_vit": Part("ViT-B-16: image tower and AdamW step beside open_clip's", 80, _BESIDE_TORCH),
    "train": Part("RN50 trained on generated scenes, with its held-out loss", 100),
    "theory": Part("sims.bench, theory", 30),
    "sampler": Part("sims.bench, sampler", 45),
    "gradient": Part("sims.bench, gradient", 40, _BESIDE_TORCH),
    "max_margin": Part("sims.bench, max_margin", 30),
    "sweep": Part("the default experiment, judged by its theory", 60),
    "tests": Part("tests of the engine, the learners and the networks", 150, _TESTS),
    "digits": Part("the paper's digits at full size, from MNIST in build/mnist", 420),
}
EXTRA = ("digits",)  # needs data, and the 8 minutes alone


@dataclasses.dataclass(frozen=True)
class Config:
    """parts: of PARTS, without EXTRA if not named.  tiny: everything small.  minutes: for all, None: see `budget`."""

    parts: tuple[str, ...] = tuple(name for name in PARTS if name not in EXTRA)
    tiny: bool = False
    minutes: float | None = None

    @property
    def budget(self) -> float:
        """Minutes for all parts: 8; tiny sizes, which measure no speed, get more, so that a slow machine has time."""
        return self.minutes or (60.0 if self.tiny else 8.0)

    def check(self) -> None:
        """Raise UsageError naming the flag, the value and what is allowed."""
        for name in self.parts:
            if name not in PARTS:
                raise UsageError(f"--parts must be of {', '.join(PARTS)}, got {name!r}.")
        if self.minutes is not None and not self.minutes > 0:
            raise UsageError(f"--minutes must be > 0, got {self.minutes:g}.")


def run(
    config: Config, out: pathlib.Path, wheels: pathlib.Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Run the parts in turn; returns what OUT/summary.json then holds.

    Raises: UsageError for a folder of something else.
    """
    config.check()
    deadline = time.monotonic() + 60 * config.budget - 2 * _GRACE
    summary = _open(config, out, overwrite)
    parts = summary["parts"]
    with tempfile.TemporaryDirectory() as site:
        if wheels is not None:
            parts["packages"] = _install(wheels, pathlib.Path(site))
            _tell(out, summary, "packages")
        for name in (name for name in PARTS if name in config.parts):
            if parts.get(name, {}).get("status") == "ok":
                print(f"{name}: done before", flush=True)
                continue
            limit = min(_TINY if config.tiny else PARTS[name].seconds, deadline - time.monotonic())
            if "no GPU" in parts.get("devices", {}).get("reason", ""):
                parts[name] = {"status": "not begun", "reason": "no GPU; --tiny tries the parts on a CPU"}
            elif limit < _LEAST:
                parts[name] = {"status": "not begun", "reason": f"the {config.budget:g} minutes are over"}
            else:
                parts[name] = _run(name, config, out, limit, site)
            _tell(out, summary, name)
    return summary


def failed(summary: Mapping[str, Any], config: Config) -> list[str]:
    """The parts asked for that did not end well, and the packages if they did not."""
    asked = {"packages", *config.parts}
    return [name for name, part in summary["parts"].items() if name in asked and part["status"] != "ok"]


def _open(config: Config, out: pathlib.Path, overwrite: bool) -> dict[str, Any]:
    """The summary so far: of an earlier call of the same sizes, if there was one."""
    files.check_folder(out, "--out")
    if overwrite and (out / SUMMARY).exists():
        for name in (SUMMARY, "summary.md", *(f"{part}{end}" for part in PARTS for end in (".json", ".log"))):
            (out / name).unlink(missing_ok=True)
        for part in PARTS:
            shutil.rmtree(out / part, ignore_errors=True)
    elif (out / SUMMARY).exists():
        try:
            summary = json.loads((out / SUMMARY).read_text())
            same = summary["tiny"] == config.tiny and isinstance(summary["parts"], dict)
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{out / SUMMARY} is damaged; --overwrite starts again.") from None
        if not same:
            raise UsageError(f"--out={out} was made {'with' if summary['tiny'] else 'without'} --tiny; give another"
                             " folder, or --overwrite.")  # fmt: skip
        return summary
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out={out} holds something else; give another folder.")
    out.mkdir(parents=True, exist_ok=True)
    return {"tiny": config.tiny, "parts": {}}


def _install(wheels: pathlib.Path, site: pathlib.Path) -> dict[str, Any]:
    """Unpack those wheels whose package this Python lacks."""
    began = time.monotonic()
    lacking = [wheel for wheel in sorted(wheels.glob("*.whl")) if not _present(wheel.name.split("-")[0])]
    result: dict[str, Any] = {"status": "ok", "lines": [f"{wheel.name} from {wheels}" for wheel in lacking]}
    if lacking:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-cache-dir"]
        done = subprocess.run([*pip, f"--target={site}", *map(str, lacking)], capture_output=True, text=True)
        if done.returncode:
            result |= {"status": "failed", "reason": _last_line(done.stderr) or f"pip's exit code {done.returncode}"}
    return {**result, "seconds": time.monotonic() - began}


def _present(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def command(name: str, config: Config, out: pathlib.Path) -> list[str]:
    """The command line of a part's process."""
    return [sys.executable, "-m", "sims.bench.gpu_parts", name, str(out), *(["tiny"] if config.tiny else [])]


def _run(name: str, config: Config, out: pathlib.Path, limit: float, site: str) -> dict[str, Any]:
    """Run one part, and end all its processes by its limit. What it has written by then counts."""
    result, log, began = out / f"{name}.json", out / f"{name}.log", time.monotonic()
    result.unlink(missing_ok=True)
    search = [str(ROOT), site, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", **PARTS[name].env}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, search))
    print(f"{name}: {PARTS[name].about}, at most {limit:.0f} s", flush=True)
    with log.open("wb") as said:
        process = subprocess.Popen(
            command(name, config, out.absolute()), cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=said,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            outcome = {"status": "failed", "reason": _last_line(log.read_text(errors="replace")) or f"exit code {code}"}
            if code == 0:
                outcome = {"status": "ok"}
        except subprocess.TimeoutExpired:
            outcome = {"status": "failed", "reason": f"not done after {limit:.0f} s"}
        finally:
            _end(process)
    outcome["seconds"] = time.monotonic() - began
    try:
        return {**outcome, **json.loads(result.read_text())}
    except (OSError, ValueError):
        if outcome["status"] == "ok":
            outcome |= {"status": "failed", "reason": f"it wrote no {result.name}"}
        return outcome


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a part's processes."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        until = time.monotonic() + _GRACE
        while time.monotonic() < until and _alive(process):
            time.sleep(0.05)
    process.wait()


def _alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _tell(out: pathlib.Path, summary: Mapping[str, Any], name: str) -> None:
    """Write the summary again, and print a part's lines."""
    files.write_text(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    files.write_text(out / "summary.md", text(summary) + "\n")
    print("\n".join(_lines(name, summary["parts"][name])), flush=True)


def _lines(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    seconds = f", {part['seconds']:.0f} s" if "seconds" in part else ""
    yield f"{name}: {part['status']}{seconds}" + (f": {part['reason']}" if "reason" in part else "")
    yield from (f"    {line}" for line in part.get("lines", ()))


def text(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown: a table of the parts, then the lines of each."""
    parts: Mapping[str, Mapping[str, Any]] = summary["parts"]
    lines = [f"# GPU run{', tiny sizes: no figures' if summary['tiny'] else ''}", ""]
    lines += ["| part | what | result | seconds |", "|---|---|---|---|"]
    for name, part in parts.items():
        about = PARTS[name].about if name in PARTS else "wheels installed"
        reason = f": {part['reason']}".replace("|", "\\|") if "reason" in part else ""
        lines.append(f"| {name} | {about} | {part['status']}{reason} | {part.get('seconds', 0):.0f} |")
    for name, part in parts.items():
        if part.get("lines"):
            lines += ["", f"## {name}", "", *(f"    {line}" for line in part["lines"])]
    return "\n".join(lines)


def _wheels(given: str) -> pathlib.Path | None:
    folder = pathlib.Path(given)
    return folder if any(folder.glob("*.whl")) else None


def _define_flags() -> None:
    define("parts", Config().parts, f"parts, of {', '.join(PARTS)}", names)
    define("minutes", None, "for all parts together, > 0; none: 8, with --tiny 60", optional(number))
    define("wheels", "build/wheels", "folder of wheels, from `make wheels`; what Python lacks is taken from it", path)
    flags.DEFINE_bool("tiny", False, "everything small, to try the parts without a GPU")
    flags.DEFINE_bool("overwrite", False, "run every part again, whatever --out holds of earlier calls")
    define("out", "runs/gpu", "folder of the results", path)


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    config = Config(values["parts"], values["tiny"], values["minutes"])
    out = pathlib.Path(values["out"])
    print(f"results go to {out}", flush=True)
    summary = run(config, out, _wheels(values["wheels"]), values["overwrite"])
    wrong: Sequence[str] = failed(summary, config)
    print(f"\n{out / 'summary.md'}: {'not well: ' + ', '.join(wrong) if wrong else 'every part went well'}")
    return int(bool(wrong))


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)

"""The commands of this project, by name: `mmcl NAME --flags` is `python -m MODULE --flags`.

mmcl                                    # this list
mmcl sweep-spurious --out runs/sweep
mmcl phase-diagram --help
"""

import ast
import importlib.util
import pathlib
import runpy
import sys

# Name: module. The first line of its docstring describes it.
COMMANDS = {
    "sweep-spurious": "sims.sweep_spurious",
    "sweep-captions": "sims.sweep_captions",
    "sweep-model": "sims.sweep_model",
    "phase-diagram": "sims.phase_diagram",
    "dynamics": "sims.dynamics",
    "explore": "sims.explore",
    "captions": "sims.captions_audit",
    "features": "sims.features",
    "diagnose": "sims.diagnose",
    "digits": "sims.digits",
    "digits-readouts": "sims.digits.readouts",
    "make-scenes": "sims.clip.make_scenes",
    "train": "sims.clip.train",
    "evaluate": "sims.clip.evaluate",
    "embed": "sims.clip.embed",
    "compare": "sims.clip.compare",
    "lines": "sims.lines",
    "show": "sims.show",
    "report": "sims.report",
    "bench": "sims.bench",
    "check": "proofs_checks",
}
# The extra of setup.cfg that a package needs, if it is not `sims`.
EXTRAS = {"explore": "explore", "digits": "digits", "clip": "clip", "bench": "bench", "proofs_checks": "checks"}


def summary(module: str) -> str:
    """The first line of a command's docstring, read without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return "not installed"
    file = pathlib.Path(spec.origin)
    file = file.with_name("__main__.py") if file.name == "__init__.py" else file
    return (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]


def listing() -> str:
    """The list of commands, one per line."""
    width = max(map(len, COMMANDS))
    lines = [f"{name.ljust(width)}  {summary(module)}" for name, module in COMMANDS.items()]
    return "\n".join(["usage: mmcl COMMAND [--flag=value ...]; mmcl COMMAND --help lists its flags.", "", *lines])


def main() -> None:
    """Run the command named by the first argument. An unknown name is one line on stderr and exit code 2."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(listing())
        return
    if name not in COMMANDS:
        print(f"error: {name!r} is no command; the commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = rest
    try:
        runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("", "sims", "mmcl_theory", "proofs_checks"):
            raise
        extra = EXTRAS.get(COMMANDS[name].removeprefix("sims.").split(".")[0], "sims")
        print(f"error: {name} needs {error.name}: pip install 'mmcl-theory[{extra}]'.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

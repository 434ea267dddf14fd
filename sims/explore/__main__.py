"""The theory as a page with sliders, live on this machine or as one file.

Accuracies of both groups and on P*, the rules over the latent clouds, a phase diagram and the course of training, for
the intra-class model: the linear loss (X2, X3), whitening (X5), InfoNCE with a ridge to second order (X11), supervised
learning (X1), training time (X6).

    python -m sims.explore
    python -m sims.explore --p_spu=0.99 --masking=mean --export=explore.html

The live page is served to this machine alone, until Ctrl-C. The file has the numbers at fewer values of the main
sliders; the other parameters are fixed in it, as the flags say. It needs no network.
"""

import pathlib
import sys
import time

from absl import flags

from sims.engine import devices
from sims.engine.flags import NothingStored, Terminated, UsageError, define, integer, number, optional, path, run_main
from sims.explore.config import DIALS, MASKINGS, Config
from sims.latent.parameters import PARAMETERS


def value(text: str) -> float:
    """A number, or inf."""
    return float("inf") if text.lower() in ("inf", "∞") else number(text)


def _define_flags() -> None:
    for name, dial in DIALS.items():
        meaning = PARAMETERS[name].meaning if name in PARAMETERS else dial.title.partition(": ")[2]
        define(name, dial.start, f"where the slider starts: {meaning}; {dial.allowed}", value)
    define("masking", Config.masking, f"what stands for an unmentioned detail, of {', '.join(MASKINGS)}", str)
    define("port", Config.port, "port of the live page, 0 to 65535; 0: a free one", integer)
    flags.DEFINE_bool("open", True, "open the live page in a browser")
    define("export", None, "file to write instead, such as explore.html", optional(path))
    flags.DEFINE_bool("overwrite", False, "replace the file of --export if it exists")


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    config = Config({name: values[name] for name in DIALS}, values["masking"], values["port"])
    config.check()
    if values["export"] is not None:
        return _export(config, pathlib.Path(values["export"]), values["overwrite"])
    return _serve(config, values["open"])


def _export(config: Config, out: pathlib.Path, overwrite: bool) -> int:
    if out.is_dir():
        raise UsageError(f"--export must be a file, got the folder {out}.")
    if not out.parent.is_dir():
        raise UsageError(f"--export={out} cannot be written: there is no folder {out.parent}.")
    if out.exists() and not overwrite:
        raise UsageError(f"--export={out} exists; give another name, or --overwrite to replace it.")
    from sims.engine import files

    files.check_folder(out.parent, f"--export={out}")
    _start_jax()
    from sims.explore import export

    try:
        files.write_text(out, export.html(config))
    except KeyboardInterrupt as error:
        raise NothingStored from error
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


def _serve(config: Config, browser: bool) -> int:
    _start_jax()
    from sims.explore import server

    opened = server.browser() if browser else None
    bound = server.start(config)
    try:
        print("Compiling; this takes a minute the first time, seconds after that.", file=sys.stderr)
        began = time.perf_counter()
        update = server.compile_all(config)
        seconds = time.perf_counter() - began
        print(f"Compiled in {seconds:.0f} s; an update takes {1e3 * update:.0f} ms.", file=sys.stderr)
        print(f"{server.address(bound)} (Ctrl-C ends it)", flush=True)
        if opened is not None:
            opened.open(server.address(bound))
        bound.io_loop.start()
    except KeyboardInterrupt as error:
        print("Stopped.", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 0
    finally:
        bound.stop()
    return 0


def _start_jax() -> None:
    """In float64, keeping what is compiled."""
    import jax

    jax.config.update("jax_enable_x64", True)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(devices.cache()))


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)

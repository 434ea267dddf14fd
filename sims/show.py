"""Print and draw the results in a folder again, without measuring or predicting.

python -m sims.show runs/sweep_spurious
python -m sims.show runs/sweep_spurious --out figures/
"""

import importlib
import pathlib

from absl import flags

from sims.engine.flags import UsageError, define, optional, path, run_main

MODULES = {
    **{
        name: f"sims.{name}.experiment"
        for name in ("sweep_spurious", "sweep_captions", "sweep_model", "phase_diagram", "dynamics", "features")
    },
    "digits": "sims.digits.studies",
}
_OTHERS = {
    "clip.train": "evaluate it by `python -m sims.clip.evaluate --run=DIR`",
    "clip.compare": "repeat its own command to draw it again",
}


def show(folder: pathlib.Path, out: pathlib.Path) -> str:
    """Write the table and the figure of the run in `folder` into `out`; returns the text that its command printed.

    Raises: UsageError if `folder` holds no complete run of this version, or `out` cannot be written.
    """
    from sims.engine import files, runs, store

    config = store.read_config(folder)
    command = str(config.get("command"))
    if command not in MODULES:
        raise UsageError(f"{folder} is a run of sims.{command}: {_OTHERS.get(command, 'repeat that command')}.")
    done, blocks = store.progress(folder)
    if done < blocks:
        raise UsageError(f"{folder} is unfinished: {done} of {blocks} blocks are there; repeat its command to go on.")
    try:
        dataset = runs.load(folder)
    except Exception as error:  # zarr, its codecs and xarray raise many kinds for a damaged store
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"{folder} is unfinished or damaged ({reason}); repeat its command to mend it; --overwrite starts again."
        ) from None
    files.check_folder(out, f"--out={out}")
    out.mkdir(parents=True, exist_ok=True)
    text = importlib.import_module(MODULES[command]).show(dataset, out)
    if dataset.attrs["failed"]:
        text += f"\n{dataset.attrs['failed']} runs failed: {folder / 'failed.csv'}"
    return text


def _define_flags() -> None:
    define("out", None, "folder for the table and the figure; none: the run's folder", optional(path))


def _main(folder: str) -> None:
    out = pathlib.Path(flags.FLAGS.out or path(folder))
    print(show(pathlib.Path(path(folder)), out))
    print(f"\nWritten to {out}")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main, operands=("the folder of a run",))

"""Kill a sweep at random moments, damage chunks in between, and compare what it ends with to an undisturbed run.

    python -m tests.engine.fault_injection --kills=50

Prints a line a fault; exit 1 unless every stored number and table is equal to the bit. Not a test by itself: the suite
has a handful of these kills (tests/latent/test_sweep_spurious.py).
"""

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import xarray as xr

from sims.engine import store

ROOT = pathlib.Path(__file__).parents[2]
SWEEP = ["--p_spu=0.5:1:4", "--learners=mmcl,supervised_gradient", "--seeds=3000", "--n=200", "--dim_image=100"]
SWEEP += ["--gradient_steps=100", "--cpu_devices=1"]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def start(out: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "sims.sweep_spurious", f"--out={out}", *SWEEP]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def damage(out: pathlib.Path, rng: random.Random) -> str:
    """Flip a bit of a random chunk, cut it, remove it, or leave half a temporary file beside it."""
    chunks = sorted(p for p in (out / store.RESULTS).rglob("c/**/*") if p.is_file())
    if not chunks:
        return "no chunk to damage"
    chunk, kind = rng.choice(chunks), rng.choice(["flipped", "cut", "removed", "half a file beside"])
    content = chunk.read_bytes()
    at = rng.randrange(len(content))
    if kind == "flipped":
        chunk.write_bytes(content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :])
    elif kind == "cut":
        chunk.write_bytes(content[:at])
    elif kind == "removed":
        chunk.unlink()
    else:
        chunk.with_suffix(".0123.partial").write_bytes(content[:at])
    return f"chunk {'/'.join(chunk.parts[-6:])} {kind}"


def same(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Every variable and coordinate equal to the bit, and the tables byte by byte."""
    with (
        xr.open_zarr(one / store.RESULTS, consolidated=False) as a,
        xr.open_zarr(other / store.RESULTS, consolidated=False) as b,
    ):
        equal = set(a.variables) == set(b.variables) and all(
            np.array_equal(a[name].values, b[name].values, equal_nan=a[name].dtype.kind == "f") for name in a.variables
        )
    return equal and (one / "summary.csv").read_bytes() == (other / "summary.csv").read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        reference = pathlib.Path(folder) / "undisturbed"
        for out in (reference.with_name("first"), reference):  # the first fills the cache of compiled programs
            begun = time.monotonic()
            _, err = (process := start(out)).communicate()
            duration = time.monotonic() - begun
            if process.returncode:
                print(err)
                return 1
        kills = finished = wrong = 0
        while kills < args.kills:
            out, left = pathlib.Path(folder) / f"run{finished}", rng.randint(1, 8)
            while True:
                process = start(out)
                after, how = rng.uniform(0, duration), rng.choice(SIGNALS)
                try:
                    _, err = process.communicate(timeout=after if left else None)
                except subprocess.TimeoutExpired:
                    left -= 1
                    process.send_signal(how)
                    _, err = process.communicate()
                    kills += 1
                    done, blocks = store.progress(out)
                    fault = damage(out, rng) if rng.random() < 0.5 else "no further damage"
                    print(
                        f"kill {kills}: {how.name} after {after:.1f} s, {done} of {blocks} blocks; {fault}", flush=True
                    )
                    continue
                break
            if process.returncode:
                print(f"run {finished} failed with {process.returncode}: {err.strip()}")
                wrong += 1
            elif not same(out, reference):
                print(f"run {finished} differs")
                wrong += 1
            finished += 1
        print(f"{kills} kills over {finished} runs; {finished - wrong} of them equal the undisturbed run to the bit")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

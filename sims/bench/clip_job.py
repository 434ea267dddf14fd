"""The job `clip` of `sims.bench`: CLIP's towers, training step and loss beside open_clip's, on the same weights."""

import dataclasses
import io
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmcl_theory import losses
from sims.bench.jobs import Result, Row, Sizes, agree, baseline, compare, interleaved
from sims.clip.config import Config
from sims.clip.fit import speed
from sims.clip.model import learner, models, weights
from sims.clip.records import images

_MODELS = ("RN50", "ViT-B-16")


def run(sizes: Sizes, repeats: int) -> Result:
    """For each model the image tower and one AdamW step; then the loss at batch 1,024, and the input pipeline."""
    on_gpu = jax.default_backend() != "cpu"
    batch = sizes.clip_batch or (256 if on_gpu else 8)
    result = Result()
    for name in _MODELS:
        result.rows += beside(name, batch, on_gpu, repeats)
    result.rows.append(_loss(_open_clip(), repeats))
    result.rows.append(_pipeline(repeats))
    step = next(row for row in result.rows if "RN50 step" in row.job)
    cores = result.rows[-1].ours / step.ours
    result.notes.append(f"clip, input: a core decodes {1 / result.rows[-1].ours:,.0f} images/s, RN50 takes"
                        f" {1 / step.ours:,.0f}: {cores:.2g} cores")  # fmt: skip
    return result


def _open_clip() -> Any:
    return baseline("open_clip_steps", "torch, torchvision, open_clip_torch, timm, ftfy")


class Ours:
    """One of our models on one batch. tower(): its image embeddings.  step(): one AdamW step; returns the loss.

    variables: of flax; None: random.
    """

    def __init__(self, name: str, batch: int, bf16: bool, variables: Any = None):
        rng, arch = np.random.default_rng(0), models.ARCHITECTURES[name]
        self.name, self.batch, self.bf16, self.tokens = name, batch, bf16, _tokens(rng, arch, batch)
        self.pixels = rng.integers(0, 256, (batch, arch.image_size, arch.image_size, 3), dtype=np.uint8)
        config = Config(architecture=name, batch_size=batch, bf16=bf16, warm_up=0, learning_rate=1e-5)
        one = self._learner = learner.Learner(config, arch, 0, 1000)
        state = jax.jit(one.start)(jax.random.key(0))
        if variables is not None:
            stats = variables.get("batch_stats", {})
            state = dataclasses.replace(state, params={"model": variables["params"]}, batch_stats=stats)
        copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))  # copied, as the step donates its state
        self._variables = copied({"params": state.params["model"], "batch_stats": state.batch_stats})
        self._state = state
        label = np.zeros(batch, np.int32)
        self._given = jax.device_put({"image": self.pixels, "tokens": self.tokens, "label": label})
        self._tower = jax.jit(lambda v, x: one.module.apply(v, images.normalise(x), False, method="encode_image"))
        self._step = jax.jit(one.step, donate_argnums=0)

    def tower(self) -> jax.Array:
        return self._tower(self._variables, self._given["image"])

    def step(self) -> float:
        self._state, metrics = self._step(self._state, self._given)
        return float(metrics["loss"])

    def bounds(self, tower: np.ndarray, step: np.ndarray) -> tuple[str, str]:
        """For both times, the share of the device's peak that they reach, as text."""
        count = self._tower.lower(self._variables, self._given["image"]).cost_analysis() or {}
        flops = float(count.get("flops", np.nan)), self._learner.flops()
        texts = (_bound(f, np.median(s), self.bf16) for f, s in zip(flops, (tower, step), strict=True))
        return next(texts), next(texts)

    def jobs(self) -> tuple[str, str]:
        return f"clip, {self.name} image tower", f"clip, {self.name} step, batch {self.batch}"


def _tokens(rng: np.random.Generator, arch: models.Architecture, batch: int) -> np.ndarray:
    """Captions of a dozen ids, their end the largest."""
    vocabulary, length = arch.text.vocabulary_size, min(12, arch.text.context_length - 1)
    tokens = np.zeros((batch, arch.text.context_length), np.int32)
    tokens[:, 0], tokens[:, 1:length] = vocabulary - 2, rng.integers(0, vocabulary - 2, (batch, length - 1))
    tokens[:, length] = vocabulary - 1
    return tokens


def alone(name: str, batch: int, bf16: bool, repeats: int) -> list[Row]:
    """Image tower and training step by themselves, without open_clip."""
    mine = Ours(name, batch, bf16)
    seconds = interleaved(repeats, mine.tower, mine.step)
    rows = zip(mine.jobs(), seconds, mine.bounds(*seconds), strict=True)
    return [Row(job, "image", float(np.median(s)) / batch, bound=bound) for job, s, bound in rows]


def beside(name: str, batch: int, bf16: bool, repeats: int) -> list[Row]:
    """Image tower and training step beside open_clip's, on its weights. Raises: Missing, Differs."""
    plain = _open_clip()
    net = plain.model(name)
    variables = jax.device_put(weights.import_state_dict(plain.state(net), models.ARCHITECTURES[name]))
    mine = Ours(name, batch, bf16, variables)
    theirs = np.ascontiguousarray(np.asarray(images.normalise(mine.pixels)).transpose(0, 3, 1, 2))
    embed, gap = plain.image_tower(net, theirs, bf16), 0.02 if bf16 else 1e-4
    directions = (_unit(x) for x in (mine.tower(), embed().float().cpu().numpy()))
    agree(f"{name}, directions of features", *directions, gap)
    towers = interleaved(repeats, mine.tower, embed)
    their_step = plain.training_step(net, theirs, mine.tokens.astype(np.int64), bf16)
    for number in range(2):  # the second is of updated parameters
        agree(f"{name}, loss of training step {number}", mine.step(), their_step(), 2 * gap)
    steps = interleaved(repeats, mine.step, their_step)
    rows = zip(mine.jobs(), (towers, steps), mine.bounds(towers[0], steps[0]), strict=True)
    goal = 1.2 if bf16 else 0.0
    return [compare(job, "image", *(s / batch for s in both), least=goal, bound=bound) for job, both, bound in rows]


def _unit(x: Any) -> np.ndarray:
    return np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)


def _bound(flops: float, seconds: float, bf16: bool) -> str:
    peak = speed.peak(bf16) / jax.device_count()
    return f"flops: {flops / seconds / 1e9:,.0f} of {peak / 1e9:,.0f} Gflop/s, MFU {flops / seconds / peak:.1%}"


def _loss(plain: Any, repeats: int) -> Row:
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((1024, 1024)).astype(np.float32) for _ in range(2))

    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):  # as torch does on a GPU too
            return losses.info_nce(x, y, temperature=0.07, normalize=True)

    gradient: Callable[..., Any] = jax.jit(jax.grad(loss, (0, 1)))
    given = jax.device_put((image, text))
    theirs = plain.loss_gradient(image, text)
    plain_gradient = theirs().cpu().numpy()
    scale = np.abs(plain_gradient).max()
    agree("loss, gradient", np.asarray(gradient(*given)[0]) / scale, plain_gradient / scale, 1e-4)
    ours, torch = interleaved(repeats, lambda: gradient(*given), theirs)
    bound = _bound(3 * 2 * 1024**3, np.median(ours), False)
    return compare("clip, loss with gradient, 1,024 x 1,024", "batch", ours, torch, bound=bound)


def _pipeline(repeats: int) -> Row:
    """A photo of 500 x 375 pixels to a crop of 224, on one core, in CPU time; against torchvision's transform of it."""
    from PIL import Image
    from torchvision import transforms

    rng = np.random.default_rng(0)
    rough = rng.normal(128, 60, (24, 32, 3)).clip(0, 255).astype(np.uint8)
    photo = np.asarray(Image.fromarray(rough).resize((500, 375), Image.Resampling.BICUBIC)).astype(float)
    photo = np.clip(photo + rng.normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=90)
    data, count = file.getvalue(), 100
    cut = transforms.Compose([
        transforms.RandomResizedCrop(224, (0.9, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(), transforms.Normalize(images.MEAN.tolist(), images.STD.tolist()),
    ])  # fmt: skip

    def mine() -> None:
        for _ in range(count):
            images.random_resized_crop(images.decode(data, "photo", 224), rng, 224)

    def theirs() -> None:
        for _ in range(count):
            cut(Image.open(io.BytesIO(data)).convert("RGB"))

    seconds = np.array([[_cpu(call) for call in (mine, theirs)] for _ in range(repeats)]).T / count
    row = compare("clip, decode and crop, a core", "image", *seconds)
    return dataclasses.replace(row, bound=f"Pillow: JPEG of {len(data) >> 10} KiB, bicubic resize")


def _cpu(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start

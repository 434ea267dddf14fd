"""The job `clip` of `sims.bench`: CLIP's towers, training step and loss beside open_clip's, on the same weights."""

import dataclasses
import io
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmcl_theory import losses
from sims.bench_jobs import Result, Row, Sizes, agree, baseline, compare, interleaved
from sims.clip import images, learner, models, speed, weights
from sims.clip.config import Config

_MODELS = ("RN50", "ViT-B-16")


def run(sizes: Sizes, repeats: int) -> Result:
    """Per model the image tower and one AdamW step; then the loss at batch 1,024, and the input pipeline."""
    plain = baseline("open_clip_steps", "torch, torchvision, open_clip_torch, timm, ftfy")
    on_gpu = jax.default_backend() != "cpu"
    batch = sizes.clip_batch or (256 if on_gpu else 8)
    found = Result()
    for name in _MODELS:
        found.rows += _model(plain, name, batch, on_gpu, repeats)
    found.rows.append(_loss(plain, repeats))
    found.rows.append(_pipeline(repeats))
    step = next(row for row in found.rows if "RN50 step" in row.job)
    cores = found.rows[-1].ours / step.ours
    found.notes.append(f"clip, input: a core decodes {1 / found.rows[-1].ours:,.0f} images/s, RN50 takes"
                       f" {1 / step.ours:,.0f}: {cores:.2g} cores")  # fmt: skip
    return found


def _model(plain: Any, name: str, batch: int, bf16: bool, repeats: int) -> list[Row]:
    rng = np.random.default_rng(0)
    arch, net = models.ARCHITECTURES[name], plain.model(name)
    pixels = rng.integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    theirs = np.ascontiguousarray(np.asarray(images.normalise(pixels)).transpose(0, 3, 1, 2))
    tokens = np.zeros((batch, arch.text.context_length), np.int32)
    tokens[:, 0], tokens[:, 1:12] = 49406, rng.integers(0, 49000, (batch, 11))
    tokens[:, 12] = 49407
    one = learner.Learner(
        Config(architecture=name, batch_size=batch, bf16=bf16, warm_up=0, learning_rate=1e-5), arch, 0, 1000
    )
    variables = jax.device_put(weights.import_state_dict(plain.state(net), arch))
    state = dataclasses.replace(
        jax.jit(one.start)(jax.random.key(0)), params={"model": variables["params"]},
        batch_stats=variables.get("batch_stats", {}),
    )  # fmt: skip
    given = jax.device_put({"image": pixels, "tokens": tokens, "label": np.zeros(batch, np.int32)})
    tower = jax.jit(lambda v, x: one.module.apply(v, images.normalise(x), False, method="encode_image"))
    embed = plain.image_tower(net, theirs, bf16)
    gap = 0.02 if bf16 else 1e-4
    mine_of, theirs_of = (_unit(x) for x in (tower(variables, given["image"]), embed().float().cpu().numpy()))
    agree(f"{name}, directions of features", mine_of, theirs_of, gap)
    ours, torch = interleaved(repeats, lambda: tower(variables, given["image"]), embed)
    goal = 1.2 if bf16 else 0.0
    count = tower.lower(variables, given["image"]).cost_analysis() or {}
    bound = _bound(float(count.get("flops", np.nan)), np.median(ours), bf16)
    rows = [compare(f"clip, {name} image tower", "image", ours / batch, torch / batch, least=goal, bound=bound)]
    step, kept = jax.jit(one.step, donate_argnums=0), {"state": state}

    def mine() -> float:
        kept["state"], metrics = step(kept["state"], given)
        return float(metrics["loss"])

    their_step = plain.training_step(net, theirs, tokens.astype(np.int64), bf16)
    for number in range(2):  # the second is that of moved parameters
        agree(f"{name}, loss of training step {number}", mine(), their_step(), 2 * gap)
    ours, torch = interleaved(repeats, mine, their_step)
    bound = _bound(one.flops(), np.median(ours), bf16)
    rows.append(
        compare(f"clip, {name} step, batch {batch}", "image", ours / batch, torch / batch, least=goal, bound=bound)
    )
    return rows


def _unit(x: Any) -> np.ndarray:
    return np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)


def _bound(flops: float, seconds: float, bf16: bool) -> str:
    return f"flops: {flops / seconds / 1e9:,.0f} of {speed.peak(bf16) / jax.device_count() / 1e9:,.0f} Gflop/s"


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

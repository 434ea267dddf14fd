"""Arms' losses, chunked and sharded gradients, and a run's folder: resumed, stopped, refused."""

import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mmcl_theory import losses
from sims.clip import train
from sims.clip.config import ARMS, PRESETS, Config
from sims.clip.fit import metrics, prepare, trained, training
from sims.clip.model import learner as learning
from sims.clip.model import models
from sims.clip.model.learner import Learner
from sims.clip.records import captions, sources
from sims.clip.scenes import generation
from sims.engine import store
from sims.engine.flags import UsageError, WorkFailed
from tests.helpers import ROOT, assert_refused, assert_refuses, json_lines, python

SLOW = pytest.mark.slow
NANO = models.Architecture("nano", 8, models.ViTShape(1, 16, 16, head_width=8), 32, models.TextShape(8, 400, 16, 2, 1))
NANO_RN = models.Architecture("nano_rn", 8, models.ResNetShape((1, 1), 4, 2), 32, NANO.text)


@pytest.fixture(autouse=True)
def nano(float32, monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, "nano", NANO)
    monkeypatch.setitem(models.ARCHITECTURES, "nano_rn", NANO_RN)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Scenes, few and small."""
    out = tmp_path_factory.mktemp("scenes") / "scenes"
    generation.make(out, generation.Config(train=96, test=1, side=32))
    return out


def config_of(root, **changed):
    given = {
        "data": f"coco:{root}/coco", "architecture": "nano", "batch_size": 16, "steps": 12, "held_out": 8,
        "context_length": 8, "vocabulary_size": 400, "warm_up": 2,
    }  # fmt: skip
    return Config(**(given | changed))


def learner_of(arm="clip", arch=NANO, **changed):
    return Learner(Config(arm=arm, batch_size=16, **changed), arch, 0 if ARMS[arm].reads else 10, 100)


def started(one):
    """Compiled: one by one, the initial arrays take seconds."""
    return jax.jit(one.start)(jax.random.key(0))


def batch_of(arm="clip", n=16, seed=0):
    rng = np.random.default_rng(seed)
    views = (2,) if arm == "sup_con" else ()
    return {
        "image": rng.integers(0, 256, (n, *views, 32, 32, 3), dtype=np.uint8),
        "tokens": rng.integers(1, 400, (n, 8)).astype(np.int32),
        "label": (np.arange(n) % 4).astype(np.int32),
    }


def distance(a, b):
    """Norm of the difference of two trees, relative to the second's."""
    of = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(float) for tree in (a, b)]
    return np.linalg.norm(of[0] - of[1]) / np.linalg.norm(of[1])


def in_chunks(one, chunks):
    return dataclasses.replace(one, config=dataclasses.replace(one.config, chunks=chunks))


def gradients(one, batch):
    """State; `gradient` of the whole batch, and in 4 chunks; the mean of the gradients of 4 parts, each by itself."""
    state = started(one)
    at, of_whole = (state.params, state.batch_stats), jax.jit(one.gradient)
    apart = [of_whole(*at, jax.tree.map(lambda x, i=i: x[i::4], batch))[1] for i in range(4)]
    mean = jax.tree.map(lambda *g: sum(g) / 4, *apart)
    return state, of_whole(*at, batch), jax.jit(in_chunks(one, 4).gradient)(*at, batch), mean


@SLOW
@pytest.mark.parametrize(
    "arm",
    ["clip", *(pytest.param(a, marks=pytest.mark.long) for a in ("clip_no_intra", "siglip", "sup_con", "supervised"))],
)
def test_chunks_give_the_gradient_of_the_whole_batch(arm):
    _, (loss, gradient, _), chunked, apart = gradients(learner_of(arm), batch_of(arm))
    assert float(chunked[0]) == pytest.approx(float(loss), rel=1e-6)
    assert distance(chunked[1], gradient) < 1e-5
    if arm != "supervised":  # whose loss is a mean over examples: chunks of it are as good
        assert distance(apart, gradient) > 1e-2


@SLOW
def test_a_chunk_of_a_resnet_has_its_own_batch_statistics():
    """The gradient in chunks is the mean of the chunks' own, not that of the whole batch."""
    state, (_, together, stats), (_, chunked, _), apart = gradients(learner_of("supervised", NANO_RN), batch_of())
    assert distance(stats, state.batch_stats) > 1e-3
    assert distance(chunked, apart) < 1e-5 and distance(chunked, together) > 1e-3


def embeddings(seed=3, n=16):
    x = np.random.default_rng(seed).standard_normal((2, n, 8))
    return tuple(jnp.asarray(a, jnp.float32) for a in x)


def test_losses_are_the_librarys():
    image, text = embeddings()
    batch = jax.tree.map(jnp.asarray, batch_of())
    params = {"model": {"logit_scale": jnp.float32(np.log(5.0))}, "bias": jnp.float32(-3.0)}

    def loss(arm, **changed):
        return float(jax.jit(learner_of(arm, **changed).loss)(params, (image, text), batch))

    @functools.partial(jax.jit, static_argnames="same_class_weight")
    def info_nce(**weighted):
        return losses.info_nce(image, text, temperature=0.2, normalize=True, **weighted)

    plain = info_nce()
    none, some = (info_nce(labels=batch["label"], same_class_weight=weight) for weight in (0.0, 0.3))
    assert loss("clip") == loss("clip_labels") == loss("clip_masked") == pytest.approx(float(plain), rel=1e-6)
    assert loss("clip_no_intra") == pytest.approx(float(none), rel=1e-6) != pytest.approx(float(plain), rel=1e-3)
    assert loss("clip", same_class_weight=0.3) == pytest.approx(float(some), rel=1e-6)
    score = np.asarray(image) @ np.asarray(text[:4]).T.astype(float)
    expected = np.mean(np.log(np.exp(score).sum(1)) - score[np.arange(16), batch["label"]])
    supervised = jax.jit(learner_of("supervised").loss)(params, (jnp.asarray(score, jnp.float32),), batch)
    assert float(supervised) == pytest.approx(expected, rel=1e-5)
    both, twice = np.concatenate([image, text]), np.concatenate([batch["label"]] * 2)
    sup_con = jax.jit(functools.partial(losses.sup_con, temperature=0.1))(both, twice)
    assert loss("sup_con") == pytest.approx(float(sup_con), rel=1e-6)
    siglip = jax.jit(losses.siglip)(image, text, scale=5.0, bias=-3.0)
    assert loss("siglip") == pytest.approx(float(siglip), rel=1e-6)


def test_pairs_with_one_caption_are_no_negatives_where_asked():
    image, text = embeddings()
    batch = batch_of()
    batch["tokens"][5], batch["tokens"][9] = batch["tokens"][2], batch["tokens"][2]
    batch, text = jax.tree.map(jnp.asarray, batch), text.at[5].set(text[2]).at[9].set(text[2])
    params = {"model": {"logit_scale": jnp.float32(np.log(5.0))}}
    found = jax.jit(learner_of(same_captions=False).loss)(params, (image, text), batch)
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (np.asarray(image), np.asarray(text)))
    scores, twins = 5.0 * x @ y.T, np.isin(np.arange(16), [2, 5, 9])
    both = []
    for s in (scores, scores.T):
        for i in range(16):
            others = [j for j in range(16) if j != i and not (twins[i] and twins[j])]
            weight = 15 / len(others)  # the total weight of the negatives stays
            both.append(np.log(np.exp(s[i, i]) + weight * np.exp(s[i, others]).sum()) - s[i, i])
    assert float(found) == pytest.approx(np.mean(both), rel=1e-5)
    plain = jax.jit(learner_of().loss)(params, (image, text), batch)
    assert float(plain) != pytest.approx(np.mean(both), rel=1e-3)


@SLOW
def test_decay_spares_scales_and_the_logit_scale_is_kept_in_range():
    one = learner_of("siglip", weight_decay=1.0)
    state = started(one)
    assert float(state.params["model"]["logit_scale"]) == pytest.approx(np.log(10.0))
    assert float(state.params["bias"]) == -10
    nothing = jax.tree.map(np.zeros_like, state.params)
    optimizer = one.optimizer()
    update = jax.jit(optimizer.update)
    _, at = update(nothing, state.optimizer, state.params)  # the rate is 0 at the first step
    change, _ = update(nothing, at, state.params)
    for path, value in jax.tree_util.tree_leaves_with_path(change):
        assert (np.abs(value).max() > 0) == (value.ndim > 1), jax.tree_util.keystr(path)
    model = {**state.params["model"], "logit_scale": jnp.float32(9.0)}
    far = dataclasses.replace(state, params={**state.params, "model": model})
    moved, metrics = jax.jit(one.step)(far, batch_of())
    for scale in (moved.params["model"]["logit_scale"], metrics["logit_scale"]):
        assert float(scale) == pytest.approx(np.log(100.0))


def test_the_rate_warms_up_and_falls_to_nothing():
    one = Learner(Config(warm_up=10, learning_rate=1e-3), NANO, 0, 50)
    rates = np.asarray(jax.jit(jax.vmap(one.schedule))(np.arange(51)))
    np.testing.assert_allclose(rates[[0, 5, 10, 30, 50]], [0, 5e-4, 1e-3, 5e-4, 0], atol=1e-9)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()


def test_a_writer_says_what_its_arm_is_about():
    record = sources.Record(np.zeros((1, 1, 3), np.uint8), ("a Big red Teapot, tilted, in a dark sea", "x"), 1, "i")
    rng = np.random.default_rng(0)
    assert captions.Writer("labels", ("cat", "tea pot"))(record, rng) == "a photo of a tea pot."
    told = [captions.Writer("natural")(record, rng) for _ in range(200)]
    assert set(told) == set(record.captions) and 60 < told.count("x") < 140
    one = dataclasses.replace(record, captions=record.captions[:1])
    masked = captions.Writer("masked", ("cat", "Teapot"), 0.3)
    counts = {word: 0 for word in one.captions[0].split()}
    for _ in range(4000):
        for word in set(masked(one, rng).split()):
            counts[word] += 1
    for word in ("a", "Teapot,", "in"):
        assert counts[word] == 4000
    low, high = scipy.stats.binom.interval(1 - 1e-7, 4000, 0.3)
    for word in ("Big", "red", "tilted,", "dark", "sea"):
        assert low <= counts[word] <= high, word
    assert not low <= scipy.stats.binom.mean(4000, 0.4) <= high
    unlabelled = dataclasses.replace(one, label=-1)
    assert "Teapot," not in captions.Writer("masked", ("cat", "Teapot"), 0.0)(unlabelled, rng)


def losses_of(out):
    lines = json_lines(out / "metrics.jsonl")
    return {line["step"]: (line["loss"], line["gradient_norm"]) for line in lines if "loss" in line}


def checkpoints_of(out):
    return sorted(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())


def state_of(out):
    encoder = trained.load(out)
    rng = np.random.default_rng(0)
    found = encoder.encode_image(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    return found if encoder.encode_text is None else np.concatenate([found, encoder.encode_text(["a red teapot"])])


def how(**changed):
    return training.How(**({"log_every": 3, "save_every": 5, "tensorboard": False, "quiet": True} | changed))


@SLOW
@pytest.mark.parametrize("arm, stops", [("clip", (1, 7)), pytest.param("sup_con", (7,), marks=pytest.mark.long)])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(root, tmp_path, arm, stops):
    config = config_of(root, arm=arm)
    training.run(config, tmp_path / "whole", how())
    for step in (*stops, 100):
        training.run(config, tmp_path / "parts", how(stop_at=step))
    assert sorted(losses_of(tmp_path / "whole")) == list(range(1, 13))
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    np.testing.assert_array_equal(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    training.run(dataclasses.replace(config, seed=1), tmp_path / "other", how())
    assert losses_of(tmp_path / "other")[5] != losses_of(tmp_path / "whole")[5]


@SLOW
def test_a_finished_run_is_left_alone_and_another_one_refused(root, tmp_path):
    config, out, again = config_of(root, steps=4), tmp_path / "run", tmp_path / "again"
    result = training.run(config, out, how(tensorboard=True))
    (events,) = (out / "tensorboard").iterdir()
    assert events.stat().st_size > 500
    assert result["steps"] == 4 and result["bad_records"] == 0 and result["records"] == 88
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    assert training.run(config, out, how()) == result
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())
    other = dataclasses.replace(config, architecture="ViT-tiny")
    assert_refuses("holds a different run (differs in architecture)", training.run, other, out, how())
    before = state_of(out)
    other = dataclasses.replace(config, steps=3, vocabulary_size=350)
    training.run(other, out, how(overwrite=True))
    training.run(other, again, how())
    assert sorted(losses_of(out)) == [1, 2, 3] and losses_of(out) == losses_of(again)
    for name in ("tokenizer.json", "data.json"):  # of the run that was there nothing stays
        assert (out / name).read_bytes() == (again / name).read_bytes()
    np.testing.assert_array_equal(state_of(out), state_of(again))
    assert not np.array_equal(state_of(out), before)


@SLOW
def test_other_data_under_the_same_name_is_refused(root, tmp_path):
    folder = shutil.copytree(root / "coco", tmp_path / "coco")
    config = config_of(root, data=f"coco:{folder}")
    training.run(config, tmp_path / "run", how(stop_at=3))
    generation.write_captions(root, 0.0, 0.0, 0.0, folder / "annotations/captions_train2017.json")
    assert_refuses(("is not what", "was begun with"), training.run, config, tmp_path / "run", how())


@SLOW
def test_the_best_checkpoint_is_kept_beside_the_last(root, tmp_path, monkeypatch):
    told = jnp.array([0, 0, 3.0, 0, 1.0, 0, 2.0, 0, 2.5])
    monkeypatch.setattr(Learner, "held_out_loss", lambda self, state, batch: told[state.step])
    training._program.cache_clear()
    result = training.run(config_of(root, steps=8), tmp_path / "run", how(save_every=2))
    training._program.cache_clear()
    assert (result["best_step"], result["held_out_loss"]) == (4, 2.5)
    assert checkpoints_of(tmp_path / "run") == [4, 8]
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    best, last = (trained.load(tmp_path / "run", which).encode_image(image) for which in ("best", "last"))
    assert np.abs(best - last).max() > 1e-4


@SLOW
def test_a_loss_that_is_not_finite_stops_with_the_ids_of_its_batch(root, tmp_path, monkeypatch):
    plain = Learner.step

    def broken(self, state, batch):
        state, metrics = plain(self, state, batch)
        return state, {**metrics, "loss": jnp.where(state.step == 7, jnp.nan, metrics["loss"])}

    monkeypatch.setattr(Learner, "step", broken)
    training._program.cache_clear()
    config = config_of(root)
    with pytest.raises(WorkFailed, match="step 7 is not finite"):
        training.run(config, tmp_path / "run", how())
    told = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    data = prepare.open_data(config)
    one = learner_of()
    with training.batches(dataclasses.replace(one, config=config), data, data.trained, 16, how(), start=6) as feed:
        expected = [data.source[int(i)].id for i in next(feed)["index"]]
    assert told["step"] == 7 and told["ids"] == expected and len(set(expected)) == 16
    assert checkpoints_of(tmp_path / "run") == [5]
    assert sorted(losses_of(tmp_path / "run")) == [1, 2, 3, 4, 5, 6]  # the way there is told
    monkeypatch.setattr(Learner, "step", plain)
    training._program.cache_clear()
    training.run(config, tmp_path / "run", how())
    assert sorted(losses_of(tmp_path / "run")) == list(range(1, 13))


@SLOW
def test_records_that_cannot_be_read_are_told_and_too_many_refused(root, tmp_path):
    data = prepare.open_data(config_of(root))
    folder = shutil.copytree(root / "coco", tmp_path / "coco")
    ids = [data.source[int(i)].id for i in (*data.trained[:3], data.held_out[0])]
    for name in ids:
        next(folder.rglob(f"{pathlib.Path(name).stem}.jpg")).write_bytes(b"not an image")
    config = config_of(root, data=f"coco:{folder}")
    result = training.run(config, tmp_path / "run", how())
    told = [line["id"] for line in json_lines(tmp_path / "run" / "skipped.jsonl")]
    assert sorted(told) == sorted(ids) and result["bad_records"] == 4
    with pytest.raises(WorkFailed, match="more than 2 images cannot be read"):
        training.run(config, tmp_path / "few", how(max_bad=2, log_every=1))
    # What was learnt before is kept, the same is refused again, and the run goes on where more are allowed.
    before = len(losses_of(tmp_path / "few"))
    with pytest.raises(WorkFailed, match="more than 2 images cannot be read"):
        training.run(config, tmp_path / "few", how(max_bad=2, log_every=1))
    training.run(config, tmp_path / "few", how(max_bad=4, log_every=1))
    assert before < 12 and losses_of(tmp_path / "few") == losses_of(tmp_path / "run")


@SLOW
def test_a_run_without_class_names_is_loaded(root, tmp_path):
    lines = ["path,caption"] + [f"{path},scene number {i}" for i, path in enumerate((root / "coco").rglob("*.jpg"))]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    training.run(config_of(root, data=f"csv:{tmp_path}/data.csv", steps=2), tmp_path / "run", how())
    assert trained.load(tmp_path / "run").encode_text(["scene"]).shape == (1, 8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(folder with one checkpoint, a learner's state in it, where it is read into)."""
    out, one = tmp_path_factory.mktemp("kept"), learner_of()
    with jax.enable_x64(False):
        state, wanted = started(one), trained.abstract(one, learning.mesh(), False)
        with trained.manager(out) as kept:
            trained.save(kept, 7, state, 2.5)
    return out, state, wanted


def read_back(out, wanted):
    with trained.manager(out, read_only=True) as kept:
        return trained.restore(kept, 7, wanted, out)


@pytest.mark.parametrize("count", [4, pytest.param(60, marks=pytest.mark.long)])
def test_a_bit_that_flips_in_a_checkpoint_is_seen(checkpoint, tmp_path, monkeypatch, count):
    """In any file: what is read is what was written, or the refusal is a line that names the folder."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # put back at the end
    out, state, wanted = checkpoint
    assert trained.digest(read_back(out, wanted)) == trained.digest(state)
    shutil.copytree(out, tmp_path / "run")
    parts = sorted(path for path in (tmp_path / "run").rglob("*") if path.stat().st_size and path.is_file())
    rng, refused = np.random.default_rng(0), 0
    flips = [max(parts, key=lambda path: path.stat().st_size)] * count + [parts[i % len(parts)] for i in range(count)]
    for path in flips:
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert trained.digest(read_back(tmp_path / "run", wanted)) == trained.digest(state)
        except UsageError as error:
            refused += 1
            assert f"{tmp_path}/run/checkpoints/7" in str(error) and "\n" not in str(error)
        path.write_bytes(whole)
    assert refused >= count / 2


@SLOW
def test_a_refused_checkpoint_is_one_line_on_the_screen(checkpoint, tmp_path):
    """In a process of its own, to whose stderr orbax's threads write."""
    shutil.copytree(checkpoint[0], tmp_path / "run")
    for path in (tmp_path / "run/checkpoints/7/default").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    script = (
        "import pathlib, sys; from tests.clip.test_training import learner_of, learning, read_back, trained\n"
        "from sims.engine.flags import UsageError\n"
        "try: read_back(pathlib.Path(sys.argv[1]), trained.abstract(learner_of(), learning.mesh(), False))\n"
        "except UsageError as error: print(error, file=sys.stderr)"
    )
    done = python("-c", script, f"{tmp_path}/run")
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1 and "checkpoints/7" in done.stderr


def test_other_weights_under_the_digest_are_refused(checkpoint, tmp_path, capsys):
    out, state, wanted = checkpoint
    moved = dataclasses.replace(state, params=jax.tree.map(lambda x: x + 1e-3, state.params))
    assert trained.digest(moved) != trained.digest(state)
    with trained.manager(tmp_path) as kept:
        trained.save(kept, 7, moved, 2.5)
    told = tmp_path / "checkpoints/7/metrics/metrics"
    told.write_bytes((out / "checkpoints/7/metrics/metrics").read_bytes())
    assert_refuses("checkpoints/7 is damaged (its digest differs); without that step", read_back, tmp_path, wanted)
    # Of an earlier version: no digest, and said so.
    told.write_text('{"held_out_loss": 2.5}')
    assert trained.digest(read_back(tmp_path, wanted)) == trained.digest(moved)
    assert "was written without a digest, by an earlier version" in capsys.readouterr().err
    for content in ('{"held_out_loss": 2.5, "sha256": "x", "seal": "y"}', "[" * 100_000, "", "[]", "\0"):
        told.write_text(content)
        assert_refuses("checkpoints/7/metrics/metrics is damaged", trained.manager, tmp_path, read_only=True)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"classes": "cat"}', '{"classes": [1]}', "\xff"])
def test_damaged_files_of_a_run_are_named_in_a_line(root, tmp_path, content):
    config = config_of(root)
    store.begin(tmp_path, config.flat())
    for name, call in (
        (prepare.DATA, lambda: prepare.open_data(config, tmp_path)),
        (training.RESULT, lambda: training.run(config, tmp_path)),
    ):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        if name == training.RESULT and content.startswith('{"'):
            continue  # any object is one
        assert len(assert_refuses(f"{name} is damaged", call)) < 600


def test_damaged_lines_are_refused_and_a_cut_last_one_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert metrics.read_lines(path, {"step": int}) == [{"step": 1}, {"step": 2}]
    for bad in ("{", "[]", "3", '{"step": "x"}', "[" * 100_000, "\0"):
        path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
        assert len(assert_refuses("metrics.jsonl, line 2, is damaged", metrics.read_lines, path, {"step": int})) < 400
    assert metrics.read_lines(tmp_path / "none", {}) == []


@SLOW
@pytest.mark.parametrize("arm", ["supervised", "sup_con"])
def test_a_run_with_a_head_is_loaded_with_it(root, tmp_path, arm):
    config = config_of(root, arm=arm, steps=3, held_out=16)
    training.run(config, tmp_path / "run", how(save_every=1))
    encoder = trained.load(tmp_path / "run")
    names, weights, bias = encoder.head
    assert encoder.encode_text is None and len(names) == 10 and weights.shape == (10, 8) and bias.shape == (10,)
    data = prepare.open_data(config)
    one = Learner(config, NANO, 10, 3)
    with training.batches(one, data, data.held_out, 16, how()) as feed:
        batch = next(feed)
    if arm == "supervised":  # the scores of features and head are those behind the loss that was told
        scores = encoder.encode_image(batch["image"]) @ weights.T + bias
        told = json.loads((tmp_path / "run" / "result.json").read_text())["held_out_loss"]
        loss = losses.cross_entropy(jnp.asarray(scores), jnp.asarray(batch["label"]))
        assert float(loss) == pytest.approx(told, 1e-4)
    else:
        with np.load(tmp_path / "run" / "head.npz") as saved:
            np.savez(tmp_path / "run" / "head.npz", weights=saved["weights"], bias=saved["bias"], step=2)
        assert_refuses("has no linear probe for step 3", trained.load, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for name in ("config.json", "data.json"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "empty")
    assert_refuses("has no checkpoint yet", trained.load, tmp_path / "empty")
    assert not (tmp_path / "empty" / "checkpoints").exists()
    flat = {**config.flat(), "colour": "red"}
    told = {"format": store.FORMAT, "config": flat, "config_hash": store.config_hash(flat)}
    (tmp_path / "empty" / "config.json").write_text(json.dumps(told))
    assert_refuses("was written by another version", trained.load, tmp_path / "empty")


@SLOW
def test_the_held_out_loss_does_not_depend_on_its_pieces():
    one = learner_of()
    state, batch = started(one), batch_of(n=32)
    found = [float(jax.jit(in_chunks(one, c).held_out_loss)(state, batch)) for c in (1, 4)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    apart = [float(one.held_out_loss(state, jax.tree.map(lambda x, i=i: x[i::2], batch))) for i in range(2)]
    assert np.mean(apart) != pytest.approx(found[0], rel=1e-2)


def labelled(labels):
    """A source of these labels, of which `select` reads no more."""
    names = tuple(map(str, range(max(labels) + 1)))
    pictures = np.zeros((len(labels), 1, 1, 3), np.uint8)
    return sources.Pictures("some", names, np.array(labels, np.int32), pictures, "train")


def test_a_part_of_the_records_lies_in_every_larger_one():
    """Twin: at another seed it does not, and no seed takes the first records."""
    source = labelled([0, 1] * 500)
    config = Config(held_out=200, batch_size=2)
    parts = {p: prepare.select(dataclasses.replace(config, percent=p), source) for p in (1, 25, 50, 75, 100)}
    assert [len(trained) for trained, _ in parts.values()] == [8, 200, 400, 600, 800]
    for small, large in itertools.pairwise(parts.values()):
        assert set(small[0]) < set(large[0]) and not set(large[0]) & set(large[1])
        assert (small[1] == large[1]).all() and len(small[1]) == 200
    assert sorted({*parts[100][0], *parts[100][1]}) == list(range(1000))
    other, _ = prepare.select(dataclasses.replace(config, percent=25, seed=1), source)
    assert not set(other) <= set(parts[50][0]) and parts[25][0].max() > 500
    assert (prepare.select(config, source)[0] == parts[100][0]).all()


def test_arms_that_need_labels_see_the_records_of_those_that_do_not():
    """All but the unlabelled ones and what takes their places; twin: at another seed, no more than by chance."""
    source = labelled(np.where(np.arange(1000) % 50 == 7, -1, np.arange(1000) % 2))
    config = Config(held_out=200, batch_size=2, percent=50)
    every, labels = (prepare.select(dataclasses.replace(config, arm=arm), source) for arm in ("clip", "clip_no_intra"))
    assert all((source.labels[part] >= 0).all() for part in labels) and (source.labels[every[0]] < 0).any()
    shared = [len(set(a) & set(b)) / len(b) for a, b in zip(every, labels, strict=True)]
    assert min(shared) > 0.93
    other = prepare.select(dataclasses.replace(config, arm="clip_no_intra", seed=1), source)
    assert max(len(set(a) & set(b)) / len(b) for a, b in zip(every, other, strict=True)) < 0.6


def test_the_validation_part_has_its_share_of_each_class_at_any_seed():
    """Twin: the held-out records are others at another seed."""
    labels = np.repeat([0, 1, 2, -1], [10, 100, 1, 30])
    kept = prepare.validation(labels, 0.3)
    assert np.bincount(labels[kept]).tolist() == [3, 30] and (np.diff(kept) > 0).all()
    assert kept[3:].tolist() != list(range(10, 40))  # drawn, and not the first of the class
    seen = []
    for seed in range(3):
        config = Config(held_out=8, batch_size=2, validation=0.3, seed=seed)
        trained, held_out = prepare.select(config, labelled(labels))
        used = {*trained, *held_out}
        assert used == set(np.flatnonzero(labels >= 0)) - set(kept) and len(used) == 111 - 33
        seen.append(set(held_out))
    assert seen[0] != seen[1] != seen[2]


def test_settings_from_before_leave_a_run_as_it_was_begun(tmp_path):
    plain = Config()
    assert not {"percent", "validation"} & set(plain.flat())
    store.begin(tmp_path, plain.flat())
    store.check(tmp_path, dataclasses.replace(plain, percent=100.0).flat())
    assert_refuses("differs in percent", store.check, tmp_path, dataclasses.replace(plain, percent=50.0).flat())


@SLOW
def test_the_steps_of_a_part_follow_its_records(root, tmp_path):
    """Epochs are passes over the part; another part is another run, whose folder is refused."""
    config = config_of(root, steps=None, epochs=2.0, batch_size=8, percent=50.0)
    result = training.run(config, tmp_path / "run", how())
    assert (result["records"], result["steps"]) == (44, 2 * (44 // 8))
    assert training.run(config, tmp_path / "run", how()) == result
    other = dataclasses.replace(config, percent=25.0)
    assert_refuses("holds a different run (differs in percent)", training.run, other, tmp_path / "run", how())
    assert trained.load(tmp_path / "run").encode_text(["a broom"]).shape == (1, 8)


FEW = ("--data=coco:ROOT/coco", "--batch_size=8", "--held_out=8")


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--preset=big"], "--preset must be of scenes, coco_rn50"),
        (["--arm=clap"], "--arm must be of clip, clip_no_intra"),
        (["--pi=1.5"], "--pi must be in [0, 1], got 1.5"),
        (["--same_class_weight=0.5", "--arm=siglip"], "--same_class_weight has no meaning for --arm=siglip"),
        (["--pi=0.5", "--arm=clip_labels"], "--pi has no meaning for --arm=clip_labels"),
        (["--nosame_captions", "--arm=clip_no_intra"], "--nosame_captions cannot be combined"),
        (["--batch_size=6", "--chunks=4"], "--chunks must divide --batch_size"),
        (["--learning_rate=0"], "--learning_rate must be in (0, 1]"),
        (["--steps=0"], "--steps must be in [1,"),
        (["--workers=-1"], "--workers must be >= 0, got -1"),
        (["--save_every=0"], "--save_every must be >= 1, got 0"),
        (["--max_bad=-1"], "--max_bad must be >= 0, got -1"),
        (["--temperature=2"], "--temperature must be in [0.01, 1], got 2"),
        (["--percent=0"], "--percent must be in [1, 100], got 0"),
        (["--percent=101"], "--percent must be in [1, 100], got 101"),
        (["--percent=5", *FEW], "--percent=5 leaves 4 of the 88 records of --data=coco:"),
        (["--validation=1"], "--validation must be in [0, 1), got 1"),
        (["--validation=0.3", "--data=csv:ROOT/bare.csv"], "bare.csv has no labels, which --validation needs"),
        (["--architecture=RN51", *FEW], "--architecture must be of RN50"),
        (["--image_size=40", *FEW], "image_size 40 must be a multiple of"),
        (["--data=coco:ROOT/coco", "--batch_size=96"], "has 96 usable records; --batch_size and --held_out need"),
        (["--data=coco:/nowhere"], "/nowhere"),
        (["--data=wolves"], "--data"),
        (["--vocabulary=ROOT/scenes.json", *FEW], "scenes.json"),
        (["--classes=ROOT/wnids.json", "--data=tars:x"], "has the class name 'n01440764'"),
        (["--classes=ROOT/deep.json", "--data=tars:x"], "nested too deeply"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(mmcl, monkeypatch, root, tmp_path, arguments, told):
    monkeypatch.setattr("sims.engine.devices._start_jax", lambda *_: None)
    out = tmp_path / "out"
    (root / "wnids.json").write_text('["n01440764", "n01443537"]')
    (root / "deep.json").write_text("[" * 100_000)
    (root / "bare.csv").write_text("path,caption\nx.png,a picture\n")
    assert_refused(mmcl(train, *(a.replace("ROOT", str(root)) for a in arguments), f"--out={out}"), told)
    assert not (out / "config.json").exists()


def test_the_published_recipes_are_as_documented():
    cc3m = PRESETS["cc3m_rn50"]
    assert (cc3m.architecture, cc3m.batch_size, cc3m.epochs, cc3m.learning_rate) == ("RN50", 1024, 30, 1e-3)
    assert (cc3m.weight_decay, cc3m.beta_2, cc3m.epsilon, cc3m.temperature) == (0.1, 0.999, 1e-8, 0.07)
    vit = PRESETS["cc3m_vit"]
    assert (vit.learning_rate, vit.weight_decay, vit.beta_2, vit.epsilon) == (5e-4, 0.5, 0.98, 1e-6)
    for preset in PRESETS.values():
        preset.check()


def train_command(root, out, *more):
    given = {
        "data": f"coco:{root}/coco", "architecture": "ViT-tiny", "batch_size": 16, "held_out": 8,
        "vocabulary_size": 400, "context_length": 16, "steps": 40, "log_every": 1, "save_every": 1000, "out": out,
    }  # fmt: skip
    given |= dict(flag.removeprefix("--").split("=", 1) for flag in more)
    return ["-m", "sims.clip.train", "--notensorboard", *(f"--{k}={v}" for k, v in given.items())]


def begun(root, out, *more):
    command = [sys.executable, *train_command(root, out, *more)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, text, process, seconds=120):
    until = time.time() + seconds
    while time.time() < until and process.poll() is None:
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} has no {text!r}: {process.communicate()}")


@pytest.mark.parametrize("kills", [pytest.param(1, marks=SLOW), pytest.param(2, marks=pytest.mark.long)])
def test_signals_save_and_kills_lose_no_bit(root, tmp_path, kills):
    """SIGTERM saves the very step; SIGKILL, also in the middle of a save, loses what came after the last checkpoint."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    python(*train_command(root, whole), check=True)
    one = begun(root, parts)
    wait_for(parts / "metrics.jsonl", '"step": 9,', one)
    one.send_signal(signal.SIGTERM)
    _, error = one.communicate(timeout=120)
    assert one.returncode == 143 and "interrupted" in error and "Traceback" not in error
    saved = checkpoints_of(parts)
    assert len(saved) == 1 and 9 <= saved[0] < 40 and not (parts / "result.json").exists()
    rng = np.random.default_rng(0)
    for step in (saved[0] + 3, min(saved[0] + 9, 36))[:kills]:
        one = begun(root, parts, "--save_every=2")
        wait_for(parts / "metrics.jsonl", f'"step": {step},', one)
        time.sleep(rng.uniform(0, 0.1))
        one.send_signal(signal.SIGKILL)
        one.communicate(timeout=60)
    # A save that was cut short leaves orbax's own folder, which is no damaged checkpoint.
    (parts / "checkpoints" / "99.orbax-checkpoint-tmp" / "default").mkdir(parents=True)
    python(*train_command(root, parts), check=True)
    assert losses_of(parts) == losses_of(whole) and len(losses_of(whole)) == 40


@pytest.mark.long
def test_two_processes_train_one_model(root, tmp_path):
    """The global batch over two hosts gives the losses of one, to rounding."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    python(*train_command(root, tmp_path / "one"), check=True)
    joined = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    both = [begun(root, tmp_path / "two", *joined, f"--process_id={i}") for i in range(2)]
    for process in both:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert list(one) == list(two)
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=2e-3)
    np.testing.assert_allclose(two[1], one[1], rtol=1e-5)


SHARDED = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 4)
from sims.clip.model import learner
from tests.clip.test_training import NANO, NANO_RN, batch_of, learner_of
cases = [("clip", NANO_RN, 2)]
if sys.argv[1] == "all":
    of = [("clip", NANO), ("clip_no_intra", NANO), ("sup_con", NANO), ("clip", NANO_RN)]
    cases = [(arm, arch, chunks) for arm, arch in of for chunks in (1, 2)]
for arm, arch, chunks in cases:
    one = learner_of(arm, arch, chunks=chunks, warm_up=0, learning_rate=1e-3)
    start = jax.jit(one.start)(jax.random.key(0))
    for devices, kind in ((1, "whole"), (4, "whole"), (4, "fsdp")):
        over = jax.make_mesh((devices,), ("data",), learner.mesh().axis_types, devices=jax.devices()[:devices])
        where = learner.shardings(jax.eval_shape(one.start, jax.random.key(0)), over, kind == "fsdp")
        if kind == "fsdp":  # as training starts
            state = jax.jit(one.start, out_shardings=where)(jax.random.key(0))
        else:
            state = jax.device_put(start, where)
        split = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state))
        step = jax.jit(one.step, out_shardings=(where, None))
        found = []
        for seed in range(3):
            state, metrics = step(state, learner.put(batch_of(arm, seed=seed), over))
            found += [float(metrics["loss"]), float(metrics["gradient_norm"])]
        print(arm, chunks, over.size, split, *(repr(x) for x in found))
"""


@pytest.mark.parametrize("cases", [pytest.param("few", marks=SLOW), pytest.param("all", marks=pytest.mark.long)])
def test_devices_and_split_parameters_change_nothing_but_rounding(cases):
    run = python("-c", SHARDED, cases)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert len(lines) == 3 * (8 if cases == "all" else 1)
    for a, b, c in zip(*[iter(lines)] * 3, strict=True):
        assert a[:2] == b[:2] == c[:2] and (a[2], b[2], c[2]) == ("1", "4", "4")
        assert int(b[3]) == 0 and int(c[3]) > 0
        for other in (b, c):
            np.testing.assert_allclose(np.array(other[4:], float), np.array(a[4:], float), rtol=1e-4)
        of_another_batch = np.roll(np.array(a[4:], float), 2)
        assert not np.allclose(np.array(b[4:], float), of_another_batch, rtol=1e-3)

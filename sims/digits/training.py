"""One run: train an arm in stages, on scenes drawn during training, and measure what it has learnt after each stage.

Training uses the distribution P (attribute = label w.p. p_spu) of the training items. All accuracies are on scenes with
test items. Where labels are noisy (`core_accuracy` below 1), test scenes have noisy labels too, and answers are judged
by them: on P* no classifier is better than `core_accuracy`. Zero-shot classification gives an image to the class whose
prompt has the larger score.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

import mmcl_theory as mt
from mmcl_theory import learners, losses
from sims.digits import arms, captions, encoders, scenes, vectors
from sims.digits.arms import ARMS, Arm, Point
from sims.digits.config import ITEMS
from sims.engine.grid import Task

PROMPTS = ("class", "item", "ensemble", "regression")
READOUTS = (*PROMPTS, "probe", "probe_shifted")
GROUPS = ("aligned", "conflicting")
LABELS = ("low", "high")  # -1, +1
FEATURES = ("item", "hue", "slant", "stroke", "size", "companion")
MEASURES = (
    *(f"{readout} {group} {label}" for readout in READOUTS for group in GROUPS for label in LABELS),
    *FEATURES,
    "temperature",
    "loss",
    *(f"digit {item} {group}" for item in range(ITEMS) for group in GROUPS),
)
_ENSEMBLE = 256  # captions of each class, on average
_RIDGE = 1e-3  # of probes and closed forms, relative to the mean variance of a feature

_MOST_FIT = 4096  # probes are fitted on at most twice as many scenes of each distribution
_LOSS_BATCHES = 16  # batches that the training loss is averaged over
_CHUNK = 1024  # images embedded at once
# Folded into a run's key for draws outside the steps; no step has such a number.
_SET, _ORDER, _FITTED = 2**32 - 1, 2**32 - 2, 2**32 - 3

State = dict[str, Any]
Batch = tuple[scenes.Scenes, Array]  # scenes and their texts


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all runs of a study share.

    Attributes:
      words: the words of the captions.
      kinds: -1 or +1 for each item.
      side: of a digit, in pixels.
      companion: whether scenes have a strip for a second digit.
      colours: (attribute, shade, channel) in 0..255; None: two hues.
      core_accuracy: P(label = the digit's kind); below 1 labels are noisy, see `scenes`.
      train_size: scenes of a training set that is drawn once; None: fresh scenes in every step.
      vectors: captions are vectors, not words.
      masking: of captions.
      stages: steps after which to measure.
      symmetric: scale pixels to [-1, 1], not [0, 1].
      init_scale: factor of all weights at the start.
      normalize: scale embeddings to unit length in the loss.
      learns_temperature: train the temperature from the axis's value on, as CLIP does; otherwise it keeps that value.
      test: scenes of each group. Probes are fitted on twice as many, at most 2 x 4096.
      closed: samples that closed forms are computed from.
      measures: of MEASURES, those that are measured.
    """

    words: captions.Lexicon
    kinds: tuple[int, ...]
    side: int
    companion: bool = False
    colours: scenes.Colours | None = None
    core_accuracy: float = 1.0
    train_size: int | None = None
    vectors: bool = False
    masking: str = "named"
    image_encoder: str = "cnn"
    text_encoder: str = "transformer"
    embed_dim: int = 32
    stages: tuple[int, ...] = (100, 200)
    symmetric: bool = False
    init_scale: float = 1.0
    normalize: bool = True
    batch_size: int = 256
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    learns_temperature: bool = True
    test: int = 1024
    closed: int = 16384
    bf16: bool = False
    measures: tuple[str, ...] = MEASURES

    @property
    def length(self) -> int:
        """Tokens of a caption."""
        return captions.length(self.companion)

    def modules(self, arm: Arm) -> tuple[Any, Any]:
        """(image encoder, text encoder). LeNet classifies from its last hidden layer, without an embedding."""
        dtype = jnp.bfloat16 if self.bf16 else None
        image, text = self.image_encoder, self.text_encoder
        if arm.linear:
            image, text = "linear", "linear" if self.vectors else "bag"
        return (
            encoders.image_encoder(image, self.embed_of(arm), self.side, dtype),
            encoders.text_encoder(text, self.embed_dim, len(self.words.words), dtype),
        )

    def embed_of(self, arm: Arm) -> int | None:
        """Dimensions of the image embedding; None: as many as the last hidden layer has."""
        classifies = arm.loss == "cross_entropy" and self.image_encoder == "lenet"
        return None if classifies else self.embed_dim


def task(name: str, setup: Setup, shared: Mapping[str, Any]) -> Task:
    """The arm's task for the engine: a run's outcomes are (stage, setup.measures).

    Entries that do not apply are NaN (prompts without text, the regression prompt without vectors, temperature without
    one, the small digit's probe without small digits, a digit that no test scene shows). Diverged runs are inf.

    shared: the `train` and `test` items.
    """
    arm = ARMS[name]

    def begin(key: Key[Array, ""], point: Point) -> State:
        return start(arm, setup, key, point)

    def stage(key: Key[Array, ""], point: Point, number: Int[Array, ""], state: State) -> tuple[State, Array]:
        state = train(arm, setup, key, point, number, state)
        measures = measure(arm, setup, key, point, state["params"])
        return state, measures[jnp.asarray([MEASURES.index(name) for name in setup.measures])]

    return Task(stage, may_lack=True, start=begin, stages=tuple(np.diff([0, *setup.stages]).tolist()), shared=shared)


def policy(arm: Arm, point: Point) -> mt.data.Captions:
    """The arm's caption policy: its own if it has one, else the axes'."""
    return mt.captions(*(arm.captions or (point["pi_core"], point["pi_spu"])))


def pairs(arm: Arm, setup: Setup, key: Key[Array, ""], point: Point, n: int) -> tuple[scenes.Scenes, Array]:
    """n fresh training scenes and the texts of their captions."""
    key_scene, key_text = jax.random.split(key)
    sample = draw(setup, key_scene, point, "train", n, point["p_spu"])
    return sample, write(setup, key_text, sample, policy(arm, point), point["pi_companion"])


def write(setup: Setup, key: Key[Array, ""], sample: scenes.Scenes, caps: mt.data.Captions, pi_companion: Any) -> Array:
    """Captions of scenes: tokens, (n, length), or vectors, (n, 200)."""
    caps = dataclasses.replace(caps, masking=setup.masking)
    if setup.vectors:
        return vectors.write(key, setup.kinds, sample, caps)
    return captions.write(key, setup.words, sample, caps, pi_companion)


def text_features(setup: Setup, texts: Array) -> Float[Array, "n v"]:
    """The text features of closed forms: caption vectors as they are, or counts of words."""
    return texts if setup.vectors else encoders.word_counts(texts, len(setup.words.words))


def draw(
    setup: Setup, key: Key[Array, ""], point: Point, items: str, n: int, p_spu: Any, once: bool = False
) -> scenes.Scenes:
    """n scenes of the `train` or `test` items, with the axes' contrast and small digits. once: use no item twice."""
    return scenes.render(point[items], lay_out(setup, key, point, items, n, p_spu, once))


def lay_out(
    setup: Setup, key: Key[Array, ""], point: Point, items: str, n: int, p_spu: Any, once: bool
) -> scenes.Layout:
    """The layout of the scenes that `draw` renders."""
    p_companion = point["p_companion"] if setup.companion else None
    law = point["hue_contrast"], p_companion, setup.colours
    return scenes.lay_out(key, point[items], n, p_spu, *law, once, setup.core_accuracy)


def training_set(arm: Arm, setup: Setup, key: Key[Array, ""], point: Point) -> tuple[scenes.Layout, Array]:
    """The run's training set, drawn once: layout and texts of all its scenes."""
    key_layout, key_text = jax.random.split(jax.random.fold_in(key, _SET))
    layout = lay_out(setup, key_layout, point, "train", setup.train_size or 0, point["p_spu"], once=True)
    sample = scenes.contents(point["train"], layout)
    return layout, write(setup, key_text, sample, policy(arm, point), point["pi_companion"])


def start(arm: Arm, setup: Setup, key: Key[Array, ""], point: Point) -> State:
    """Parameters and optimizer state before training; for a closed form, the fitted rule."""
    key = jax.random.fold_in(key, 0)
    if arm.loss is None:
        return {"params": closed_form(arm, setup, key, point)}
    key_image, key_text, key_head = jax.random.split(key, 3)
    image, text = setup.modules(arm)
    width = setup.side + (setup.side // 2 if setup.companion else 0)
    params: State = {"image": image.init(key_image, jnp.zeros((1, setup.side, width, 3)))}
    scalars: State = {}
    if arm.reads:
        blank = jnp.zeros((1, vectors.DIM)) if setup.vectors else jnp.zeros((1, setup.length), jnp.int32)
        params["text"] = text.init(key_text, blank)
        scale = jnp.log(10.0) if arm.loss == "siglip" else -jnp.log(point["temperature"])
        scalars["scalars"] = {"log_scale": jnp.asarray(scale, float), "bias": jnp.asarray(arms.SIGLIP_BIAS, float)}
    if arm.loss == "cross_entropy":
        width = setup.embed_of(arm) or encoders.LENET_FEATURES
        if setup.image_encoder == "lenet":
            key_kernel, key_bias = jax.random.split(key_head)
            like = encoders.uniform(width)
            params["head"] = {"kernel": like(key_kernel, (width, 2)), "bias": like(key_bias, (2,))}
        else:
            params["head"] = {"kernel": jax.random.normal(key_head, (width, 2)) / width**0.5, "bias": jnp.zeros(2)}
    params = {**jax.tree.map(lambda x: setup.init_scale * x, params), **scalars}
    return {"params": params, "optimizer": _optimizer(setup).init(params)}


def _optimizer(setup: Setup) -> optax.GradientTransformation:
    """Adam with a linear warm-up, or SGD; the rate is then constant, so that training time means one thing (X6).

    Weight decay is added to the gradients of all parameters but the temperature and SigLIP's bias.
    """
    if setup.optimizer == "sgd":
        optimizer = optax.sgd(setup.learning_rate, setup.momentum)
    else:
        optimizer = optax.adam(optax.linear_schedule(0.0, setup.learning_rate, max(1, setup.stages[-1] // 20)))
    if not setup.weight_decay:
        return optimizer

    def weights(params: State) -> State:
        return {name: jax.tree.map(lambda _, name=name: name != "scalars", part) for name, part in params.items()}

    return optax.chain(optax.add_decayed_weights(setup.weight_decay, weights), optimizer)


def train(arm: Arm, setup: Setup, key: Key[Array, ""], point: Point, number: Int[Array, ""], state: State) -> State:
    """The state after the steps of stage `number`."""
    if arm.loss is None:
        return state
    optimizer = _optimizer(setup)
    bounds = jnp.asarray([0, *setup.stages])
    begin, end = bounds[number], bounds[number + 1]

    def updated(state: State, i: Array, batch: Batch | None) -> State:
        gradient = jax.grad(lambda params: loss(arm, setup, jax.random.fold_in(key, i + 2), point, params, batch))
        updates, inner = optimizer.update(gradient(state["params"]), state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": inner}

    if setup.train_size is None:
        return jax.lax.fori_loop(begin, end, lambda i, state: updated(state, i, None), state)
    steps = setup.train_size // setup.batch_size  # records left over wait for another epoch's order
    known = training_set(arm, setup, key, point)

    def epoch(number: Array, state: State) -> State:
        order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, _ORDER), number), setup.train_size)

        def step(i: Array, state: State) -> State:
            at = jax.lax.dynamic_slice(order, ((i - number * steps) * setup.batch_size,), (setup.batch_size,))
            return updated(state, i, batch_of(known, point, at))

        return jax.lax.fori_loop(
            jnp.maximum(begin, number * steps), jnp.minimum(end, (number + 1) * steps), step, state
        )

    return jax.lax.fori_loop(begin // steps, -(-end // steps), epoch, state)


def batch_of(known: tuple[scenes.Layout, Array], point: Point, at: Int[Array, " n"]) -> Batch:
    """The pairs of a training set at these places."""
    layout, texts = known
    return scenes.render(point["train"], jax.tree.map(lambda x: x[at], layout)), texts[at]


def loss(
    arm: Arm, setup: Setup, key: Key[Array, ""], point: Point, params: State, batch: Batch | None = None
) -> Float[Array, ""]:
    """The arm's loss on a batch; None: on a fresh one."""
    key_batch, key_one, key_two = jax.random.split(key, 3)
    sample, tokens = batch or pairs(arm, setup, key_batch, point, setup.batch_size)
    image, text = setup.modules(arm)
    label = (sample.label + 1) // 2
    if arm.reads:
        scalars = params["scalars"]
        if not setup.learns_temperature:
            scalars = jax.lax.stop_gradient(scalars)
        embedded = image.apply(params["image"], scaled(setup, sample.image)), text.apply(params["text"], tokens)
        return arms.contrast(arm, *embedded, label, scalars, point, setup.normalize)
    if arm.loss == "cross_entropy":
        return losses.cross_entropy(_head(params, image.apply(params["image"], scaled(setup, sample.image))), label)
    views = (image.apply(params["image"], scaled(setup, arms.augment(k, sample.image))) for k in (key_one, key_two))
    return arms.alone(arm, *views, label)


def scaled(setup: Setup, image: Array) -> Array:
    """Pixels in the range that the encoders take."""
    return 2 * image - 1 if setup.symmetric else image


def _head(params: State, embedding: Float[Array, "n r"]) -> Float[Array, "n 2"]:
    return embedding @ params["head"]["kernel"] + params["head"]["bias"][None, :]


def closed_form(arm: Arm, setup: Setup, key: Key[Array, ""], point: Point) -> State:
    """W = S_I^-theta C S_T^-theta of pixels and text features from `closed` samples, with the mean image.

    S_I and S_T include a ridge of 1e-3 of their mean variance, as if pixels and text had that much noise (X10).
    """
    sample, tokens = pairs(arm, setup, key, point, setup.closed)
    pixels = sample.image.reshape(setup.closed, -1)
    counts = text_features(setup, tokens)
    mean = pixels.mean(0)
    weight = arms.same_class_weight(arm, point)
    number = None if weight is None else (sample.label + 1) // 2
    cross = learners.cross_covariance(pixels, counts, number, weight)
    if arm.theta == 0:
        return {"w": learners.linear_optimum(cross), "mean": mean}
    return {"w": learners.whitened_optimum(cross, covariance(pixels), covariance(counts), arm.theta), "mean": mean}


def covariance(x: Float[Array, "n d"]) -> Float[Array, "d d"]:
    """Sample covariance with its ridge."""
    centred = x - x.mean(0, keepdims=True)
    return ridge(centred.T @ centred / (len(x) - 1))


def ridge(cov: Any) -> Any:
    """A covariance (NumPy's or JAX's) with 1e-3 of its mean variance added to the diagonal."""
    return cov + _RIDGE * cov.trace() / len(cov) * np.eye(len(cov), dtype=cov.dtype)


def measure(arm: Arm, setup: Setup, key: Key[Array, ""], point: Point, params: State) -> Float[Array, " measures"]:
    """MEASURES of a trained arm: accuracies, linear probes of the image embedding, temperature and training loss.

    Probes are fitted on training items: those of FEATURES on P*, the label's on P (`probe`) and on P*
    (`probe_shifted`). For an arm without a classifier, the label's probe on P is its classifier. Probes of two-valued
    features are scored by balanced accuracy, so that chance is 1/2. Probes of items, which have ten values, are scored
    by accuracy. `digit` is the accuracy of each group's scenes that show this digit, under the prompt that the arm is
    judged by, or its classifier. A run with a parameter that is not finite gives inf.
    """
    keys = jax.random.split(jax.random.fold_in(key, 1), 3)
    n, fit = setup.test, min(setup.test, _MOST_FIT)
    tests = test_scenes(setup, keys[0], point)
    p_fit = jnp.concatenate([jnp.full(2 * fit, 0.5), jnp.broadcast_to(point["p_spu"], (2 * fit,))])
    fits = draw(setup, keys[1], point, "train", 4 * fit, p_fit)
    features = embed_image(arm, setup, params, jnp.concatenate([tests.image, fits.image]))
    test, shifted, on_training = features[: 2 * n], features[2 * n : 2 * n + 2 * fit], features[2 * n + 2 * fit :]
    labels = fits.label[:, None].astype(features.dtype)
    accuracy = jnp.full((len(READOUTS), len(GROUPS) * len(LABELS)), jnp.nan)
    for name, on, of in (("probe_shifted", shifted, labels[: 2 * fit]), ("probe", on_training, labels[2 * fit :])):
        probed = (probe(on, of, test)[:, 0] > 0) == (tests.label > 0)
        accuracy = accuracy.at[READOUTS.index(name)].set(_by_cell(probed, tests.label))
    if arm.reads:
        prompts = prompt_embeddings(arm, setup, keys[2], point, params)
        best = {name: (test @ of.T).argmax(1) for name, of in prompts.items()}
        guesses = {name: jnp.asarray(setup.kinds)[at] if name == "item" else 2 * at - 1 for name, at in best.items()}
        for name, guess in guesses.items():
            cells = _by_cell(guess == tests.label, tests.label)
            accuracy = accuracy.at[READOUTS.index(name)].set(cells)
        judged = guesses[arm.prompt] == tests.label
    elif arm.loss == "cross_entropy":
        judged = 2 * _head(params, test).argmax(1) - 1 == tests.label
        accuracy = accuracy.at[0].set(_by_cell(judged, tests.label))
    else:
        judged = probed
        accuracy = accuracy.at[0].set(accuracy[READOUTS.index("probe")])
    score = probe(shifted, _targets(jax.tree.map(lambda x: x[: 2 * fit], fits)), test)
    two = jnp.concatenate([((tests.attribute + 1) // 2)[:, None], tests.style], 1)
    last = ITEMS + two.shape[1]
    kept = [
        (score[:, :ITEMS].argmax(1) == tests.item).mean()[None],
        _balanced((score[:, ITEMS:last] > 0.5) == (two == 1), two),
        jnp.full(1, jnp.nan),
    ]
    if tests.companion is not None:
        there = tests.companion >= 0
        right = (score[:, last:].argmax(1) == tests.companion) & there
        kept[2] = jnp.where(there.any(), right.sum() / jnp.maximum(there.sum(), 1), jnp.nan)[None]
    temperature = jnp.exp(-params["scalars"]["log_scale"]) if "scalars" in params else jnp.nan
    fitted = training_loss(arm, setup, key, point, params)
    each = _by_digit(judged, tests.item)
    measures = jnp.concatenate([accuracy.ravel(), *kept, jnp.stack([temperature, fitted]), each])
    whole = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]))
    return jnp.where(whole, measures, jnp.inf)


def test_scenes(setup: Setup, key: Key[Array, ""], point: Point) -> scenes.Scenes:
    """`test` scenes of the aligned group, then of the conflicting one.

    With a finite training set, both groups have the same items.
    """
    n = setup.test
    if setup.train_size is None:
        return draw(setup, key, point, "test", 2 * n, jnp.repeat(jnp.array([1.0, 0.0]), n))
    groups = [draw(setup, key, point, "test", n, p_spu, once=True) for p_spu in (1.0, 0.0)]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *groups)


def training_loss(arm: Arm, setup: Setup, key: Key[Array, ""], point: Point, params: State) -> Float[Array, ""]:
    """The arm's mean loss over some training batches; NaN for a closed form."""
    if arm.loss is None:
        return jnp.asarray(jnp.nan)
    chosen = jax.random.fold_in(key, _FITTED)
    if setup.train_size is None:
        keys = jax.random.split(chosen, _LOSS_BATCHES)
        return jax.lax.map(lambda key: loss(arm, setup, key, point, params), keys).mean()
    known = training_set(arm, setup, key, point)
    count = min(_LOSS_BATCHES, setup.train_size // setup.batch_size)
    order = jax.random.permutation(chosen, setup.train_size)[: count * setup.batch_size].reshape(count, -1)
    return jax.lax.map(lambda at: loss(arm, setup, chosen, point, params, batch_of(known, point, at)), order).mean()


def _by_cell(right: Array, label: Array) -> Float[Array, " cells"]:
    """Share of right answers, for each half of the scenes and each label."""
    cell = jnp.stack([(label == y) & half for half in _halves(len(label)) for y in (-1, 1)], 1)
    return (right[:, None] & cell).sum(0) / cell.sum(0)


def _by_digit(right: Array, item: Array) -> Float[Array, " cells"]:
    """Share of right answers, for each digit and each half of the scenes; NaN where none shows the digit."""
    cell = jnp.stack([(item == digit) & half for digit in range(ITEMS) for half in _halves(len(item))], 1)
    return (right[:, None] & cell).sum(0) / cell.sum(0)


def _halves(n: int) -> tuple[Array, Array]:
    first = jnp.arange(n) < n // 2
    return first, ~first


def _balanced(right: Array, target: Array) -> Float[Array, " targets"]:
    """Share of right answers, averaged over a target's two values."""
    values = jnp.stack([target == 0, target == 1])
    return ((right[None] & values).sum(1) / values.sum(1)).mean(0)


def embed_image(arm: Arm, setup: Setup, params: State, image: Float[Array, "n h w c"]) -> Float[Array, "n r"]:
    """Image embeddings; for a closed form, W^T (x - mean), an entry for each text feature."""
    if arm.loss is None:
        return (image.reshape(len(image), -1) - params["mean"][None, :]) @ params["w"]
    encoder, n = setup.modules(arm)[0], len(image)

    def embed(image: Array) -> Array:
        return encoder.apply(params["image"], scaled(setup, image)).astype(jnp.zeros((), float).dtype)

    if n <= _CHUNK * 8:
        return embed(image)
    whole = n - n % _CHUNK
    parts = jax.lax.map(embed, image[:whole].reshape(-1, _CHUNK, *image.shape[1:])).reshape(whole, -1)
    return parts if whole == n else jnp.concatenate([parts, embed(image[whole:])])


def embed_text(arm: Arm, setup: Setup, params: State, tokens: Int[Array, "n t"]) -> Float[Array, "n r"]:
    """Text embeddings, of unit length if the loss normalises them; for a closed form, `text_features`."""
    if arm.loss is None:
        return text_features(setup, tokens)
    embedded = setup.modules(arm)[1].apply(params["text"], tokens).astype(jnp.zeros((), float).dtype)
    return embedded / jnp.linalg.norm(embedded, axis=1, keepdims=True) if setup.normalize else embedded


def prompt_embeddings(
    arm: Arm, setup: Setup, key: Key[Array, ""], point: Point, params: State
) -> dict[str, Float[Array, "prompts r"]]:
    """Embeddings of PROMPTS: the two classes, the ten items, and each class's mean over its possible captions.

    Captions that are vectors also have the regression prompt, see `vectors.regression_prompts`. The captions of
    `ensemble` follow the arm's own policy. Their items, styles and colours are drawn evenly, whatever the label.
    """
    key_scene, key_text = jax.random.split(key)
    drawn = draw(setup, key_scene, point, "train", 2 * _ENSEMBLE, 0.5)
    tokens = write(setup, key_text, drawn, policy(arm, point), point["pi_companion"])
    written = [jnp.asarray(prompt_texts(setup, name), tokens.dtype) for name in ("class", "item")]
    embedded = embed_text(arm, setup, params, jnp.concatenate([*written, tokens]))
    by_class, by_item, each = embedded[:2], embedded[2 : 2 + ITEMS], embedded[2 + ITEMS :]
    member = jax.nn.one_hot((drawn.label + 1) // 2, 2)
    mean = member.T @ each / member.sum(0)[:, None]
    if setup.vectors and not setup.normalize and arm.loss:  # affine encoder: mean embedding = mean caption's embedding
        mean = by_class
    mean = mean if arm.loss is None or not setup.normalize else mean / jnp.linalg.norm(mean, axis=1, keepdims=True)
    by_prompt = {"class": by_class, "item": by_item, "ensemble": mean}
    if setup.vectors:
        caps = dataclasses.replace(policy(arm, point), masking=setup.masking)
        regression = vectors.regression_prompts(setup.kinds, caps, point["p_spu"]).astype(tokens.dtype)
        by_prompt["regression"] = embed_text(arm, setup, params, regression)
    return by_prompt


def prompt_texts(setup: Setup, prompts: str) -> np.ndarray:
    """The prompts by class or by item: "a low digit" or "a low digit three"; as vectors, they name as much."""
    if setup.vectors:
        return vectors.class_prompts(setup.kinds) if prompts == "class" else vectors.item_prompts()
    words = setup.words
    if prompts == "class":
        texts = [f"a {kind} {words.noun}" for kind in words.kinds]
    else:
        texts = [f"a {words.kinds[(setup.kinds[i] + 1) // 2]} {words.noun} {words.items[i]}" for i in range(ITEMS)]
    return np.stack([words.encode(text, setup.length) for text in texts])


def probe(
    features: Float[Array, "n r"], targets: Float[Array, "n k"], test: Float[Array, "m r"]
) -> Float[Array, "m k"]:
    """Scores of `test` from a least-squares fit, with a small ridge, of the targets to the features and a constant."""
    mean = features.mean(0, keepdims=True)
    average = targets.mean(0, keepdims=True)
    weights = jnp.linalg.solve(covariance(features), (features - mean).T @ (targets - average) / (len(features) - 1))
    return average + (test - mean) @ weights


def _targets(sample: scenes.Scenes) -> Float[Array, "n targets"]:
    """The items one-hot, then hue and styles as 0, 1, then the small digits one-hot, if scenes may have them."""
    hue = ((sample.attribute + 1) // 2)[:, None]
    small = [] if sample.companion is None else [jax.nn.one_hot(sample.companion, ITEMS)]
    targets = jnp.concatenate([jax.nn.one_hot(sample.item, ITEMS), hue, sample.style, *small], 1)
    return targets.astype(jnp.zeros((), float).dtype)

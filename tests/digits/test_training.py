"""Encoders, losses and measures do what they say; trained networks take the shortcut where there is nothing else."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import mmcl_theory as mt
from mmcl_theory import losses
from sims.digits import arms, captions, encoders, moments, scenes, training
from sims.digits.arms import ARMS
from sims.digits.config import AXES, parse_groups
from tests.statistics import assert_mean_close

KINDS = parse_groups("01234:56789")
WORDS = captions.lexicon("builtin")
TINY = training.Setup(WORDS, KINDS, side=12, embed_dim=8, stages=(1, 2), batch_size=16, test=32, closed=512)
# Operation by operation each would be compiled by itself.
pairs = jax.jit(training.pairs, static_argnames=("arm", "setup", "n"))
closed_form = jax.jit(training.closed_form, static_argnames=("arm", "setup"))
augment = jax.jit(arms.augment)
alone = jax.jit(arms.alone, static_argnums=0)
contrast = jax.jit(arms.contrast, static_argnums=0)


def a_point(source, p_spu=0.9, pi_core=0.5, pi_spu=0.5, weight=0.5, temperature=0.1):
    values = (p_spu, 1.0, 0.5, pi_core, pi_spu, 0.5, weight, temperature)
    return {"train": source.train, "test": source.test} | {n: jnp.asarray(v) for n, v in zip(AXES, values, strict=True)}


@pytest.mark.parametrize("side", [7, 8])
def test_patches_times_a_matrix_are_the_convolution(side):
    image = jax.random.normal(jax.random.key(0), (2, side, side, 3), jnp.float32)
    conv = encoders.Conv(5)
    params = jax.jit(conv.init)(jax.random.key(1), image)
    kernel, bias = (np.asarray(params["params"]["Dense_0"][name]) for name in ("kernel", "bias"))

    @jax.jit
    def lax(kernel):
        return jax.lax.conv_general_dilated(
            image, kernel.reshape(3, 3, 3, 5), (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    found = jax.jit(conv.apply)(params, image)
    np.testing.assert_allclose(found, np.asarray(lax(kernel)) + bias, atol=1e-5)
    assert not np.allclose(found, lax(kernel[::-1]))


@pytest.mark.parametrize("kind", ["linear", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("cnn", "vit"))])
def test_image_encoders_embed_each_image_by_itself(kind):
    image = jax.random.uniform(jax.random.key(0), (3, 12, 18, 3))
    encoder = encoders.image_encoder(kind, 5, 12)
    params, embed = jax.jit(encoder.init)(jax.random.key(1), image), jax.jit(encoder.apply)
    found = np.asarray(embed(params, image))
    assert found.shape == (3, 5)
    np.testing.assert_allclose(embed(params, image[1:2]), found[1:2], atol=1e-5)
    if kind == "linear":
        zero = np.asarray(embed(params, jnp.zeros_like(image)))
        np.testing.assert_allclose(embed(params, 2 * image) - zero, 2 * (found - zero), atol=1e-5)


@pytest.mark.parametrize("kind", ["bag", pytest.param("transformer", marks=pytest.mark.long)])
def test_text_encoders_do_not_see_padding(kind):
    tokens = jnp.asarray(np.stack([WORDS.encode("a low digit three", 8), WORDS.encode("a high digit", 8)]))
    encoder = encoders.text_encoder(kind, 5, len(WORDS.words))
    params, embed = jax.jit(encoder.init)(jax.random.key(1), tokens), jax.jit(encoder.apply)
    found = embed(params, tokens)
    cut = params
    if kind == "transformer":
        cut = {"params": {**params["params"], "position": params["params"]["position"][:, :6]}}
    np.testing.assert_allclose(embed(cut, tokens[:, :6]), found, atol=1e-5)
    swapped = embed(params, tokens[:, jnp.array([0, 2, 1, 3, 4, 5, 6, 7])])
    assert np.allclose(swapped, found) == (kind == "bag")


def test_word_counts_leave_end_and_padding_out():
    counts = encoders.word_counts(jnp.asarray(WORDS.encode("a low digit on a dark", 12))[None], len(WORDS.words))[0]
    found = {word: int(n) for word, n in zip(WORDS.words[2:], counts, strict=True) if n}
    assert found == {"a": 2, "low": 1, "digit": 1, "on": 1, "dark": 1}


def embedded(n=6, r=4):
    one, two = np.random.default_rng(3).normal(size=(2, n, r))
    return jnp.asarray(one), jnp.asarray(two), jnp.asarray(np.arange(n) % 2)


@pytest.mark.parametrize("name", ["clip", "no_intra_class", "weighted", "siglip"])
def test_arms_are_the_librarys_losses(source, name):
    image, text, label = embedded()
    scalars = {"log_scale": jnp.asarray(np.log(5.0)), "bias": jnp.asarray(-2.0)}
    found = contrast(ARMS[name], image, text, label, scalars, a_point(source, weight=0.8))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    weight = {"no_intra_class": 0.0, "weighted": 0.8}.get(name)
    weighted = {} if weight is None else {"labels": label, "same_class_weight": weight}
    expected = (
        jax.jit(losses.siglip)(*unit, scale=5.0, bias=-2.0)
        if name == "siglip"
        else jax.jit(losses.info_nce)(*unit, temperature=0.2, **weighted)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_sim_clr_is_sup_con_with_a_class_for_each_image():
    one, two, label = embedded()
    found = alone(ARMS["sim_clr"], one, two, label)
    by_image, by_label = (alone(ARMS["sup_con"], one, two, jnp.asarray(x)) for x in (np.arange(6), label))
    np.testing.assert_allclose(found, by_image, rtol=1e-12)
    assert not np.allclose(found, by_label)


def test_views_are_moved_and_dimmed_and_keep_their_hue():
    flat = jnp.broadcast_to(jnp.array([0.2, 0.4, 0.8]), (50, 8, 8, 3))
    view = np.asarray(augment(jax.random.key(0), flat))
    factor = view[..., 0] / 0.2
    np.testing.assert_allclose(view / np.array([0.2, 0.4, 0.8]), factor[..., None] * np.ones(3), rtol=1e-12)
    assert factor.min() >= 0.6 and factor.max() <= 1.4 and np.ptp(factor.mean((1, 2))) > 0.5
    dot = jnp.zeros((200, 9, 9, 3)).at[:, 4, 4].set(1.0)
    where = np.argwhere(np.asarray(augment(jax.random.key(1), dot))[..., 0] > 0)[:, 1:]
    assert len(where) == 200 and set(map(tuple, where.tolist())) == {(i, j) for i in range(2, 7) for j in range(2, 7)}


def outcomes(name, setup, point, key=0):
    """What a run gives, as the engine makes it: (stages, MEASURES)."""
    task = training.task(name, setup, {})

    @jax.jit
    def run(key, point):
        state, found = task.start(key, point), []
        for number in range(len(setup.stages)):
            state, measured = task.kernel(key, point, jnp.uint32(number), state)
            found.append(measured)
        return jnp.stack(found)

    found = run(jax.random.key(key), point).T
    return {name: np.asarray(x) for name, x in zip(training.MEASURES, found, strict=True)}


def group(found, prompt, name):
    """Accuracy of a group, the mean over its two labels, after the last stage."""
    return np.mean([found[f"{prompt} {name} {label}"][-1] for label in training.LABELS])


@pytest.mark.long
def test_arms_run_and_lack_only_what_it_has_not(source, float32):
    setup = dataclasses.replace(TINY, image_encoder="linear", text_encoder="bag")
    for name in ("weighted", "siglip", "cross_entropy", "sim_clr", "linear_mmcl"):  # the others share their code
        arm, found = ARMS[name], outcomes(name, setup, a_point(source))
        lacking = {measure for measure, value in found.items() if np.isnan(value).any()}
        prompts = {measure for measure in found if measure.split()[0] in ("item", "ensemble") and " " in measure}
        expected = {"companion"} | (set() if arm.reads else prompts)
        expected |= {measure for measure in found if measure.startswith("regression")}  # words have none
        expected |= {"temperature"} if arm.loss not in ("clip", "siglip") else set()
        expected |= {"loss"} if arm.loss is None else set()
        assert lacking == expected, name
        shares = found.keys() - lacking - {"loss"}
        assert all(((0 <= found[k]) & (found[k] <= 1)).all() for k in shares), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_entropy", pytest.param("label_only", marks=pytest.mark.long)])
def test_the_shortcut_is_taken_where_it_is_perfect_and_cannot_be_where_there_is_none(source, float32, name):
    setup = dataclasses.replace(TINY, stages=(150,), batch_size=64, test=256, learning_rate=3e-3, text_encoder="bag")
    certain, none = (outcomes(name, setup, a_point(source, p_spu=p)) for p in (1.0, 0.5))
    assert group(certain, "class", "aligned") > 0.95 and group(certain, "class", "conflicting") < 0.1
    honest = [group(none, "class", name) for name in training.GROUPS]
    assert min(honest) > 0.6 and abs(honest[0] - honest[1]) < 0.2


@pytest.mark.long
def test_a_fixed_temperature_stays_and_a_learnt_one_moves(source, float32):
    for learns in (True, False):
        setup = dataclasses.replace(TINY, learns_temperature=learns, learning_rate=0.1, text_encoder="bag")
        found = outcomes("clip_linear", setup, a_point(source, temperature=0.3))["temperature"]
        assert np.allclose(found, 0.3, rtol=1e-6) != learns


@pytest.mark.parametrize("n", [40, 41])
def test_images_in_chunks_have_the_same_embeddings(monkeypatch, n):
    image = jax.random.uniform(jax.random.key(0), (n, 12, 12, 3))
    params = {"image": jax.jit(TINY.modules(ARMS["clip"])[0].init)(jax.random.key(1), image[:1])}
    found = []
    for chunk in (n, 4):
        monkeypatch.setattr(training, "_CHUNK", chunk)
        embed = jax.jit(lambda params, image: training.embed_image(ARMS["clip"], TINY, params, image))
        found.append(embed(params, image))
    np.testing.assert_allclose(*found, rtol=1e-9)


@pytest.mark.parametrize("kind", ["cnn", "vit", "linear"])
def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_whole(source, float32, kind):
    setup = dataclasses.replace(TINY, bf16=True, image_encoder=kind)
    image, text = setup.modules(ARMS["clip"])
    key, pixels = jax.random.key(0), jnp.ones((2, 12, 12, 3))
    params = jax.eval_shape(image.init, key, pixels)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.eval_shape(image.apply, params, pixels).dtype == jnp.bfloat16
    tokens = jnp.asarray(training.prompt_texts(setup, "class"))
    text_params = jax.eval_shape(text.init, key, tokens)
    assert jax.eval_shape(text.apply, text_params, tokens).dtype == jnp.bfloat16
    embedded = jax.eval_shape(lambda p: training.embed_image(ARMS["clip"], setup, {"image": p}, pixels), params)
    assert embedded.dtype == jnp.float32


@pytest.mark.long
def test_a_run_that_diverges_is_infinite(source, float32):
    setup = dataclasses.replace(TINY, stages=(1, 4), learning_rate=1e30, text_encoder="bag")
    found = outcomes("clip_linear", setup, a_point(source))
    assert all(np.isposinf(value[-1]) for value in found.values())


@pytest.mark.slow
def test_closed_forms_solve_their_equations(source):
    """theta 1: S_I W S_T = C; theta 0: W is C up to its scale."""
    setup, point = dataclasses.replace(TINY, closed=800), a_point(source)
    seen, tokens = pairs(ARMS["whitened"], setup, jax.random.key(4), point, 800)
    pixels = np.asarray(seen.image).reshape(800, -1)
    counts = np.asarray(encoders.word_counts(tokens, len(WORDS.words)))
    cross = (pixels - pixels.mean(0)).T @ (counts - counts.mean(0)) / 799
    sides = [np.cov(x, rowvar=False) for x in (pixels, counts)]
    sides = [s + 1e-3 * np.trace(s) / len(s) * np.eye(len(s)) for s in sides]
    white = np.asarray(closed_form(ARMS["whitened"], setup, jax.random.key(4), point)["w"])
    np.testing.assert_allclose(sides[0] @ white @ sides[1], cross, atol=1e-10 * np.abs(cross).max() + 1e-9)
    plain = np.asarray(closed_form(ARMS["linear_mmcl"], setup, jax.random.key(4), point)["w"])
    cosine = (plain * cross).sum() / np.linalg.norm(plain) / np.linalg.norm(cross)
    assert cosine > 1 - 1e-9
    assert (white * cross).sum() / np.linalg.norm(white) / np.linalg.norm(cross) < 0.9


@pytest.mark.slow
def test_label_only_captions_make_the_whitened_rule_least_squares(source):
    """X5: the rule of the two class prompts is then SL's, the ridge regression of the label on pixels."""
    setup, point = dataclasses.replace(TINY, closed=800), a_point(source, pi_core=0.0, pi_spu=0.0)

    def cosine(point):
        state = closed_form(ARMS["whitened"], setup, jax.random.key(4), point)
        prompts = training.embed_text(ARMS["whitened"], setup, state, training.prompt_texts(setup, "class"))
        prompts = prompts @ state["w"].T
        seen, _ = pairs(ARMS["whitened"], setup, jax.random.key(4), point, 800)
        pixels, label = np.asarray(seen.image).reshape(800, -1), np.asarray(seen.label)
        cov = np.cov(pixels, rowvar=False)
        cov += 1e-3 * np.trace(cov) / len(cov) * np.eye(len(cov))
        regression = np.linalg.solve(cov, (pixels - pixels.mean(0)).T @ label)
        rule = np.asarray(prompts[1] - prompts[0])
        return rule @ regression / np.linalg.norm(rule) / np.linalg.norm(regression)

    assert cosine(point) > 1 - 1e-9
    assert cosine(a_point(source, pi_core=0.0, pi_spu=1.0)) < 0.99


def test_a_probe_finds_what_is_there_and_nothing_else():
    key_x, key_noise = jax.random.split(jax.random.key(0))
    x = jax.random.normal(key_x, (4000, 6))
    sign = jnp.stack([x[:, 2] - x[:, 4] > 0, jax.random.bernoulli(key_noise, 0.5, (4000,))], 1)
    score = np.asarray(training.probe(x[:2000], sign[:2000].astype(float), x[2000:]) > 0.5)
    right = (score == np.asarray(sign[2000:])).mean(0)
    assert right[0] > 0.95 and abs(right[1] - 0.5) < 0.06


def test_accuracy_by_digit():
    item = jnp.array([0, 0, 3, 3, 0, 9, 9, 9])
    right = jnp.array([1, 0, 1, 1, 0, 1, 1, 0], bool)
    found = np.asarray(training._by_digit(right, item)).reshape(10, 2)
    expected = np.full((10, 2), np.nan)
    expected[0], expected[3, 0], expected[9, 1] = (0.5, 0), 1, 2 / 3
    np.testing.assert_allclose(found, expected)


@pytest.mark.slow
def test_the_regression_prompt_is_measured(source, float32):
    """It keeps the aligned group from over-correction; without a correlation it is the class prompt."""
    setup = dataclasses.replace(TINY, vectors=True, text_encoder="linear", masking="mean", closed=4096, test=256)
    for p_spu, same in ((0.95, False), (0.5, True)):
        found = outcomes("whitened", setup, a_point(source, p_spu=p_spu, pi_core=1.0, pi_spu=1.0))
        by_class, by_regression = (group(found, prompt, "aligned") for prompt in ("class", "regression"))
        assert by_regression == by_class if same else by_regression > by_class + 0.1


@pytest.mark.slow
def test_no_classifier_beats_the_core_s_accuracy_without_a_correlation(source, float32):
    """The bound holds up to the noise of 1,024 test scenes; without label noise the same rule is above it."""
    bound, error = 0.7, (0.7 * 0.3 / 1024) ** 0.5
    shares = []
    for core_accuracy in (bound, 1.0):
        setup = dataclasses.replace(TINY, closed=4096, test=512, core_accuracy=core_accuracy)
        found = outcomes("whitened", setup, a_point(source, p_spu=0.5))
        shares.append(np.mean([group(found, "class", name) for name in training.GROUPS]))
    limit = bound + scipy.stats.norm.isf(1e-6) * error
    assert 0.55 < shares[0] < limit < shares[1]


def test_prompts_name_what_they_say(source):
    by_class, by_item = (training.prompt_texts(TINY, name) for name in ("class", "item"))
    assert [WORDS.decode(t) for t in by_class] == ["a low digit", "a high digit"]
    assert [WORDS.decode(t) for t in by_item[[0, 7]]] == ["a low digit zero", "a high digit seven"]


@pytest.mark.slow
def test_an_ensemble_is_the_mean_over_captions_of_its_policy(source):
    """With captions that name the class alone it is the class's prompt; with others it is not."""
    state = {"w": jax.random.normal(jax.random.key(1), (7, len(WORDS.words) - 2)), "mean": jnp.zeros(7)}
    for arm, same in (("label_only", True), ("rich_captions", False)):
        arm = dataclasses.replace(ARMS["whitened"], captions=ARMS[arm].captions)
        found = training.prompt_embeddings(arm, TINY, jax.random.key(2), a_point(source), state)
        assert np.allclose(found["class"], found["ensemble"]) == same


def a_law(source, p_spu=0.9, hue_contrast=1.0):
    law = dict(zip(moments.LAW, (p_spu, hue_contrast, 0.5), strict=True))
    return {"train": source.train, "test": source.test, **law}


@pytest.fixture(scope="module")
def predictor(source):
    with jax.enable_x64(False):
        return moments.Predictor(TINY, a_law(source))


@pytest.mark.slow
def test_normal_scores_have_the_accuracy_that_is_computed(predictor, monkeypatch):
    """A rule whose score is normal in every cell: the formula against the share that is counted."""
    n = moments._SAMPLES
    rng, label = np.random.default_rng(0), np.asarray(predictor.shifted.scenes.label)
    attribute = np.asarray(predictor.shifted.scenes.attribute)
    score = 0.7 * label - 0.4 * attribute + rng.normal(size=n)
    fake = dataclasses.replace(predictor.shifted, pixels=score[:, None])
    monkeypatch.setattr(predictor, "shifted", fake)
    monkeypatch.setattr(predictor, "mean", np.zeros(1))
    aligned, conflicting = predictor._groups(np.ones(1))
    right = score * label > 0
    for group, found in ((label == attribute, aligned), (label != attribute, conflicting)):
        assert_mean_close(right[group].astype(float), found, resolution=0.01)
        with pytest.raises(AssertionError, match="z ="):
            assert_mean_close(right[group].astype(float), found + 0.1, resolution=0.01)


def test_noisy_labels_have_scores_of_two_kinds():
    """A score that is normal given the digit's kind: the formula against the share that is counted."""
    n = 40_000
    rng, kinds = np.random.default_rng(0), np.array(KINDS)
    item, attribute = rng.integers(0, 10, n), rng.choice([-1, 1], n)
    label = kinds[item] * rng.choice([1, -1], n, p=[0.84, 0.16])
    score = 1.5 * kinds[item] - 0.4 * attribute + rng.normal(size=n)
    seen = scenes.Scenes(None, label, attribute, item, None, None, None)
    fake = types.SimpleNamespace(setup=TINY, mean=np.zeros(1), shifted=moments.Seen(seen, score[:, None]))
    predicted = moments.Predictor._groups(fake, np.ones(1))
    fake.setup = dataclasses.replace(TINY, kinds=(1,) * 10)  # one normal in each cell
    wrong = moments.Predictor._groups(fake, np.ones(1))
    aligned = label == attribute
    counted = (score * label > 0).astype(float)
    for group, share in zip((aligned, ~aligned), predicted, strict=True):
        assert_mean_close(counted[group], share, resolution=0.01)
    with pytest.raises(AssertionError, match="z ="):
        assert_mean_close(counted[aligned], wrong[0], resolution=0.01)


@pytest.mark.slow
def test_predictions_are_of_the_closed_forms_that_are_measured(source, predictor, float32):
    """Left out are sampling of the moments, and scores that are not quite normal."""
    setup = dataclasses.replace(TINY, stages=(1,), test=2000, closed=16384)
    predicted = predictor.accuracy(0.5, 0.5, 0.5, None)
    for arm, row in (("linear_mmcl", 0), ("whitened", 1)):
        found = outcomes(arm, setup, a_point(source))
        measured = np.array([[group(found, prompt, name) for name in training.GROUPS] for prompt in moments.PROMPTS])
        np.testing.assert_allclose(measured, predicted[row], atol=0.06)
        for wrong in (predicted[1 - row], predicted[row][:, ::-1]):
            assert np.abs(measured - wrong).max() > 2 * 0.06


@pytest.mark.slow
def test_same_class_weights_are_predicted_for_the_linear_loss_alone(source, predictor):
    ordinary, none, half = (predictor.accuracy(1.0, 1.0, 0.5, weight) for weight in (None, 0.0, 0.5))
    whitened = [i for i, theory in enumerate(moments.THEORIES) if theory.startswith("whitened")]
    linear = [i for i in range(len(moments.THEORIES)) if i not in whitened]
    assert np.isfinite(ordinary).all() and np.isnan(none[whitened]).all() and np.isfinite(none[linear]).all()
    # 1/2 is the ordinary loss in the limit of many samples.
    np.testing.assert_allclose(half[linear], ordinary[linear], atol=1e-3)


@pytest.mark.slow
def test_a_weak_hue_is_within_what_contrasting_protects_from(source):
    """X4: below the threshold the linear loss gets most of the conflicting group right, above it does not."""
    with jax.enable_x64(False):
        weak, strong = (moments.Predictor(TINY, a_law(source, 0.9, contrast)) for contrast in (0.01, 1.0))
    caps = mt.captions(1.0, 1.0)
    for found, holds in ((weak, True), (strong, False)):
        threshold = mt.theory.strong_spurious_threshold(found.model, caps)
        assert (float(found.model.mu_spu) < float(threshold)) == holds
        linear = found.accuracy(1.0, 1.0, 0.5, None)[moments.THEORIES.index("linear_pixels"), 0]
        assert (linear[1] > 0.5) == holds


def test_two_features_are_measured_as_they_were_made(source):
    """Pixels of a model whose means and spreads are known."""
    n = moments._SAMPLES
    rng = np.random.default_rng(0)
    drawn = jax.jit(scenes.draw, static_argnames="n")(jax.random.key(1), source.train, n=n, p_spu=0.5)
    label, attribute = np.asarray(drawn.label), np.asarray(drawn.attribute)
    detail, shade = np.asarray(drawn.item) * 0.1, np.asarray(drawn.shade) * 0.5
    core = 0.8 * label + detail + 0.3 * rng.normal(size=n)
    hue = 2.0 * attribute + shade + 0.2 * rng.normal(size=n)
    model, obs = moments.features(moments.Seen(drawn, np.stack([core, hue, np.zeros(n)], 1)), 0.7)
    within = [np.var(detail[label == y]) for y in (-1, 1)]
    between = 0.8 + (detail[label > 0].mean() - detail[label < 0].mean()) / 2
    np.testing.assert_allclose(model.mu_core, between, rtol=0.03)
    np.testing.assert_allclose(model.sigma_core**2, np.mean(within), rtol=0.1)
    np.testing.assert_allclose(model.mu_spu, 2.0, rtol=0.03)
    np.testing.assert_allclose(model.sigma_spu**2, 0.25 * 2 / 3, rtol=0.1)
    np.testing.assert_allclose(obs.sigma_image**2, 0.3**2 + 0.2**2, rtol=0.1)
    assert isinstance(model, mt.data.IntraClass) and model.p_spu == 0.7

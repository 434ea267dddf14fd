"""The paper's digits: LeNet, vector captions, a training set drawn once, its figures' numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import xarray as xr

import mmcl_theory as mt
from mmcl_theory import learners
from sims.bench.baselines import flax_lenet
from sims.digits import captions, dial, encoders, paper, readouts, scenes, studies, training, vectors
from sims.digits.arms import ARMS
from sims.digits.config import PAPER_POLICIES, PRESETS, paper_arm, parse_colours, parse_groups
from sims.engine.flags import Options, UsageError
from tests.digits.test_training import a_point

KINDS = parse_groups("01234:56789")
COLOURS = parse_colours("paper")
SETUP = training.Setup(
    captions.lexicon("builtin"), KINDS, side=12, colours=COLOURS, train_size=64, vectors=True, masking="mean",
    text_encoder="linear", embed_dim=16, stages=(3, 12), symmetric=True, normalize=False, batch_size=16,
    optimizer="sgd", learning_rate=0.01, weight_decay=0.001, learns_temperature=False, test=32,
)  # fmt: skip
# Small programs without optimisations: they compile in a third of the time of one with them. Arms share the last.
start = jax.jit(training.start, static_argnums=(0, 1))
train = jax.jit(training.train, static_argnums=(0, 1))
drawn_tests = jax.jit(training.test_scenes, static_argnums=0)
RICH, LABEL = ARMS["clip_1_1"], ARMS["cross_entropy"]


def lenet(params, image):
    return encoders.LeNet(5).apply({"params": params}, image)


# Operation by operation each would be compiled by itself.
@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(apply, params, image):
    value, back = jax.vjp(lambda p: apply(p, image), params)
    return value, back(2 * value)[0]  # the gradient of the sum of squares


@pytest.mark.costly
@pytest.mark.parametrize("side, plain", [(28, False), (28, True), (16, False)])
def test_lenet_is_convolution_and_pooling_with_their_gradient(side, plain):
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(3, side, side, 3))
    if plain:  # as in the paper's images most of a background is: there all four that are pooled are the largest
        image[:, :, side // 2 :] = 0.25
    shapes = jax.eval_shape(encoders.LeNet(5).init, jax.random.key(1), image)["params"]
    # About as large as PyTorch's start; to draw that one is a program of its own for each shape.
    params = jax.tree.map(lambda x: rng.uniform(-0.1, 0.1, x.shape), shapes)
    expected, gradient = value_and_gradient(flax_lenet.apply, params, image)
    value, found = value_and_gradient(lenet, params, image)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1e-3, float(np.abs(other).max())), rtol=1e-4)
    flipped = params | {name: np.flip(params[name], 0) for name in ("kernel_6", "kernel_16")}
    assert not np.allclose(expected, value_and_gradient(flax_lenet.apply, flipped, image)[0], atol=1e-4)


def test_pytorch_s_uniform_start():
    found = np.asarray(encoders.uniform(75)(jax.random.key(0), (100_000,)))
    assert np.abs(found).max() <= 75**-0.5 and np.isclose(found.std(), (3 * 75) ** -0.5, rtol=0.01)


def test_vectors_are_the_paper_s_dictionary():
    n = 6
    label = jnp.array([-1, -1, -1, 1, 1, 1])
    item, attribute = jnp.array([0, 2, 4, 5, 7, 9]), jnp.array([-1, -1, -1, 1, 1, 1])
    shade = jnp.array([0, 1, 2, 2, 1, 0])  # dark, medium, light blue, light, medium, dark red
    seen = scenes.Scenes(None, label, attribute, item, None, shade, None)

    def code(pi_core, pi_spu, masking="mean"):
        return np.asarray(vectors.write(jax.random.key(0), KINDS, seen, mt.captions(pi_core, pi_spu, masking)))

    full = code(1.0, 1.0)
    assert full.shape == (n, 200)
    noise = 6 * 2000**-0.5
    np.testing.assert_allclose(full[:, 0], [-4.5, -2.5, -0.5, 0.5, 2.5, 4.5], atol=noise)
    np.testing.assert_allclose(full[:, 1], [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], atol=noise)
    assert np.abs(full[:, 2:]).max() < noise and np.isclose(full[:, 2:].std(), 2000**-0.5, rtol=0.1)
    np.testing.assert_allclose(code(0.0, 0.0)[:, :2], [[-2.5, -1.5]] * 3 + [[2.5, 1.5]] * 3, atol=noise)
    np.testing.assert_allclose(code(0.0, 0.0, "named")[:, :2], [[-2.5, 0]] * 3 + [[2.5, 0]] * 3, atol=noise)
    np.testing.assert_array_equal(vectors.class_prompts(KINDS)[:, 0], [-2.5, 2.5])
    assert not vectors.class_prompts(KINDS)[:, 1:].any() and not vectors.item_prompts()[:, 1:].any()


@pytest.mark.costly
def test_words_with_masking_mean_name_the_hue_always(source):
    words = captions.lexicon("builtin")

    @jax.jit
    def drawn():
        seen = scenes.draw(jax.random.key(0), source.train, 40, 0.9)
        policies = (mt.captions(0.0, 0.0, masking) for masking in ("mean", "named"))
        return seen, *(captions.write(jax.random.key(1), words, seen, policy) for policy in policies)

    seen, tokens, other = (jax.tree.map(np.asarray, part) for part in drawn())
    for row, attribute in zip(tokens, seen.attribute, strict=True):
        told = words.decode(row)
        assert told.endswith(f"on a {captions.HUE_NAMES[(attribute + 1) // 2]} background")
    assert not any("background" in words.decode(row) for row in other)


@pytest.mark.costly
def test_a_training_set_is_drawn_once_on_plain_colours(source):
    point = a_point(source, p_spu=0.75)
    drawn = jax.jit(training.training_set, static_argnums=(0, 1))
    (layout, texts), again = (drawn(RICH, SETUP, jax.random.key(3), point) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, (layout, texts), again)
    assert not np.array_equal(drawn(RICH, SETUP, jax.random.key(4), point)[0].shade, layout.shade)
    assert len(np.unique(layout.index)) == SETUP.train_size == len(texts)
    seen, told = jax.jit(training.batch_of)((layout, texts), point, jnp.arange(20))
    corner = np.asarray(seen.image)[:, 0, 0]
    expected = np.array(COLOURS)[(np.asarray(seen.attribute) + 1) // 2, np.asarray(seen.shade)] / 255
    np.testing.assert_allclose(corner, expected, atol=1e-6)
    np.testing.assert_array_equal(np.array(KINDS)[np.asarray(seen.item)], seen.label)
    np.testing.assert_allclose(told[:, 0], np.asarray(seen.item) - 4.5, atol=6 * vectors.NOISE)
    with pytest.raises(ValueError, match="n must be at most the number of items"):
        scenes.lay_out(jax.random.key(0), source.test, 10_000, 0.5, once=True)


def test_a_training_set_may_have_small_digits(source):
    words = {"text_encoder": "bag", "vectors": False, "colours": None, "companion": True}
    setup = dataclasses.replace(SETUP, **words)
    layout, texts = jax.eval_shape(
        lambda key, point: training.training_set(ARMS["clip"], setup, key, point), jax.random.key(0), a_point(source)
    )
    assert layout.second.shape == (64,) and texts.shape == (64, captions.length(companion=True))


def test_an_epoch_sees_each_pair_once_in_an_order_of_its_own(source, monkeypatch):
    """Texts one-hot, a loss that sums them: SGD at rate 1 counts visits."""
    size, batch = 8, 2
    setup = dataclasses.replace(SETUP, train_size=size, batch_size=batch, stages=(3, 4, 8), learning_rate=1.0,
                                momentum=0.0, weight_decay=0.0)  # fmt: skip
    point = a_point(source)
    real = training.training_set
    monkeypatch.setattr(training, "training_set", lambda *args: (real(*args)[0], jnp.eye(size)))
    monkeypatch.setattr(training, "loss", lambda a, s, key, p, params, batch: (batch[1] @ params["count"]).sum())
    params = {"count": jnp.zeros(size)}
    state = {"params": params, "optimizer": training._optimizer(setup).init(params)}
    visits, counts = jax.jit(lambda n, s: training.train(RICH, setup, jax.random.key(0), point, n, s)), []
    for number in range(3):
        state = visits(jnp.uint32(number), state)
        counts.append(-np.asarray(state["params"]["count"]))
    assert counts[0].sum() == 6 and counts[0].max() == 1
    np.testing.assert_array_equal(counts[1], np.ones(size))
    np.testing.assert_array_equal(counts[2], np.full(size, 2))


def trained(source, arm, p_spus, steps=200):
    """(aligned, conflicting) accuracy of the class prompt or the classifier at each p_spu; training set of 640."""
    setup = dataclasses.replace(
        SETUP, train_size=640, batch_size=32, stages=(steps,), embed_dim=32, image_encoder="cnn", test=300
    )

    @jax.jit
    def score(params, image):
        features = training.embed_image(arm, setup, params, image)
        if not arm.reads:
            return training._head(params, features)
        prompts = jnp.asarray(training.prompt_texts(setup, "class"), features.dtype)
        return features @ training.embed_text(arm, setup, params, prompts).T

    def run(key, point):
        state = train(arm, setup, key, point, jnp.uint32(0), start(arm, setup, key, point))
        tests = drawn_tests(setup, key, point)
        right = 2 * np.argmax(score(state["params"], tests.image), 1) - 1 == np.asarray(tests.label)
        return right.reshape(2, -1).mean(1)

    return [run(jax.random.key(0), a_point(source, p_spu=p, temperature=1.0)) for p in p_spus]


@pytest.mark.costly
def test_the_preset_small_rich_captions_protect_and_supervised_learning_does_not(source, float32):
    """Theorems 4.3 and 5.2: conflicting accuracy of rich captions > supervised, whose aligned is 1.

    Without a correlation there is nothing to protect from: there the order must not show.
    """
    (rich, none_rich), (supervised, none_supervised) = (trained(source, arm, (0.98, 0.5)) for arm in (RICH, LABEL))
    assert supervised[0] > 0.98 and supervised[1] < 0.1
    assert rich[1] > supervised[1] + 0.1 and rich[0] < supervised[0] - 0.1
    assert none_supervised[1] > 0.6 and not none_rich[1] > none_supervised[1] + 0.1


def test_the_paper_s_points_and_its_groups():
    found = paper.points()
    assert len(found) == 2 * (len(PAPER_POLICIES) + 1)
    assert found["ood", (1.0, 1.0)] == 0.762 and found["id", None] == 0.996
    aligned, conflicting = paper.groups(found["ood", (1.0, 1.0)], found["id", (1.0, 1.0)])
    assert np.isclose(0.995 * aligned + 0.005 * conflicting, 0.706) and np.isclose((aligned + conflicting) / 2, 0.762)
    assert aligned < conflicting  # over-correction, in the paper's own figures
    assert {paper_arm(*p) for p in PAPER_POLICIES} < set(ARMS)


@pytest.mark.parametrize("steps", [1, 2])
def test_an_arm_keeps_its_steps(steps, monkeypatch):
    """With one measured epoch too; axes of one value go."""
    dims = {"arm": 1, "seed": 3, "p_spu": 1, "step": steps, "prompt": 1, "value": 5}
    found = xr.DataArray(np.arange(15.0 * steps).reshape(tuple(dims.values())), dims=tuple(dims))
    found = found.assign_coords(arm=["clip_1_1"], prompt=[paper.results.headline("clip_1_1")])
    monkeypatch.setattr(paper.results, "accuracy", lambda _: found)
    mean, half = paper.of_arm(xr.Dataset(coords={"arm": ["clip_1_1"]}), "clip_1_1")
    assert mean.dims == half.dims == ("step", "value") and mean.shape == (steps, 5)
    np.testing.assert_allclose(mean, found.mean("seed").values.reshape(steps, 5))


@pytest.mark.parametrize("steps", [1, 2])
def test_deaths_are_counted_at_each_step(steps):
    """A loss of log(batch size), or none, is a death; a classifier's has no such bound."""
    loss = np.full((2, 3, 1, steps, 1), 1.0)
    loss[:, 0, :, -1], loss[:, 1, :, -1] = np.log(16), np.nan
    dims = ("arm", "seed", "p_spu", "step", "measure")
    measured = xr.DataArray(loss, dims=dims, coords={"arm": ["clip_1_1", "cross_entropy"], "measure": ["loss"]})
    dataset = xr.Dataset({"measured": measured}, attrs={"config": '{"batch_size": 16}'})
    assert paper.deaths(dataset, "clip_1_1").tolist() == [0, 2][-steps:]
    assert paper.deaths(dataset, "cross_entropy").tolist() == [0, 1][-steps:]


def test_colours_of_a_file(tmp_path):
    file = tmp_path / "six.csv"
    file.write_text("0,0,10\n0,0,20\n0,0,30\n\n40,0,0\n50,0,0\n60,0,0\n")
    assert parse_colours(str(file)) == (((0, 0, 10), (0, 0, 20), (0, 0, 30)), ((60, 0, 0), (50, 0, 0), (40, 0, 0)))
    for text, told in (("1,2,3\n" * 5, "got 5"), ("1,2,3\n" * 5 + "1,2,256", "got 1, 2, 256"), ("a,b,c", "could not")):
        file.write_text(text)
        with pytest.raises(UsageError, match=told):
            parse_colours(str(file))
    with pytest.raises(UsageError, match="cannot be read"):
        parse_colours(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"text_encoder": "bag"}, "--captions=vectors needs --text_encoder of linear, got bag"),
        ({"captions": "words"}, "--captions=words needs --text_encoder of transformer or bag, got linear"),
        ({"train_size": 100}, "--train_size must be none or in"),
        ({"train_size": None}, "--study=paper needs another --train_size than none"),
        ({"train_size": None, "study": ("arms",)}, "--epochs needs --train_size"),
        ({"colours": "hues"}, "--study=paper needs another --colours than hues"),
        ({"study": ("strength",)}, "--study=strength needs --colours=hues"),
        ({"core_accuracy": 0.84}, "--study=paper needs --core_accuracy=1"),
        ({"colours": "hues", "study": ("balanced",)}, "--study=balanced needs another --colours than hues"),
        ({"weight_decay": 1.0}, "--weight_decay must be in"),
        ({"init_scale": 0.0}, "--init_scale must be in"),
        ({"epochs": (1.5,)}, "--epochs must be whole numbers"),
        ({"study": ("sharing",)}, "--study=sharing needs --captions=words"),
    ],
)
def test_what_does_not_go_together_is_refused(changed, told):
    PRESETS["paper"].check()
    with pytest.raises(UsageError, match=told):
        dataclasses.replace(PRESETS["paper"], **changed).check()


@pytest.mark.usefixtures("compiled")
def test_the_dial_of_states_and_of_pixels(source):
    """Its ends, whitened and linear, by other ways; a correlation that is not there must show."""
    of, policy = dial.states(KINDS), (1.0, 1.0)
    kappas = np.array([0.0, 1e-3, 1.0, np.inf])
    weight, p = of.probability(0.995), 0.995
    assert np.isclose(weight.sum(), 1) and np.isclose(weight[of.label == of.attribute].sum(), p)
    found = {f: dial.of_states(KINDS, f, policy, kappas) for f in ("separate", "joint")}
    # At infinity a state's score is its probability times its caption's digit, whose sign is the label.
    text, _ = of.captions(policy)
    assert (of.label * text[:, 0] > 0).all() and found["joint"][-1].tolist() == [1, 1]
    aligned = of.label == of.attribute
    # Whitened, an encoder that sees all leaves the captions' own regression of the class on (a, b).
    cov = (text * weight[:, None]).T @ text + np.eye(2) / 2000
    score = of.label * (text @ np.linalg.solve(cov, [1, 0]))
    np.testing.assert_allclose(found["joint"][0], [(score > 0)[aligned].mean(), (score > 0)[~aligned].mean()])
    assert found["joint"][0, 0] < found["joint"][0, 1]  # over-correction
    honest = dial.of_states(KINDS, "joint", policy, kappas, p_spu=0.5)
    np.testing.assert_array_equal(honest, 1)


@pytest.mark.costly
@pytest.mark.usefixtures("compiled")
def test_the_dial_of_pixels_is_that_of_sampled_images(source, monkeypatch):
    """Moments against those of many rendered scenes, with a twin of another p_spu; its rule against ridge_optimum."""
    pixels = dial.Pixels(source, COLOURS, 0.9)
    n = len(source.train.item)

    @jax.jit
    def covariance(key):
        layout = scenes.lay_out(key, source.train, n, 0.9, colours=COLOURS, once=True)
        image = scenes.render(source.train, layout).image.transpose(0, 3, 1, 2).reshape(n, -1)
        return jnp.cov(image, rowvar=False, bias=True)

    found = np.stack([covariance(key) for key in jax.random.split(jax.random.key(0), 49)])
    error = found.std(0, ddof=1) / 7 + 1e-6
    # A quantile of Student's t for a family of all entries.
    bound = scipy.stats.t.isf(1e-6 / error.size, 48)
    assert (np.abs(found.mean(0) - pixels.cov) / error).max() < bound
    assert (np.abs(found.mean(0) - dial.Pixels(source, COLOURS, 0.87).cov) / error).max() > bound
    rules = []
    monkeypatch.setattr(pixels, "_groups", lambda w: rules.append(w) or [0.5, 0.5])
    kappas = np.array([1e-2, 1.0, np.inf])
    pixels.accuracy([(0.5, 1.0)], kappas)
    cross, cov_text = pixels.moments((0.5, 1.0))
    parts = [jnp.asarray(x) for x in (cross, pixels.cov, cov_text)]
    expected = [np.asarray(learners.ridge_optimum(*parts, float(kappa)))[:, 0] for kappa in kappas]
    np.testing.assert_allclose(rules, expected, rtol=1e-6, atol=1e-9)


def test_nearest_point_of_a_curve():
    curve = np.array([[0.5, 0.9], [0.6, 0.6], [1.0, 0.0]])
    found = dial.nearest(curve, np.array([0.0, 1.0, np.inf]), np.array([0.65, 0.5]))
    assert found.kappa == 1 and np.isclose(found.distance, 0.1)
    assert np.isnan(dial.nearest(curve, np.array([0.0, 1.0, np.inf]), np.array([np.nan, 0.5])).kappa)


@pytest.mark.usefixtures("compiled")
def test_the_regression_prompt_lets_a_whitened_encoder_see_the_digit_alone():
    of = dial.states(KINDS)
    for policy, masking, p in (((1.0, 1.0), "mean", 0.995), ((0.5, 1.0), "mean", 0.9), ((1.0, 0.5), "named", 0.995)):
        weight = of.probability(p)
        text, spread = of.captions(policy, masking)
        cov = dial.moments(weight, of.features("joint"), text, spread)[2]
        prompts = vectors.regression_prompts(KINDS, mt.captions(*policy, masking), p)
        np.testing.assert_allclose(prompts[:, 1] / prompts[:, 0], cov[0, 1] / cov[0, 0], rtol=1e-12)
        np.testing.assert_array_equal(prompts[:, 0], vectors.class_values(KINDS))
        assert not np.isclose(
            cov[0, 1], dial.moments(of.probability(p - 0.03), of.features("joint"), text, spread)[2][0, 1]
        )
    for policy in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5)):
        prompts = vectors.regression_prompts(KINDS, mt.captions(*policy, "mean"), 0.995)
        b = float(prompts[1, 1] / prompts[1, 0])
        kappa = np.zeros(1)
        assert (dial.right_of_states(of, "joint", policy, kappa, prompt=(1.0, b)) == 1).all()
        assert not (dial.right_of_states(of, "joint", policy, kappa) == 1).all()
        assert not (dial.right_of_states(of, "joint", policy, kappa, prompt=(1.0, 1.4 * b)) == 1).all()
    # By hand: the aligned digits next to the other class go wrong, colours dark to light, 2.5, 1.5, 0.5.
    right = dial.right_of_states(of, "joint", (1.0, 1.0), np.zeros(1))[:, 0]
    aligned = of.label == of.attribute
    shares = [right[aligned & (of.item == digit)].mean() for digit in range(10)]
    np.testing.assert_allclose(shares, np.array([3, 3, 2, 1, 0, 0, 1, 2, 3, 3]) / 3)


@pytest.mark.slow
def test_readouts_of_kept_networks(source, tmp_path, float32):
    config = dataclasses.replace(
        PRESETS["paper"], arms=("clip_1_1",), image_encoder="cnn", epochs=(5, 40), train_size=640, test=200, seeds=2,
        embed_dim=32, p_spu=0.95,
    )  # fmt: skip
    found = studies.run(config, tmp_path, Options(keep_checkpoints=True))["paper"]
    folder = tmp_path / "paper"
    assert {"figure_2.png", "figure_5.png", "dial.png", "training.png"} <= {p.name for p in folder.iterdir()}
    told = readouts.show(folder, "builtin")
    rows = [line.split("  ") for line in told.splitlines()[1:-2]]
    assert len(rows) == 2 * (10 + len(readouts.SHADES_OF_PROMPTS)) and (folder / "readouts.png").exists()
    for group in training.GROUPS:  # other draws of shades, the same networks and items
        ours = float(paper.of_arm(found, "clip_1_1")[0].isel(step=-1).sel(value=group))
        read = next(float(r[5].split()[0]) for r in rows if r[2:5] == ["prompt", group, "0"])
        assert abs(ours - read) < 0.1
    with pytest.raises(UsageError, match="differs from the data"):
        readouts.show(folder, f"idx:{made_idx(tmp_path)}")
    next((folder / "checkpoints").iterdir()).unlink()
    with pytest.raises(UsageError, match="keeps no trained network"):
        readouts.show(folder, "builtin")


def made_idx(folder):
    """A folder of four IDX files that are not scikit-learn's digits."""
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", rng.integers(0, 256, (20, 12, 12))), ("labels-idx1", np.arange(20) % 10)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return folder

"""`sims.features`: sets, captions, training and closed forms against other ways to compute them, and the command."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mmcl_theory as mt
from mmcl_theory import losses
from sims import lines, show
from sims.engine import devices, store
from sims.features import __main__ as command
from sims.features import experiment, heads, sets
from sims.features.config import Config
from tests.helpers import assert_refused, assert_refuses, csv_rows
from tests.statistics import assert_mean_close, rejects

CLASSES, PLACES = np.array(["cat", "dog"]), np.array(["grass", "sofa"])


def pairs(n, seed, p_spu=0.8):
    """Images of n units, and one caption each: the first feature tells the class, the second the place."""
    rng = np.random.default_rng(seed)
    y, usual = rng.integers(0, 2, n), rng.uniform(size=n) < p_spu
    a = np.where(usual, y, 1 - y)
    sign = np.stack([2 * y - 1, 2 * a - 1], 1)
    image = np.c_[sign + [1.0, 0.5] * rng.normal(size=(n, 2)), 0.3 * rng.normal(size=(n, 2))]
    text = image[:, :3] + 0.3 * rng.normal(size=(n, 3))
    return {"image": image, "text": text, "labels": CLASSES[y], "attributes": PLACES[a]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A training set with two captions of every third image, and two evaluation sets, one with a class of its own."""
    folder = tmp_path_factory.mktemp("features")
    found = pairs(240, 0)
    again = np.arange(0, 240, 3)
    both = {name: np.concatenate([x, x[again]]) for name, x in found.items()}
    both["text"][240:, 2] += 1
    np.savez(folder / "train.npz", **both)
    ood = pairs(300, 1, p_spu=0.5)
    del ood["text"]
    np.savez(folder / "ood.npz", **ood)
    new = np.where(np.arange(300) < 50, "fox", ood["labels"])
    own = {"prompts": np.array([[0.0, 0, 9], [1, 0, 0], [-1, 0, 0]]), "classes": np.array(["fox", "dog", "cat"])}
    np.savez(folder / "half.npz", **pairs(200, 4, p_spu=0.2))
    np.savez(folder / "new.npz", image=ood["image"], labels=new, **own)
    return folder


@pytest.fixture(scope="module")
def config(folder):
    ood = tuple((name, str(folder / f"{name}.npz")) for name in ("ood", "new"))
    return Config(train=str(folder / "train.npz"), ood=ood, width=(5,), epochs=(2, 3), layers=2, batch_size=50, seeds=2)


def reference(config):
    with np.load(config.train) as file:
        return {name: file[name] for name in file}


def test_the_id_set_is_a_share_of_the_images_of_every_group(config):
    data, raw = config.data, reference(config)
    own, train = data.sets[0], data.train
    assert data.classes == ("cat", "dog") and data.sets[0].name == "id"
    assert len(own.label) + len(train.first) == 240  # images, not captions
    first = np.unique(raw["image"], axis=0, return_index=True)[1]
    sizes = {(c, a): 0 for c in CLASSES for a in PLACES}
    for i in first:
        sizes[raw["labels"][i], raw["attributes"][i]] += 1
    assert own.groups == tuple(f"({c}, {a})" for c, a in sizes)
    np.testing.assert_array_equal(own.sizes, [round(0.3 * n) for n in sizes.values()])
    np.testing.assert_array_equal(own.aligned, [1, 0, 0, 1])
    rows = {row.tobytes() for row in own.image}
    assert not rows & {row.tobytes() for row in train.image}
    spread = np.asarray(train.image, float)
    np.testing.assert_allclose([spread.mean(), (spread**2).mean()], [0, 1], atol=1e-6)
    for u in (0, 7, len(train.first) - 1):
        mine = slice(train.first[u], train.first[u] + train.count[u])
        assert len(np.unique(train.image[mine], axis=0)) == 1
    assert train.count.sum() == len(train.label) and set(train.count) == {1, 2}


def test_prompts_are_in_the_order_of_the_classes(config, folder):
    _, ood, new = config.data.sets
    np.testing.assert_array_equal(new.known, [-1, 1, 0])
    np.testing.assert_array_equal(ood.known, [0, 1])
    assert (new.label[:50] == 0).all() and not new.groups and ood.groups
    raw = reference(config)
    turned = {**raw, "prompts": np.array([[3.0, 0, 0], [0, 3, 0]]), "classes": CLASSES[::-1]}
    np.savez(folder / "turned.npz", **turned)
    straight = {**raw, "prompts": np.array([[0, 3.0, 0], [3, 0, 0]])}
    np.savez(folder / "straight.npz", **straight)
    found = [dataclasses.replace(config, train=str(folder / f"{name}.npz")).data for name in ("turned", "straight")]
    np.testing.assert_array_equal(found[0].train.prompts, found[1].train.prompts)
    assert found[0].digest != found[1].digest
    means = dataclasses.replace(config, train=str(folder / "turned.npz"), prompts="means").data
    np.testing.assert_array_equal(means.train.prompts, config.data.train.prompts)
    assert np.abs(means.train.prompts - found[0].train.prompts).max() > 1
    # Captions of one image count once, and means are every set's prompts.
    own = pairs(30, 5)
    twice = {name: np.repeat(x, 2, axis=0) for name, x in own.items()}
    np.savez(folder / "twice.npz", **twice, prompts=np.eye(2, 3))
    given = {"id": str(folder / "twice.npz"), "train": str(folder / "turned.npz")}
    of_file, of_means = (dataclasses.replace(config, **given, prompts=x).data for x in ("file", "means"))
    assert len(of_file.sets[0].label) == 30
    np.testing.assert_array_equal(of_means.sets[0].prompts, of_means.train.prompts)
    assert np.abs(of_file.sets[0].prompts - of_file.train.prompts).max() > 0.1
    default = config.data.train
    np.testing.assert_allclose(default.prompts, default.group_text.reshape(2, 2, -1).mean(1), atol=1e-6)
    for g in range(4):
        np.testing.assert_allclose(default.group_text[g], default.text[default.group == g].mean(0), atol=1e-6)
        assert set(default.label[default.group == g]) == {g // 2}


@pytest.fixture(scope="module")
def point(config):
    return {**heads.on_device(config.data), "width": 5, "percent": 100, "attribute": 1.0, "detail": 1.0}


def test_captions_are_those_of_the_policy(config, point):
    """Their moments are what `policy_moments` gives, which the advice of `sims.diagnose` is made of."""
    train = point["train"]
    rows = jnp.arange(len(train["label"]))

    def texts(key, attribute, detail):
        changed = {**point, "attribute": attribute, "detail": detail}
        return heads.captions(heads.mentions(key, changed), changed, rows)

    key = jax.random.key(0)
    np.testing.assert_allclose(texts(key, 1.0, 1.0), train["text"], atol=1e-6)
    np.testing.assert_allclose(texts(key, 1.0, 0.0), train["group_text"][train["group"]], atol=1e-6)
    np.testing.assert_allclose(texts(key, 0.0, 0.0), train["class_text"][train["label"]], atol=1e-6)

    def cross(key):
        t = texts(key, 0.3, 0.6)
        return jnp.concatenate([train["image"].T @ t, t.T @ t], 0) / len(rows)

    samples = np.asarray(jax.vmap(cross)(jax.random.split(key, 2000)))
    label, text = (np.asarray(train[name]) for name in ("label", "text"))
    group = np.asarray(train["group"])
    classes = np.array([label[group == g][0] for g in range(4)])
    sums = mt.features.group_sums(np.asarray(train["image"], float), text.astype(float), group, 4)

    def predicted(policy):
        mom = mt.features.policy_moments(sums, classes, policy)
        x, t = np.asarray(mom.z_mean) + sums.image_origin, np.asarray(mom.u_mean) + sums.text_origin
        weight = np.asarray(mom.weight)
        xt = np.einsum("k,kij->ij", weight, np.asarray(mom.zu) + x[:, :, None] * t[:, None])
        tt = np.einsum("k,kij->ij", weight, np.asarray(mom.uu) + t[:, :, None] * t[:, None])
        return np.concatenate([xt, tt])

    assert_mean_close(samples, predicted(mt.features.Policy(0.3, 0.6)), resolution=0.02)
    rejects(assert_mean_close, samples, predicted(mt.features.Policy(0.3, 0.7)), resolution=0.02)


def test_the_closed_form_is_that_of_the_library(config, point):
    """All captions of the training images; the library's rules come from moments, these from samples."""
    train = point["train"]
    x, t = (np.asarray(train[name], float) for name in ("image", "text"))
    sums = mt.features.group_sums(x, t, np.zeros(len(x), int), 1)
    mom = mt.features.policy_moments(sums, np.zeros(1, int))
    for arm, kind in (("whitened", "whitened"), ("linear_mmcl", "mmcl")):
        scores, *_ = heads.closed_form(arm, config, jax.random.key(0), {**point, "width": 2})
        own, one = config.data.sets[2], np.asarray(scores[2])

        def expected(own=own, kind=kind, **changed):
            learner = mt.features.Learner(kind, rank=2, **changed)
            rules, offsets = mt.features.feature_rules(mom, own.prompts.astype(float), learner)
            return (own.image - sums.image_origin) @ np.asarray(rules).T + np.asarray(offsets)

        ratio = one / expected()
        assert np.ptp(ratio) < 0.02 * abs(ratio.mean())  # n and n - 1 in the covariances, and the shrinkage
        assert np.argmax(one, 1).tolist() == np.argmax(expected(), 1).tolist()
        wrong = np.argmax(expected(shrinkage=100.0), 1) if kind == "whitened" else np.argmin(expected(), 1)
        assert np.argmax(one, 1).tolist() != wrong.tolist()


@pytest.mark.costly
def test_training_is_plain_gradient_descent_on_the_loss(config, point):
    """With one batch of all images an epoch, the order does not matter, and a loop of optax gives the same."""
    train = config.data.train
    n = len(train.first)
    whole = dataclasses.replace(config, batch_size=n, layers=1, epochs=(2,), weight_decay=0.1)
    point = {**point, "train": {**point["train"], "count": jnp.ones(n, int)}}  # the first caption of each image
    key = jax.random.key(3)
    state = heads.start("clip_no_intra", whole, key, point)
    found = jax.jit(lambda state: heads.fit("clip_no_intra", whole, key, point, jnp.array(0), state))(state)
    x, t, label = train.image[train.first], train.text[train.first], jnp.asarray(train.label[train.first])
    params = state["params"]

    def dense(layer, x):
        return x @ layer["Dense_0"]["kernel"] + layer["Dense_0"]["bias"][None]

    def loss(params, weight=0.0):
        scale = jnp.exp(params["scalars"]["log_scale"])
        both = dense(params["image"], x), dense(params["text"], t)
        given = {"labels": label, "same_class_weight": weight}
        return losses.info_nce(*both, temperature=1 / scale, normalize=True, **given)

    def trained(weight):
        def decayed(params):
            return jax.tree.map(lambda x: jnp.ndim(x) == 2, params)

        optimizer = optax.adamw(whole.learning_rate, weight_decay=0.1, mask=decayed)

        def step(carry, _):
            params, inner = carry
            updates, inner = optimizer.update(jax.grad(loss)(params, weight), inner, params)
            return (optax.apply_updates(params, updates), inner), None

        return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), None, 2)[0][0])(params)

    def apart(weight):
        pair = jax.tree.leaves(found["params"]), jax.tree.leaves(trained(weight))
        return max(float(jnp.abs(a - b).max()) for a, b in zip(*pair, strict=True))

    assert apart(0.0) < 1e-6 < 1e-4 < apart(0.5)  # captions are put together in float32


def log_softmax(x):
    return x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)


def by_hand(arm, params, image, text, label, temperature=0.1):
    """The loss of a linear head on these pairs, in NumPy; of sup_con and sim_clr with two equal views."""

    def unit(name, x):
        z = x @ params[name]["Dense_0"]["kernel"] + params[name]["Dense_0"]["bias"]
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    z, n = unit("image", image), len(image)
    if arm == "siglip":
        scale, bias = np.exp(params["scalars"]["log_scale"]), params["scalars"]["bias"]
        signed = (2 * np.eye(n) - 1) * (scale * z @ unit("text", text).T + bias)
        return np.log1p(np.exp(-signed)).sum() / n
    logits = log_softmax(z @ params["class"]["kernel"] + params["class"]["bias"])
    both = np.concatenate([z, z])
    same = np.tile(label if arm == "sup_con" else np.arange(n), 2)
    scores = both @ both.T / temperature
    np.fill_diagonal(scores, -np.inf)
    others = log_softmax(scores)
    positive = (same[:, None] == same[None]) & ~np.eye(2 * n, dtype=bool)
    contrast = -np.mean([others[i, positive[i]].mean() for i in range(2 * n)])
    return contrast - logits[np.arange(n), label].mean()


@pytest.mark.parametrize("arm", ["siglip", "sup_con", "sim_clr"])
def test_the_losses_of_arms_are_those_of_their_papers(arm, config, point):
    """On one batch, with views that lack almost nothing; twin: of other labels, or another temperature."""
    linear = dataclasses.replace(config, layers=1, dropout=1e-12)
    point = {**point, "train": {**point["train"], "count": jnp.ones_like(point["train"]["count"])}}
    state = heads.start(arm, linear, jax.random.key(1), point)
    units = jnp.arange(7, 27)
    named = heads.mentions(jax.random.key(0), point)
    inputs = jax.random.key(2), point, named, state["means"], units
    found, _ = jax.jit(lambda p: heads.loss(arm, linear, p, *inputs))(state["params"])
    train, rows = config.data.train, config.data.train.first[np.asarray(units)]
    params = jax.tree.map(lambda x: np.asarray(x, float), state["params"])
    batch = train.image[rows].astype(float), train.text[rows].astype(float), train.label[rows]
    np.testing.assert_allclose(found, by_hand(arm, params, *batch), rtol=1e-5)
    if arm == "siglip":
        params["scalars"]["bias"] = params["scalars"]["bias"] + 0.01
    wrong = by_hand(arm, params, *batch, temperature=0.11)
    assert abs(float(found) - wrong) > 1e-3


def test_a_run_has_its_own_images_and_an_order_for_each_epoch(config, point):
    half = {**point, "percent": 50}
    units = len(config.data.train.first)
    mine = heads.subset(jax.random.key(0), half)
    assert len(mine) == units // 2 == len(set(mine.tolist())) and max(mine.tolist()) < units
    assert heads.subset(jax.random.key(0), half).tolist() == mine.tolist()
    other = heads.subset(jax.random.key(1), half)
    assert set(other.tolist()) != set(mine.tolist())
    assert set(heads.subset(jax.random.key(0), point).tolist()) == set(range(units))
    orders = [heads.order_of(jax.random.key(0), mine, jnp.array(epoch)).tolist() for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(mine.tolist()) and orders[0] != orders[1]


def test_a_head_is_dense_layers_with_batch_norm(point):
    head, x = heads.Head(3, 2), jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)))
    variables = head.init(jax.random.key(0), x, True)
    p = variables["params"]
    hidden = np.asarray(x @ p["Dense_0"]["kernel"])
    seen, after = head.apply(variables, x, True, mutable=["batch_stats"])

    def rest(mean, var):
        z = np.maximum((hidden - mean) / np.sqrt(var + 1e-5), 0)
        return z @ np.asarray(p["Dense_1"]["kernel"]) + np.asarray(p["Dense_1"]["bias"])

    np.testing.assert_allclose(seen, rest(hidden.mean(0), hidden.var(0)), atol=1e-9)
    running = 0.9 * 0 + 0.1 * hidden.mean(0), 0.9 * 1 + 0.1 * hidden.var(0)
    np.testing.assert_allclose(head.apply({**variables, **after}, x, False), rest(*running), atol=1e-9)


def test_accuracies_are_counted_in_each_group(config, point):
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=(len(s.label), len(s.prompts))) for s in config.data.sets]
    found = heads._measured(config, point, list(map(jnp.asarray, scores)), jnp.array(1.5), jnp.array(0.1))
    values = dict(zip(heads.measures(config), np.asarray(found), strict=True))
    for s, score in zip(config.data.sets, scores, strict=True):
        right = score.argmax(1) == s.label
        assert values[f"{s.name} all"] == pytest.approx(right.mean())
        each = [right[s.group == g].mean() for g in range(len(s.sizes))]
        expected = [np.mean(each), np.mean(each[::3]), np.mean(each[1:3]), min(each)] if s.groups else [np.nan] * 4
        np.testing.assert_allclose([values[f"{s.name} {x}"] for x in heads.IN_SET[1:]], expected)
    assert (values["loss"], values["temperature"]) == (1.5, 0.1)
    scores[1][3, 0] = np.nan
    broken = heads._measured(config, point, list(map(jnp.asarray, scores)), jnp.array(1.5), jnp.array(0.1))
    assert np.isinf(broken[heads.measures(config).index("ood all")])


@pytest.fixture
def mmcl(mmcl, monkeypatch):
    monkeypatch.setattr(devices, "_start_jax", lambda *_: None)
    return mmcl


FLAGS = ("--epochs=2,12", "--layers=2", "--batch_size=50", "--learning_rate=0.03")


@pytest.mark.costly
def test_the_command_compares_arms(folder, tmp_path, mmcl, float32):
    ood = f"--ood=ood={folder}/ood.npz,again={folder}/half.npz"
    given = (f"--train={folder}/train.npz", ood, "--arms=supervised,whitened", "--width=1,2", f"--out={tmp_path}/run")
    code, out, err = mmcl(command, *given, *FLAGS)
    assert code == 0, err
    rows = csv_rows(tmp_path / "run/summary.csv")
    assert len(rows) == 3 * 2 * (2 + 1)  # seeds, widths; two times of training, and one closed form
    for row in rows:
        both = [float(row[f"{name} all"]) for name in ("ood", "again")]
        assert float(row["ood"]) == pytest.approx(np.mean(both))
    assert both[0] != both[1]
    shown = [row["id"] for row in rows if (row["arm"], row["width"], row["epochs"]) == ("supervised", "2", "12")]
    assert np.mean(list(map(float, shown))) > 0.6
    assert "Against ID accuracy: mean of ood, again" in out and "worst group of the ID set" in out
    assert "over seeds, test items" in out and (tmp_path / "run/features.png").stat().st_size > 10_000
    assert show.show(tmp_path / "run", tmp_path / "again") in out
    points = (f"--points={tmp_path}/run/summary.csv", "--seed_column=seed", f"--out={tmp_path}/lines")
    code, out, err = mmcl(lines, *points)
    assert code == 0 and "supervised - whitened" in out and "test items" not in out, err
    images = "--images=72,300,200"  # 3 of 10 of the 240 training images, and those of the OOD sets
    code, out, err = mmcl(lines, *points, images, "--ood=ood all,again all", "--id=id all", "--arm=arm,attribute")
    assert code == 0 and "supervised, attribute 1.0 - whitened, attribute 1.0" in out, err
    assert "over seeds, test items" in out


@pytest.mark.costly
def test_what_makes_an_accuracy_mean_less_is_said(folder, tmp_path, mmcl):
    """An evaluation set that has training images, groups of few images, and groups that the hold-out lost.

    Twin: none of it is said of sets without these.
    """
    raw = reference(Config(train=str(folder / "train.npz")))
    raw["attributes"] = np.where(np.arange(320) == 7, "sea", raw["attributes"])
    raw["units"] = np.r_[:240, :240:3]
    raw["attributes"][240:] = raw["attributes"][np.arange(0, 240, 3)]
    np.savez(tmp_path / "train.npz", **raw)
    ood = pairs(300, 1, p_spu=0.5)
    np.savez(tmp_path / "ood.npz", **{**ood, "image": np.r_[raw["image"][:5], ood["image"][5:]]})

    def notes(train, other):
        found = sets.load(Config(train=str(train), ood=(("ood", str(other)),), holdout=0.45, batch_size=50))
        return found.notes

    said = notes(tmp_path / "train.npz", tmp_path / "ood.npz")
    held = sum("have the features of training images" in note for note in said)
    assert held == 1
    assert any(note.startswith("ood: ") and "of its 300 images have the features" in note for note in said)
    assert f"id: has no image of ({raw['labels'][7]}, sea), which training has" in said
    assert any("fewer than 30, so its accuracy is uncertain" in note for note in said)
    assert not any("have the features of" in note or "has no image" in note
                   for note in notes(folder / "train.npz", folder / "ood.npz"))  # fmt: skip
    given = (f"--train={tmp_path}/train.npz", f"--ood=ood={tmp_path}/ood.npz", "--holdout=0.45", "--batch_size=50")
    code, _, err = mmcl(command, *given, "--dry_run", f"--out={tmp_path}/out")
    assert code == 0 and [f"note: {note}." for note in said] == err.splitlines()[: len(said)]


@pytest.mark.parametrize(
    "changed, flags, said",
    [
        ({"labels": np.array(["yak", *CLASSES[[0, 1] * 160]])[:320]}, "", "leaves class yak without"),
        ({"labels": np.zeros(320, int)}, "--id={0}/ood.npz --ood=a={0}/ood.npz", "at least two classes, got 1"),
        ({"image": np.full((320, 4), np.nan)}, "", "--train: image must be finite, got another value in row 0."),
        ({"image": np.zeros((320, 4), int)}, "", "--train: image must be floats"),
        ({"image": np.ones((320, 4))}, "--id={0}/ood.npz", "--train: image features must differ"),
        ({"text": np.ones((319, 3))}, "", "--train: image has 320 rows and text has 319."),
        ({"labels": np.linspace(0, 1, 320)}, "", "--train: labels must be whole numbers or words"),
        ({"prompts": np.ones((3, 3))}, "", "--train: prompts must have shape (2, 3)"),
        ({"prompts": np.ones((2, 3)), "classes": PLACES}, "", "--train: classes must name 'cat'"),
        ({}, "--id={0}/new.npz", "has classes that training lacks, which --arms=supervised cannot"),
        ({}, "--ood=a={0}/train.npz --id={0}/wide.npz", "--id: image must have 4 features, as in training, got 5."),
        ({}, "--id={0}/strange.npz", "--id: label 'yak' in row 2 is none of the scored classes."),
        ({"attributes": None}, "", "--ood must name a set"),
        ({"attributes": None}, "--ood=a={0}/ood.npz --attribute=0.5,1", "--attribute below 1 needs a training set"),
        ({}, "--batch_size=500", "--batch_size must be <= 168, the fewest training images, got 500."),
        ({}, "--percent=10,100 --batch_size=20", "--batch_size must be <= 16"),
        ({}, "--ood=a={0}/torn.npz", "--ood=a: rows 0 and 2 are one image by their features or `units`, but have"),
        ({}, "--ood=a", "needs NAME=FILE"),
        ({}, "--ood=id={0}/ood.npz", "needs names that differ from each other and from id"),
        ({}, "--width=1.5", "--width must be whole numbers, got 1.5."),
        ({}, "--percent=0,50", "--percent must be >= 1"),
        ({}, "--holdout=1", "--holdout must be above 0 and below 1, got 1."),
        ({}, "--ood=a={0}/none.npz", "--ood=a={0}/none.npz: cannot be read"),
    ],
)
def test_what_is_refused(changed, flags, said, folder, tmp_path, mmcl):
    raw = {**reference(Config(train=str(folder / "train.npz"))), **changed}
    np.savez(tmp_path / "train.npz", **{k: v for k, v in raw.items() if v is not None})
    ood = pairs(30, 2)
    np.savez(tmp_path / "ood.npz", **ood)
    np.savez(tmp_path / "wide.npz", image=np.arange(150.0).reshape(30, 5), labels=ood["labels"])
    torn = {**ood, "image": ood["image"][[0, 1, 0, *range(3, 30)]]}
    torn["attributes"] = np.array(["sofa", "sofa", "grass", *ood["attributes"][3:]])
    torn["labels"] = np.array([*ood["labels"][[0, 1, 0]], *ood["labels"][3:]])
    np.savez(tmp_path / "torn.npz", **torn)
    ood["labels"][2] = "yak"
    np.savez(tmp_path / "strange.npz", **ood)
    (tmp_path / "new.npz").write_bytes((folder / "new.npz").read_bytes())
    given = [x.format(tmp_path) for x in flags.split()]
    given += [] if "batch_size" in flags else ["--batch_size=50"]
    before = sorted(tmp_path.iterdir())
    given = (f"--train={tmp_path}/train.npz", *given, f"--out={tmp_path}/out")
    assert_refused(mmcl(command, *given), said.format(tmp_path))
    assert sorted(tmp_path.iterdir()) == before


def test_the_paper_preset_leaves_what_is_given(monkeypatch, mmcl, folder, tmp_path):
    seen = []
    monkeypatch.setattr(command.command, "run", lambda config, *_: seen.append(config))
    given = (f"--train={folder}/train.npz", "--width=8,16", "--batch_size=50", f"--out={tmp_path}")
    mmcl(command, "--preset=paper", *given)
    assert (seen[0].width, seen[0].epochs) == ((8, 16), (100,)) and "sim_clr" in seen[0].arms
    assert_refuses("--train must name", Config().check)
    assert sets.ID == "id" and experiment.EXPERIMENT.figure == "features"


def dataset_of(config, measured):
    """What a run with these measured values stores."""
    grid, dataset = experiment.grid_of(config), experiment.complete(config, measured)
    return dataset.assign(measured=(grid.dims, measured)).assign_coords(store.coordinates(grid))


def test_arms_of_one_point_have_no_lines(config):
    """One run of a closed form: its accuracies, and its point."""
    alone = dataclasses.replace(config, arms=("whitened",), width=(2,), seeds=1)
    measured = np.full(experiment.grid_of(alone).shape, np.nan)
    measured[..., -1, :-2] = 0.75
    dataset = dataset_of(alone, measured)
    assert "+-" not in experiment.text(dataset)  # one seed has no standard error
    assert "whitened rule, closed form" in experiment.text(dataset) and experiment.arms_of(dataset) == {}
    (axes,) = experiment.draw(dataset).axes
    assert axes.lines[0].get_xydata().tolist() == [[0.75, 0.75]]


def test_an_accuracy_is_not_rounded_to_the_images_of_another_group(config):
    """The worst group has .34, and the smallest group other images than a third of which are right."""
    alone = dataclasses.replace(config, arms=("supervised",), width=(2,), seeds=1)
    measured = np.full(experiment.grid_of(alone).shape, 0.75)
    measured[..., heads.measures(alone).index("id worst")] = 0.34
    measured[..., 0, 0] = 0.5
    points = experiment.arms_of(dataset_of(alone, measured))["worst group of the ID set"]["SL, cross-entropy"]
    assert [point.acc_ood for point in points] == [0.34, 0.34]


def test_a_singular_policy_does_not_end_the_search_of_captions():
    """Captions that tell no detail have a singular covariance, which the whitened rule without shrinkage inverts."""
    raw = pairs(600, 3)
    image, text = raw["image"], raw["text"]
    learner = {"whitened": mt.features.Learner("whitened", shrinkage=0.0)}
    given = {"learners": learner, "knobs": {}, "folds": 3, "budget": 0.5}
    shifted, _ = mt.diagnose(image, text, raw["labels"], raw["attributes"], **given).purchases
    assert shifted.detail > 0


@pytest.mark.parametrize("n", [28, 84, 120, 360, 1000])
def test_a_tie_is_neither_aligned_nor_conflicting(n):
    """Independent class and attribute, in numbers at which rounded shares differ; one sample more decides."""
    y, a = np.divmod(np.arange(n) % 4, 2)
    assert set(sets._joint(CLASSES[y], PLACES[a]).values()) == {-1}
    more = sets._joint(np.append(CLASSES[y], "cat"), np.append(PLACES[a], "sofa"))
    assert more["cat", "sofa"] == more["dog", "grass"] == 1 and more["cat", "grass"] == more["dog", "sofa"] == 0


@pytest.mark.costly
def test_a_singular_covariance_gives_no_scores(config, point):
    """A feature that is always 0, and no shrinkage; with it there are scores."""
    train = {**point["train"], "image": point["train"]["image"].at[:, 3].set(0.0)}
    for shrinkage, theta, finite in ((0.0, 1.0, False), (0.01, 1.0, True), (0.0, 0.0, True)):
        changed = dataclasses.replace(config, shrinkage=shrinkage, theta=theta)
        scores, *_ = heads.closed_form("whitened", changed, jax.random.key(0), {**point, "train": train})
        assert bool(jnp.isfinite(scores[0]).all()) is finite

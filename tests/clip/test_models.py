"""Towers compute what open_clip's do, under weights that follow from a rule; state dicts go in and out unchanged."""

import dataclasses
import functools
import gzip
import io
import json
import pathlib
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from mmcl_theory import losses
from sims.clip.model import models, weights
from tests.helpers import assert_refuses

REFERENCE = pathlib.Path(__file__).parent / "reference"
GOLDEN = json.loads((REFERENCE / "tiny_models.json").read_text())
PUBLISHED = json.loads(gzip.decompress((REFERENCE / "published_shapes.json.gz").read_bytes()))
TEXT = models.TextShape(context_length=16, vocabulary_size=512, width=64, heads=4, layers=2)
TINY = {
    "rn": models.Architecture("rn", 32, models.ResNetShape((1, 1, 1, 1), 16, 8), 64, TEXT, quick_gelu=True),
    "vit": models.Architecture("vit", 32, models.ViTShape(2, 64, 16, head_width=16), 64, TEXT, quick_gelu=True),
    "vit_gelu": models.Architecture("vit_gelu", 32, models.ViTShape(2, 64, 16, head_width=16), 64, TEXT),
}
SLOW = {"rn", "vit_gelu"}  # to compile, which vit is enough for in a quick run
KINDS = [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in TINY]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def shapes_of(golden):
    return {name: tuple(shape) for name, shape in golden["shapes"].items()}


def rule_weights(shapes):
    """{name: shape} to {name: float32 array}: names in sorted order, the k-th from RandomState(k)."""
    out = {}
    for k, name in enumerate(sorted(shapes)):
        shape, r = tuple(shapes[name]), np.random.RandomState(k)
        x = r.standard_normal(shape)
        if name == "logit_scale":
            x = np.log(1 / 0.07)
        elif name.endswith("num_batches_tracked"):
            x = np.zeros(shape)
        elif name.endswith("running_var"):
            x = 0.5 + r.uniform(size=shape)
        elif name.endswith(("bias", "running_mean")):
            x = 0.1 * x
        elif len(shape) == 1 and name.endswith("weight"):
            x = 1 + 0.1 * x
        elif len(shape) >= 2:
            x = x / np.sqrt(np.prod(shape[1:]))
        out[name] = np.asarray(x, np.float32)
    return out


def rule_inputs():
    """Four images (n, h, w, 3), and captions of 3 to 14 tokens that end with the largest id."""
    r = np.random.RandomState(1000)
    image = r.standard_normal((4, 3, 64, 64)).astype(np.float32)
    tokens = np.zeros((4, 16), np.int32)
    for i, length in enumerate((3, 7, 10, 14)):
        tokens[i, 0] = 510
        tokens[i, 1:length] = r.randint(1, 500, length - 1)
        tokens[i, length] = 511
    return image.transpose(0, 2, 3, 1), tokens


IMAGE, TOKENS = rule_inputs()


def state_dict(kind):
    return rule_weights(GOLDEN[kind]["shapes"])


@functools.cache
def network(kind, dtype=jnp.float32):
    return jax.jit(models.CLIP(TINY[kind], dtype).apply)


def features(kind, state=None, image=IMAGE, tokens=TOKENS):
    """Embeddings and the log of the logit scale in evaluation mode."""
    return network(kind)(weights.import_state_dict(state or state_dict(kind), TINY[kind]), image, tokens)


def is_reference(kind, found):
    golden = GOLDEN[kind]
    return [np.allclose(f, golden[f"{n}_features"], **CLOSE) for n, f in zip(("image", "text"), found, strict=False)]


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_losses_are_the_references(kind):
    image, text, logit_scale = features(kind)
    assert image.dtype == text.dtype == jnp.float32
    assert is_reference(kind, (image, text)) == [True, True]
    info_nce = jax.jit(functools.partial(losses.info_nce, normalize=True))
    found = info_nce(image, text, temperature=jnp.exp(-logit_scale)), jax.jit(losses.siglip)(image, text)
    expected = [GOLDEN[kind][name] for name in ("clip_loss_scale_1/0.07", "siglip_loss_scale_10_bias_-10")]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "other"), [pytest.param("vit", "vit_gelu", marks=pytest.mark.slow), ("vit_gelu", "vit")]
)
def test_the_other_activation_is_told_apart(kind, other):
    assert is_reference(kind, features(other, state_dict(kind))) == [False, False]


@pytest.mark.parametrize(
    ("kind", "name", "axes", "expected"),
    [
        ("vit", "visual.transformer.resblocks.1.attn.out_proj.weight", (1, 0), [False, True]),
        ("vit", "transformer.resblocks.0.attn.out_proj.weight", (1, 0), [True, False]),
        ("vit", "visual.conv1.weight", (0, 1, 3, 2), [False, True]),
        pytest.param("rn", "visual.layer2.0.conv2.weight", (0, 1, 3, 2), [False, True], marks=pytest.mark.slow),
        pytest.param("rn", "visual.layer1.0.conv1.weight", (1, 0, 2, 3), [False, True], marks=pytest.mark.slow),
        pytest.param("rn", "visual.conv2.weight", (1, 0, 2, 3), [False, True], marks=pytest.mark.slow),
        pytest.param("rn", "visual.attnpool.v_proj.weight", (1, 0), [False, True], marks=pytest.mark.slow),
    ],
)
def test_a_swapped_transpose_is_told_apart(kind, name, axes, expected):
    state = state_dict(kind)
    state[name] = state[name].transpose(axes)
    assert is_reference(kind, features(kind, state)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("running_mean", "bias"), ("running_var", "weight")])
def test_statistics_in_each_others_place_are_told_apart(pair):
    state = state_dict("rn")
    a, b = (f"visual.layer3.0.bn2.{name}" for name in pair)
    state[a], state[b] = state[b], state[a]
    assert is_reference("rn", features("rn", state)) == [False, True]


def test_text_is_read_up_to_its_end_and_in_order():
    _, text, _ = features("vit")
    tokens = TOKENS.copy()
    tokens[0, 4:] = 9  # the end of caption 0 is at 3
    tokens[1, [1, 2]] = tokens[1, [2, 1]]
    _, changed, _ = features("vit", tokens=tokens)
    np.testing.assert_array_equal(changed[0], text[0])
    assert not np.allclose(changed[1], text[1], **CLOSE)


@pytest.mark.slow
def test_zeros_after_the_longest_caption_can_be_left_out():
    _, text, _ = features("vit")
    np.testing.assert_allclose(features("vit", tokens=TOKENS[:, :15])[1], text, **CLOSE)
    assert not np.allclose(features("vit", tokens=TOKENS[:, 1:])[1], text, **CLOSE)


def gradient_norms(kind):
    """The loss in training mode, and the norm of its gradient in each entry of the state dict."""
    arch = TINY[kind]
    variables = weights.import_state_dict(state_dict(kind), arch)

    @jax.jit
    def loss_and_gradient(params):
        def loss(params):
            state = variables | {"params": params}
            (image, text, logit_scale), _ = models.CLIP(arch).apply(state, IMAGE, TOKENS, True, mutable=["batch_stats"])
            return losses.info_nce(image, text, temperature=jnp.exp(-logit_scale), normalize=True)

        return jax.value_and_grad(loss)(params)

    loss, gradient = loss_and_gradient(variables["params"])
    exported = weights.export_state_dict(variables | {"params": gradient}, arch)
    return loss, {name: np.linalg.norm(exported[name]) for name in GOLDEN[kind]["train_gradient_norms"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rn", "vit"])
def test_the_training_loss_and_each_gradient_are_the_references(kind):
    golden = GOLDEN[kind]
    loss, norms = gradient_norms(kind)
    np.testing.assert_allclose(loss, golden["train_clip_loss"], rtol=1e-5)
    expected = golden["train_gradient_norms"]
    for name, norm in norms.items():
        # A constant added to every key changes no attention: that gradient is rounding, of numbers about 1 in size.
        atol = 1e-5 if name == "visual.attnpool.k_proj.bias" else 0
        np.testing.assert_allclose(norm, expected[name], rtol=1e-4, atol=atol, err_msg=name)
    if kind == "rn":  # the loss by running statistics is another one
        assert abs(loss - golden["clip_loss_scale_1/0.07"]) > 0.1
    else:  # and the other activation's gradients are others
        others = GOLDEN["vit_gelu"]["train_gradient_norms"]
        assert not any(np.isclose(norms[name], other, rtol=1e-4) for name, other in others.items())


@pytest.mark.costly
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "ViT-B-32" else pytest.mark.slow) for name in PUBLISHED]
)
def test_published_names_shapes_and_counts(name):
    arch = models.ARCHITECTURES[name]
    assert weights.state_dict_shapes(arch) == shapes_of(PUBLISHED[name])
    assert models.count_parameters(models.variable_shapes(arch)["params"]) == PUBLISHED[name]["parameters"]
    quick = dataclasses.replace(arch, name=f"{name}-quickgelu", quick_gelu=True)
    assert quick == models.ARCHITECTURES[f"{name}-quickgelu"]


@pytest.mark.slow
def test_other_shapes_are_another_architecture():
    assert weights.state_dict_shapes(models.ARCHITECTURES["ViT-B-16"]) != shapes_of(PUBLISHED["ViT-B-32"])


@pytest.mark.parametrize("kind", TINY)
def test_tiny_names_shapes_and_counts(kind):
    assert weights.state_dict_shapes(TINY[kind]) == shapes_of(GOLDEN[kind])
    params = models.variable_shapes(TINY[kind])["params"]
    assert models.count_parameters(params) == GOLDEN[kind]["parameters"]


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
@pytest.mark.parametrize("kind", ["rn", "vit"])
def test_a_state_dict_goes_in_and_out(kind, ending, tmp_path):
    state, path = state_dict(kind), tmp_path / f"weights.{ending}"
    safetensors.numpy.save_file(state, path) if ending == "safetensors" else np.savez(path, **state)
    variables = weights.import_state_dict(path, TINY[kind])
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(variables))
    again = weights.export_state_dict(variables, TINY[kind])
    assert again.keys() == state.keys()
    for name, x in state.items():
        np.testing.assert_array_equal(again[name], x, err_msg=name, strict=not name.endswith("tracked"))
    shapes = jax.tree.map(lambda x: x.shape, variables)
    assert shapes == jax.tree.map(lambda x: x.shape, models.variable_shapes(TINY[kind]))


def test_half_precision_and_openais_scalars_are_read(tmp_path):
    state = {n: x.astype(np.float16) for n, x in state_dict("vit").items()}
    scalars = {name: np.int64(64) for name in ("input_resolution", "context_length", "vocab_size")}
    bfloat = {n: x.astype(jnp.bfloat16) for n, x in state.items()}
    safetensors.numpy.save_file(bfloat, tmp_path / "w.safetensors")
    for source, known in ((state | scalars, state), (tmp_path / "w.safetensors", bfloat)):
        again = weights.export_state_dict(weights.import_state_dict(source, TINY["vit"]), TINY["vit"])
        assert all((again[name] == x.astype(np.float32)).all() for name, x in known.items())


def without(state, name):
    return {n: x for n, x in state.items() if n != name}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda s: without(s, "visual.proj"), ("no entry visual.proj", "vit needs")),
        (lambda s: s | {"extra.weight": s["visual.proj"]}, ("extra.weight is no entry of vit", "1 such")),
        (lambda s: s | {"visual.proj": s["visual.proj"].T}, ("visual.proj is (32, 64)", "(64, 32)")),
        (lambda s: s | {"visual.proj": np.zeros((64, 32), int)}, ("visual.proj holds int64",)),
        (lambda s: s | {"ln_final.bias": s["ln_final.bias"] * np.nan}, ("ln_final.bias", "not finite")),
        (lambda s: {f"module.{n}": x for n, x in s.items()}, ("no entry", "prefix module.")),
        (lambda s: state_dict("rn"), ("no entry visual.", "weights of this architecture")),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, parts):
    assert_refuses(parts, weights.import_state_dict, change(state_dict("vit")), TINY["vit"])


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("RN50.pt", pickle.dumps({}), ("can run any code", "torch.load('", "RN50.safetensors'", "weights_only=True")),
        ("model.bin", b"", ("can run any code", "model.safetensors")),
        ("page.safetensors", b"<!DOCTYPE html>", ("it is an HTML page",)),
        ("packed.npz", b"\x1f\x8b\x08" + bytes(100), ("compressed by gzip",)),
        ("pickle.safetensors", b"PK\x03\x04" + bytes(100), ("as .npz files and PyTorch's pickles are",)),
        ("cut.safetensors", b"\x08\0\0\0\0\0\0\0{", ("not readable as safetensors", "download it again")),
        ("cut.npz", b"PK\x03\x04", ("not readable as npz",)),
        ("pickle.npz", pickle.dumps({}), ("not readable as npz",)),
        ("none.npz", None, ("no such file",)),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(name, data, parts, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert_refuses((name, *parts), weights.import_state_dict, tmp_path / name, TINY["vit"])


def test_an_array_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", **{"visual.proj": np.array([{}], object)})
    assert_refuses("not readable as npz", weights.import_state_dict, tmp_path / "w.npz", TINY["vit"])


def test_openais_own_weights_ask_for_their_activation():
    scalars = {"input_resolution": np.int64(64)}
    said = "holds input_resolution, ", " give --architecture=vit_gelu-quickgelu"
    assert_refuses(said, weights.import_state_dict, state_dict("vit_gelu") | scalars, TINY["vit_gelu"])
    weights.import_state_dict(state_dict("vit") | scalars, TINY["vit"])


@pytest.mark.parametrize("name, told", [("visual.proj", "is (1099511627776, 1), where vit has"), ("x", "is no entry")])
def test_an_npz_that_unpacks_without_end_is_not_unpacked(name, told, tmp_path):
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1)}
    np.lib.format.write_array_header_1_0(header, shape)
    np.savez(tmp_path / "w.npz", **without(state_dict("vit"), name))
    with zipfile.ZipFile(tmp_path / "w.npz", "a") as archive:
        archive.writestr(f"{name}.npy", header.getvalue())
    assert_refuses(told, weights.import_state_dict, tmp_path / "w.npz", TINY["vit"])


@pytest.mark.slow
def test_half_precision_computes_in_it_and_keeps_parameters_whole():
    exact, half = features("vit"), network("vit", jnp.bfloat16)
    variables = weights.import_state_dict(state_dict("vit"), TINY["vit"])
    for found, expected in zip(half(variables, IMAGE, TOKENS)[:2], exact[:2], strict=True):
        assert found.dtype == jnp.float32
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert 1e-4 < error < 2**-5, error  # 2^-8 a step, over some dozen steps
    shapes = jax.eval_shape(models.CLIP(TINY["rn"], jnp.bfloat16).init, jax.random.key(0), IMAGE, TOKENS)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))


def test_running_statistics_move_a_tenth_of_the_way():
    variables = weights.import_state_dict(state_dict("rn"), TINY["rn"])
    kernel, before = variables["params"]["visual"]["conv1"]["kernel"], variables["batch_stats"]["visual"]["bn1"]
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(IMAGE, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=dims)

    @jax.jit
    def after(variables):
        tower = models.image_tower(TINY["rn"])
        alone = {kind: tree["visual"] for kind, tree in variables.items()}
        return tower.apply(alone, IMAGE, True, mutable=["batch_stats"])[1]["batch_stats"]["bn1"]

    found = after(variables)
    np.testing.assert_allclose(found["mean"], 0.9 * before["mean"] + 0.1 * y.mean((0, 1, 2)), atol=1e-6)
    biased, unbiased = (0.9 * before["var"] + 0.1 * y.var((0, 1, 2), ddof=ddof) for ddof in (0, 1))
    np.testing.assert_allclose(found["var"], biased, rtol=1e-6)
    assert np.abs(unbiased / biased - 1).max() > 1e-5, "PyTorch's is told apart"


@pytest.mark.slow
def test_the_image_tower_alone_is_the_same():
    variables = weights.import_state_dict(state_dict("vit"), TINY["vit"])
    alone = jax.jit(models.image_tower(TINY["vit"]).apply)({"params": variables["params"]["visual"]}, IMAGE)
    assert np.allclose(alone, GOLDEN["vit"]["image_features"], **CLOSE)


def test_tokens_that_do_not_fit():
    arch = TINY["vit"]
    variables = weights.import_state_dict(state_dict("vit"), arch)
    clip = models.CLIP(arch)
    with pytest.raises(ValueError, match="at most 16 columns, got 17"):
        clip.apply(variables, np.zeros((1, 17), np.int32), method="encode_text")
    _, text, _ = features("vit", tokens=np.where(TOKENS == 511, 512, TOKENS))
    assert np.isnan(text).all(), "an id beyond the vocabulary"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"image_size": 40}, "architecture vit: image_size 40 must be a multiple of 16."),
        ({"image_size": 0}, "architecture vit: image_size 0 must be a multiple of 16."),
        ({"vision": models.ResNetShape((1, 1), 6, 5)}, "architecture vit: image width 48 must be a multiple of 5, for"),
        ({"text": dataclasses.replace(TEXT, heads=5)}, "architecture vit: text width 64 must be a multiple of 5, for"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(change, line):
    assert assert_refuses((), dataclasses.replace, TINY["vit"], **change).startswith(line)


@pytest.mark.long
@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_small_networks_learn_which_caption_is_whose(name, float32):
    arch = models.ARCHITECTURES[name]
    clip, optimizer, n = models.CLIP(arch), optax.adam(3e-3), 8
    keys = jax.random.split(jax.random.key(0), 3)
    image = jax.random.normal(keys[0], (n, 32, 32, 3))
    tokens = jax.random.randint(keys[1], (n, 8), 1, 4094).at[:, -1].set(4095)

    @jax.jit
    def step(variables, state):
        def loss(params):
            given = variables | {"params": params}, image, tokens, True
            (a, b, scale), new = clip.apply(*given, mutable=["batch_stats"])
            return losses.info_nce(a, b, temperature=jnp.exp(-scale), normalize=True), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradient, state)
        return value, {"params": optax.apply_updates(variables["params"], updates)} | new, state

    variables = jax.jit(clip.init)(keys[2], image, tokens)
    assert float(variables["params"]["logit_scale"]) == np.float32(np.log(1 / 0.07))
    state, found = optimizer.init(variables["params"]), []
    for _ in range(20):
        value, variables, state = step(variables, state)
        found.append(float(value))
    assert found[0] > np.log(n) / 2 and found[-1] < 0.1, found

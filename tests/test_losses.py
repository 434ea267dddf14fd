"""Losses against loops written from their equations, exact special cases, and inputs where a naive formula breaks."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from mmcl_theory import losses

LABELS = [0, 0, 1, 0, 1, 2]  # unbalanced, with a class of one
N, R, C = len(LABELS), 3, 4


def row_weight(labels, weight, i, j):
    """w_ij, one pair at a time."""
    if labels is None:
        return 1 / (N - 1)
    members = sum(label == labels[i] for label in labels)
    return weight / (members - 1) if labels[j] == labels[i] else (1 - weight) / (len(labels) - members)


def loop_linear_mmcl(image, text, *, labels=None, same_class_weight=None, w=row_weight):
    n, total = len(image), 0.0
    for i in range(n):
        for j in range(n):
            if j != i:
                s_ij, s_ji, s_ii = image[i] @ text[j], image[j] @ text[i], image[i] @ text[i]
                total += w(labels, same_class_weight, i, j) * ((s_ij - s_ii) + (s_ji - s_ii))
    return total / (2 * n)


def unit(x):
    return np.stack([row / np.sqrt(row @ row) for row in x])


def loop_info_nce(image, text, *, temperature=1.0, normalize=False, labels=None, same_class_weight=None, w=row_weight):
    n, total = len(image), 0.0
    if normalize:
        image, text = unit(image), unit(text)
    for anchor, candidate in ((image, text), (text, image)):
        for i in range(n):
            positive = np.exp(anchor[i] @ candidate[i] / temperature)
            negative = sum(
                (n - 1) * w(labels, same_class_weight, i, j) * np.exp(anchor[i] @ candidate[j] / temperature)
                for j in range(n)
                if j != i
            )
            total -= np.log(positive / (positive + negative))
    return total / (2 * n)


def loop_siglip(
    image, text, *, scale=10.0, bias=-10.0, normalize=True, labels=None, same_class_weight=None, w=row_weight
):
    n, total = len(image), 0.0
    if normalize:
        image, text = unit(image), unit(text)
    for i in range(n):
        for j in range(n):
            logit = scale * (image[i] @ text[j]) + bias
            if i == j:
                total -= np.log(1 / (1 + np.exp(-logit)))
            else:
                both = w(labels, same_class_weight, i, j) + w(labels, same_class_weight, j, i)
                total -= (n - 1) * both / 2 * np.log(1 / (1 + np.exp(logit)))
    return total / n


def loop_spectral(image, text, *, labels=None, same_class_weight=None, w=row_weight):
    n, total = len(image), 0.0
    for i in range(n):
        total -= 2 * (image[i] @ text[i])
        for j in range(n):
            if j != i:
                both = w(labels, same_class_weight, i, j) + w(labels, same_class_weight, j, i)
                total += both / 2 * (image[i] @ text[j]) ** 2
    return total / n


def loop_sup_con(embedding, labels, *, temperature=0.1, normalize=True, with_self=False):
    z, terms = unit(embedding) if normalize else embedding, []
    for i in range(len(z)):
        rest = [a for a in range(len(z)) if with_self or a != i]
        below = sum(np.exp(z[i] @ z[a] / temperature) for a in rest)
        positives = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        if positives:
            terms.append(-sum(np.log(np.exp(z[i] @ z[p] / temperature) / below) for p in positives) / len(positives))
    return sum(terms) / len(terms)


def loop_linear_sup_con(embedding, labels, with_self=False):
    n, total = len(embedding), 0.0
    for i in range(n):
        same = [j for j in range(n) if labels[j] == labels[i] and (with_self or j != i)]
        other = [j for j in range(n) if labels[j] != labels[i]]
        for group, sign in ((same, -1), (other, 1)):
            total += sign * sum(embedding[i] @ embedding[j] for j in group) / max(len(group), 1)
    return total / n


def loop_cross_entropy(logits, labels):
    return -sum(np.log(np.exp(x[k]) / sum(np.exp(x))) for x, k in zip(logits, labels, strict=True)) / len(logits)


def loop_product_penalty(w_image, w_text, rho):
    return (
        rho / 2 * sum((w_image[:, a] @ w_text[:, b]) ** 2 for a in range(len(w_image.T)) for b in range(len(w_text.T)))
    )


# name: loss, loop, hyperparameters that are differentiated and swept, and those that are fixed
PAIRWISE = {
    "linear_mmcl": (losses.linear_mmcl, loop_linear_mmcl, {}, {}),
    "info_nce": (losses.info_nce, loop_info_nce, {"temperature": 0.7}, {}),
    "info_nce_unit": (losses.info_nce, loop_info_nce, {"temperature": 0.5}, {"normalize": True}),
    "siglip": (losses.siglip, loop_siglip, {"scale": 3.0, "bias": -1.0}, {}),
    "siglip_raw": (losses.siglip, loop_siglip, {"scale": 0.9, "bias": 0.4}, {"normalize": False}),
    "spectral": (losses.spectral, loop_spectral, {}, {}),
}
OTHERS = {
    "sup_con": (losses.sup_con, loop_sup_con, {"temperature": 0.5}, {}),
    "sup_con_raw": (losses.sup_con, loop_sup_con, {"temperature": 0.9}, {"normalize": False}),
    "linear_sup_con": (losses.linear_sup_con, loop_linear_sup_con, {}, {}),
    "cross_entropy": (losses.cross_entropy, loop_cross_entropy, {}, {}),
    "product_penalty": (losses.product_penalty, loop_product_penalty, {"rho": 0.7}, {}),
}
CASES = [(name, weight) for name in PAIRWISE for weight in (None, 0.0, 0.3, 1.0)] + [(name, None) for name in OTHERS]
over_pairwise = pytest.mark.parametrize("name", PAIRWISE)
over_cases = pytest.mark.parametrize(("name", "weight"), CASES)
over_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def problem(name, weight=None):
    """(loop of the inputs, inputs, labels): the inputs are all that is differentiated, labels are None or a list."""
    _, loop, hyper, fixed = (PAIRWISE | OTHERS)[name]
    a, b, logits, w_image, w_text = draw((N, R), (N, R), (N, C), (R, 4), (R, 5))
    arrays = {"cross_entropy": {"logits": logits}, "product_penalty": {"w_image": w_image, "w_text": w_text}}
    default = {"embedding": a} if name in OTHERS else {"image": a, "text": b}
    inputs = arrays.get(name, default) | hyper | ({} if weight is None else {"same_class_weight": weight})
    labels = None if name == "product_penalty" or (name in PAIRWISE and weight is None) else LABELS
    given = fixed if labels is None else fixed | {"labels": labels}
    return functools.partial(lambda x, **more: loop(**x, **given, **more)), inputs, labels


def bound(name):
    """The loss as a function of (inputs, labels)."""
    loss, _, _, fixed = (PAIRWISE | OTHERS)[name]
    return lambda x, labels: loss(**x, **({} if labels is None else {"labels": labels}), **fixed)


@functools.cache
def compiled(name):
    """Value and gradient, compiled once for all tests: op by op this file takes minutes."""
    return jax.jit(jax.value_and_grad(bound(name)))


def evaluate(name, inputs, labels, dtype=np.float64):
    inputs = {key: jnp.asarray(x, dtype) for key, x in inputs.items()}
    return compiled(name)(inputs, None if labels is None else jnp.array(labels))


def evaluate_finite(name, inputs, labels, dtype=np.float64):
    value, grads = evaluate(name, inputs, labels, dtype)
    for leaf in (value, *grads.values()):
        assert jnp.isfinite(leaf).all()
    return value, grads


def on_matrices(change, inputs):
    return {key: change(x) if np.ndim(x) == 2 else x for key, x in inputs.items()}


def finite_differences(f, inputs, h=1e-4):
    """Five-point central differences in every entry. Error: rounding |f| eps/h ~ 1e-11, truncation h^4 |f^(5)|/30."""
    grads = {}
    for key, value in inputs.items():
        grad = np.zeros(np.shape(value))
        for index in np.ndindex(grad.shape):
            step = np.zeros(grad.shape)
            step[index] = h
            near, far = (f(inputs | {key: value + k * step}) - f(inputs | {key: value - k * step}) for k in (1, 2))
            grad[index] = (8 * near - far) / (12 * h)
        grads[key] = grad
    return grads


def worst_error(got, want):
    """Largest error of any entry, relative to the largest entry of its own array (or to 1)."""
    return max(float(np.abs(got[k] - want[k]).max() / max(1, np.abs(want[k]).max())) for k in want)


VALUE_RTOL = 1e-12
# Truncation below 1e-7: |f^(5)| in same_class_weight is at most 24 (largest ratio of terms, e^4)^5 = 1e10.
GRAD_TOL = 1e-6


@over_cases
def test_value_equals_loop(name, weight):
    loop, inputs, labels = problem(name, weight)
    np.testing.assert_allclose(evaluate(name, inputs, labels)[0], loop(inputs), rtol=VALUE_RTOL)


@over_cases
def test_gradient_equals_finite_differences_of_loop_and_rejects_a_wrong_one(name, weight):
    """Weights 0 and 1 are differentiated too: the loops extend smoothly beyond [0, 1]."""
    loop, inputs, labels = problem(name, weight)
    got, want = evaluate(name, inputs, labels)[1], finite_differences(loop, inputs)
    assert worst_error(got, want) < GRAD_TOL
    largest = max(got, key=lambda k: np.abs(got[k]).max())
    assert worst_error(got | {largest: got[largest] * (1 + 1e-4)}, want) > GRAD_TOL


@pytest.mark.parametrize(("name", "weight"), [case for case in CASES if case[1] is not None or case[0] in OTHERS])
def test_float32_agrees_with_float64(name, weight):
    _, inputs, labels = problem(name, weight)
    (value, grads), (value32, grads32) = (evaluate(name, inputs, labels, d) for d in (np.float64, np.float32))
    assert value32.dtype == jnp.float32
    # At most N N R = 108 terms, each rounded to 6e-8 of the largest.
    np.testing.assert_allclose(value32, value, rtol=1e-5, atol=1e-5)
    assert worst_error(grads32, grads) < 1e-5


WRONG_WEIGHTS = {
    "spread over n_i": lambda labels, weight, i, j: (
        weight / labels.count(labels[i]) if labels[j] == labels[i] else row_weight(labels, weight, i, j)
    ),
    "moved where a kind is absent": lambda labels, weight, i, j: row_weight(
        labels, 0.0 if labels.count(labels[i]) == 1 else weight, i, j
    ),
    "of the negative's class": lambda labels, weight, i, j: row_weight(labels, weight, j, i),
    "ignored": lambda labels, weight, i, j: 1 / (N - 1),
}


@over_pairwise
@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_value_rejects_wrong_weights(name, wrong):
    loop, inputs, labels = problem(name, 0.3)
    value, bad = evaluate(name, inputs, labels)[0], loop(inputs, w=WRONG_WEIGHTS[wrong])
    symmetric = wrong == "of the negative's class" and name.startswith(("siglip", "spectral"))  # they use wbar
    assert (abs(value - bad) < VALUE_RTOL * abs(value)) if symmetric else (abs(value - bad) > 1e-4 * abs(value))


def test_values_reject_wrong_sup_con_and_cross_entropy():
    loop, inputs, labels = problem("sup_con")
    assert abs(evaluate("sup_con", inputs, labels)[0] - loop(inputs, with_self=True)) > 1e-3
    loop, inputs, labels = problem("linear_sup_con")
    assert abs(evaluate("linear_sup_con", inputs, labels)[0] - loop(inputs, with_self=True)) > 1e-3
    loop, inputs, labels = problem("cross_entropy")
    assert abs(evaluate("cross_entropy", inputs, labels[::-1])[0] - loop(inputs)) > 1e-3


@over_pairwise
@pytest.mark.parametrize("classes", [2, 3])
def test_balanced_batch_at_the_neutral_weight_is_unweighted(name, classes):
    _, inputs, _ = problem(name)
    neutral = inputs | {"same_class_weight": (N / classes - 1) / (N - 1)}
    weighted = evaluate(name, neutral, np.arange(N) % classes)[0]
    np.testing.assert_allclose(weighted, evaluate(name, inputs, None)[0], rtol=1e-12)


def test_linear_mmcl_is_minus_the_trace_of_the_cross_covariance():
    _, inputs, _ = problem("linear_mmcl")
    cross = np.cov(inputs["image"], inputs["text"], rowvar=False, ddof=1)[:R, R:]
    np.testing.assert_allclose(evaluate("linear_mmcl", inputs, None)[0], -np.trace(cross), rtol=1e-12)


def test_value_without_compilation():
    """XLA simplifies 0 / 0 of an absent kind away where it compiles a whole loss; op by op it would be NaN."""
    loop, inputs, labels = problem("linear_mmcl", 0.3)
    arrays = {key: jnp.asarray(x) for key, x in inputs.items()}
    np.testing.assert_allclose(bound("linear_mmcl")(arrays, jnp.array(labels)), loop(inputs), rtol=VALUE_RTOL)


def test_unweighted_linear_mmcl_builds_no_n_by_n_matrix():
    x = jnp.ones((200_000, 2))  # a matrix of scores would take 320 GB
    assert losses.linear_mmcl(x, x) == 0


@pytest.mark.parametrize("weight", [None, 0.3])
def test_info_nce_at_high_temperature_is_linear_mmcl(weight):
    """log(1 + sum_j (n-1) w_ij e^(d_ij/T)) = log n + (n-1)/n sum_j w_ij d_ij / T + O(1/T^2) where sum_j w_ij = 1."""
    _, inputs, _ = problem("linear_mmcl", weight)
    labels = None if weight is None else np.arange(N) % 2
    linear = evaluate("linear_mmcl", inputs, labels)[1]["image"]

    def gap(t, factor):
        grad = t * evaluate("info_nce", inputs | {"temperature": t}, labels)[1]["image"]
        return jnp.abs(grad - factor * linear).max() / jnp.abs(linear).max()

    right = (N - 1) / N
    assert gap(1e4, right) < 1e-3
    np.testing.assert_allclose(gap(1e3, right) / gap(1e4, right), 10, rtol=0.02)
    assert gap(1e4, 1) > 0.1


@pytest.mark.parametrize("name", ["info_nce", "info_nce_unit"])
def test_info_nce_of_identical_embeddings_is_log_n(name):
    x = np.tile([[1.0, -2.0, 0.5]], (N, 1))
    value = evaluate(name, {"image": x, "text": x, "temperature": 0.7}, None)[0]
    np.testing.assert_allclose(value, np.log(N), rtol=1e-12)


@pytest.mark.parametrize(("name", "weight"), [case for case in CASES if case[0] != "product_penalty"])
def test_permuting_samples_changes_nothing(name, weight):
    _, inputs, labels = problem(name, weight)
    order = np.array([3, 1, 5, 0, 2, 4])
    permuted = evaluate(
        name, on_matrices(lambda x: x[order], inputs), None if labels is None else np.array(labels)[order]
    )
    np.testing.assert_allclose(permuted[0], evaluate(name, inputs, labels)[0], rtol=1e-12)


@pytest.mark.parametrize(("name", "weight"), [case for case in CASES if case[0] != "cross_entropy"])
def test_rotating_the_embedding_space_changes_nothing(name, weight):
    _, inputs, labels = problem(name, weight)
    turn, _ = np.linalg.qr(draw((R, R), seed=2)[0])
    rotated = on_matrices((lambda x: turn @ x) if name == "product_penalty" else (lambda x: x @ turn), inputs)
    np.testing.assert_allclose(evaluate(name, rotated, labels)[0], evaluate(name, inputs, labels)[0], rtol=1e-12)


@pytest.mark.parametrize("name", ["sup_con", "info_nce_unit", "siglip"])
@pytest.mark.parametrize("factor", [3.0, 1e200, 1e-200])
def test_normalised_losses_ignore_the_length_of_each_row(name, factor):
    _, inputs, labels = problem(name)
    stretch = np.where(np.arange(N) == 2, factor, 1)[:, None]
    scaled = evaluate(name, on_matrices(lambda x: x * stretch, inputs), labels)[0]
    np.testing.assert_allclose(scaled, evaluate(name, inputs, labels)[0], rtol=1e-12)


@over_pairwise
@over_dtypes
def test_extreme_weights_and_scores_stay_finite(name, dtype):
    for labels in ([4] * N, list(range(N)), LABELS):
        for weight in (0.0, 0.3, 1.0):
            for size in (1, 100):  # scores of about 1 and 1e4
                inputs = on_matrices(lambda x, size=size: size * x, problem(name, weight)[1])
                evaluate_finite(name, inputs, labels, dtype)


@pytest.mark.parametrize("name", ["sup_con_raw", "cross_entropy"])
@over_dtypes
def test_large_logits_stay_finite(name, dtype):
    _, inputs, labels = problem(name)
    evaluate_finite(name, on_matrices(lambda x: x * (1e4 if name == "cross_entropy" else 1e2), inputs), labels, dtype)


@pytest.mark.parametrize(("labels", "weight"), [([4] * N, 0.0), (list(range(N)), 1.0)])
def test_without_negatives_only_the_positive_terms_remain(labels, weight):
    def value_and_grads(name):
        return evaluate(name, problem(name, weight)[1], labels)

    for name in ("linear_mmcl", "info_nce", "info_nce_unit"):
        value, grads = value_and_grads(name)
        assert value == 0
        assert not grads["image"].any() and not grads["text"].any()
    inputs = problem("siglip_raw")[1]
    positive = np.sum(inputs["image"] * inputs["text"], axis=1)
    np.testing.assert_allclose(value_and_grads("spectral")[0], -2 * positive.mean(), rtol=1e-12)
    want = np.mean(np.log1p(np.exp(-inputs["scale"] * positive - inputs["bias"])))
    np.testing.assert_allclose(value_and_grads("siglip_raw")[0], want, rtol=1e-12)


@pytest.mark.parametrize("name", ["sup_con", "info_nce_unit", "siglip"])
def test_zero_rows_normalise_to_zero_with_finite_gradients(name):
    _, inputs, labels = problem(name)
    keep = np.where(np.isin(np.arange(N), [1, 4]), 0, 1)[:, None]
    value, _ = evaluate_finite(name, on_matrices(lambda x: keep * x, inputs), labels)
    raw = {"sup_con": "sup_con_raw", "info_nce_unit": "info_nce", "siglip": "siglip_raw"}[name]
    want, _ = evaluate(raw, on_matrices(lambda x: keep * unit(x), inputs), labels)
    np.testing.assert_allclose(value, want, rtol=1e-12)


def test_sup_con_without_a_positive_pair_is_zero():
    value, grads = evaluate("sup_con", problem("sup_con")[1], np.arange(N))
    assert value == 0
    assert not grads["embedding"].any() and grads["temperature"] == 0


def test_removed_negative_that_outweighs_the_rest_caps_the_weight_gradient():
    image, text = np.zeros((N, R)), np.zeros((N, R))
    image[0, 0], text[1, 0] = 1e2, 1e2  # s_01 = 1e4, every other score 0
    inputs = {"image": image, "text": text, "temperature": 1.0, "same_class_weight": 0.0}
    _, grads = evaluate_finite("info_nce", inputs, LABELS)
    assert grads["same_class_weight"] > 1e200


def test_half_precision_is_widened_to_float32():
    narrow = jnp.array(draw((N, R))[0], jnp.bfloat16)
    for loss in (losses.linear_mmcl, lambda x, _: losses.cross_entropy(x, jnp.array(LABELS) % R)):
        value, wide = jax.jit(lambda x, loss=loss: (loss(x, x), loss(x.astype(jnp.float32), x.astype(jnp.float32))))(
            narrow
        )
        assert value == wide
        assert value.dtype == jnp.float32


@pytest.mark.parametrize("name", ["linear_mmcl", "info_nce", "siglip", "spectral", "sup_con"])
def test_vmap_over_hyperparameters_equals_a_loop(name):
    _, inputs, labels = problem(name, 0.3 if name in PAIRWISE else None)
    scalars = {key: value * jnp.array([0.2, 1.0, 1.7]) for key, value in inputs.items() if np.ndim(value) == 0}
    arrays = {key: jnp.asarray(x) for key, x in inputs.items() if np.ndim(x) == 2}
    values = jax.jit(jax.vmap(lambda x: bound(name)(arrays | x, jnp.array(labels))))(scalars)
    for k in range(3):
        value, _ = evaluate(name, arrays | {key: x[k] for key, x in scalars.items()}, labels)
        np.testing.assert_allclose(values[k], value, rtol=1e-12)


def test_constants_inside_jit_are_checked_and_used():
    _, inputs, labels = problem("info_nce", 0.3)
    constants = {key: jnp.asarray(x) for key, x in inputs.items()}
    value = jax.jit(lambda: bound("info_nce")(constants, jnp.array(labels)))()
    np.testing.assert_allclose(value, evaluate("info_nce", inputs, labels)[0], rtol=1e-12)
    logits, labels, negative = jnp.zeros((N, C)), jnp.array(LABELS), jnp.array(-1.0)
    np.testing.assert_allclose(jax.jit(lambda: losses.cross_entropy(logits, labels))(), np.log(C), rtol=1e-12)
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        jax.jit(lambda x: losses.info_nce(x, x, temperature=negative))(logits)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.1"):
        jax.jit(lambda x: losses.cross_entropy(x, labels))(logits[:, :2])


def test_traced_labels_out_of_range_are_indexed_as_documented():
    logits = jnp.array(draw((1, C))[0])
    loss = jax.jit(losses.cross_entropy)
    assert loss(logits, jnp.array([-1])) == loss(logits, jnp.array([C - 1]))
    assert jnp.isnan(loss(logits, jnp.array([C]))) and jnp.isnan(loss(logits, jnp.array([-C - 1])))


@pytest.fixture
def no_hooks(monkeypatch):
    """Lets bad shapes past the checks that the tests hook in front of the library's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refused(message, loss, *args, **kwargs):
    with pytest.raises(ValueError) as caught:
        loss(*args, **kwargs)
    assert str(caught.value) == message


X, K = np.ones((4, 3), np.float32), np.array([0, 0, 1, 1])


@over_pairwise
@pytest.mark.usefixtures("no_hooks")
def test_wrong_input_of_pairwise_losses_is_refused(name):
    loss = PAIRWISE[name][0]
    plain = loss.__name__
    refused("image and text must have the same shape, got (4, 3) and (5, 3).", loss, X, np.ones((5, 3)))
    refused(f"{plain} needs embeddings of shape (n, r), got (4,).", loss, X[:, 0], X[:, 0])
    refused(f"{plain} needs at least 2 samples, got 1.", loss, X[:1], X[:1])
    together = "labels and same_class_weight must be given together, got"
    refused(f"{together} labels=None.", loss, X, X, same_class_weight=0.5)
    refused(f"{together} same_class_weight=None.", loss, X, X, labels=K)
    for weight in (-0.1, 1.2, float("nan")):
        message = f"same_class_weight must be in [0, 1], got {weight}."
        refused(message, loss, X, X, labels=K, same_class_weight=weight)
    refused("labels must have shape (4,), got (3,).", loss, X, X, labels=K[:3], same_class_weight=0.5)
    refused("labels must be integers, got dtype float64.", loss, X, X, labels=K / 1, same_class_weight=0.5)
    refused("same_class_weight must be a scalar, got shape (4,).", loss, X, X, labels=K, same_class_weight=K / 1)


@pytest.mark.parametrize("bad", [-1.0, 0.0, float("nan"), float("inf"), np.float32(-1.5)])
@pytest.mark.usefixtures("no_hooks")
def test_wrong_hyperparameters_are_refused(bad):
    refused(f"temperature must be finite and > 0, got {bad}.", losses.info_nce, X, X, temperature=bad)
    refused(f"temperature must be finite and > 0, got {bad}.", losses.sup_con, X, K, temperature=bad)
    refused(f"scale must be finite and > 0, got {bad}.", losses.siglip, X, X, scale=bad)
    refused("bias must be finite, got inf.", losses.siglip, X, X, bias=float("inf"))
    refused("rho must be finite and >= 0, got -2.0.", losses.product_penalty, X, X, -2.0)


@pytest.mark.usefixtures("no_hooks")
def test_wrong_input_of_the_other_losses_is_refused():
    refused("sup_con needs at least 2 samples, got 1.", losses.sup_con, X[:1], K[:1])
    refused("sup_con needs embeddings of shape (n, r), got (4,).", losses.sup_con, X[:, 0], K)
    refused("labels must have shape (4,), got (3,).", losses.sup_con, X, K[:3])
    refused("linear_sup_con needs at least 2 samples, got 1.", losses.linear_sup_con, X[:1], K[:1])
    refused("labels must have shape (4,), got (3,).", losses.linear_sup_con, X, K[:3])
    refused("labels must be in 0..2, got 3.", losses.cross_entropy, X, K + 2)
    refused("labels must be in 0..2, got -1.", losses.cross_entropy, X, K - 1)
    refused("logits must be (n, c) with n, c >= 1, got shape (0, 3).", losses.cross_entropy, X[:0], K[:0])
    message = "w_image and w_text must be (r, d_i) and (r, d_t), got (4, 3) and (3, 3)."
    refused(message, losses.product_penalty, X, X[:3], 1.0)


def test_cross_entropy_of_one_sample():
    value = jax.jit(losses.cross_entropy)(jnp.zeros((1, C)), jnp.array([2]))
    np.testing.assert_allclose(value, np.log(C), rtol=1e-12)

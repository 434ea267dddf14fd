"""Rules learnt from sampled pairs in ambient space, and their exact accuracies; both also drawn directly (X9).

Nothing here uses `mmcl_theory.theory`: this is the measuring side of the ledger.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mmcl_theory as mt
from mmcl_theory import learners, losses, zero_shot


def known_options(**options) -> dict[str, Any]:
    """The compiler options that the installed compiler knows: they change between releases."""

    def known(name: str) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: options[name]}).lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            return False
        return True

    return {name: value for name, value in options.items() if known(name)}


# Most checks run for less time than XLA needs to compile them. `jit` compiles in a third of that time, to code that is
# two to three times as slow; `jit_long` is for long runs.
jit = functools.partial(
    jax.jit, compiler_options=known_options(xla_backend_optimization_level=0, xla_cpu_use_fusion_emitters=False)
)
jit_long = functools.partial(jax.jit, compiler_options=known_options(xla_backend_optimization_level=1))
LONG = 2e7  # numbers drawn, from which on it is worth it


def noise(d_i: int, d_t: int, s_i: float, s_t: float):
    """The observation with standard deviations s_i, s_t per coordinate."""
    return mt.observation(d_i, d_t, s_i * d_i**0.5, s_t * d_t**0.5)


def groups(accuracy):
    """(..., 2): aligned, conflicting; outside of a program by NumPy, for which no shape is a program to compile."""
    stack = jnp.stack if isinstance(accuracy.aligned, jax.core.Tracer) else np.stack
    return stack([accuracy.aligned, accuracy.conflicting], -1)


def shares(scores, test):
    """(2,): the share of each group's test pairs or latents whose own class scores highest. scores: (n, classes)."""
    aligned = mt.is_aligned(test.label, test.attribute)
    return groups(zero_shot.sampled_accuracy(scores, mt.class_index(test.label), aligned))


def by_group(right, aligned) -> np.ndarray:
    """(k, 2): whether each of k test samples of each group is right; k is the size of the smaller group."""
    right, aligned = np.asarray(right, float), np.asarray(aligned)
    size = min(aligned.sum(), (~aligned).sum())
    return np.stack([right[aligned][:size], right[~aligned][:size]], -1)


def single(*trees):
    """The trees in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), trees)


def fresh_pairs(key, model, caps, obs, n: int):
    """Dictionaries, and n pairs that are observed through them."""
    key_dictionaries, key_pairs = jax.random.split(key)
    d = mt.draw_dictionaries(key_dictionaries, model, obs)
    return d, mt.sample_pairs(key_pairs, model, caps, obs, n, d)


def repeated(run: Callable, key, runs: int, batch_size: int | None = None):
    """(runs, ...): run(key) for each of so many keys, as one program."""
    return jit(lambda key: jax.lax.map(run, jax.random.split(key, runs), batch_size=batch_size))(key)


def exact_accuracy(model, w, d, obs):
    """(2,): exact accuracies by group of the rule w in the ambient space."""
    return groups(zero_shot.linear_rule_accuracy(model, w @ d.image, w @ w, obs.sd_image))


def sample_covariances(pairs):
    """Sample covariances: of images with texts, of images, of texts."""
    image, text = pairs.image, pairs.text
    return [learners.cross_covariance(*xy) for xy in ((image, text), (image, image), (text, text))]


def linear(pairs, prompt, weight):
    """Minimiser of the linear loss with a same-class weight, times the prompt."""
    number = mt.class_index(pairs.label)
    return learners.cross_covariance(pairs.image, pairs.text @ prompt[:, None], number, weight)[:, 0]


def truncated(rank: int):
    """Minimiser of the ordinary linear loss at a rank, times the prompt."""

    def rule(pairs, prompt, weight):
        return learners.linear_optimum(learners.cross_covariance(pairs.image, pairs.text), 1.0, rank) @ prompt

    return rule


def ordinary(pairs, prompt, knob):
    """Minimiser of the ordinary linear loss, times the prompt."""
    return learners.cross_covariance(pairs.image, pairs.text @ prompt[:, None])[:, 0]


def whitened(pairs, prompt, theta):
    """Minimiser of the whitened family from sample covariances, times the prompt."""
    return learners.whitened_optimum(*sample_covariances(pairs), theta) @ prompt


def rules(key, model, caps, obs, knob, *, rule: Callable, n: int, runs: int, prompts: str = "core"):
    """(D_I^T w (runs, 2), |w|^2 (runs,)) of rules w, each learnt from n pairs, with the prompt of class +1."""
    compiled = _rules_long if runs * n * (obs.dim_image + obs.dim_text) > LONG else _rules
    return compiled(key, model, caps, obs, knob, rule=rule, n=n, runs=runs, prompts=prompts)


def _learnt(key, model, caps, obs, knob, *, rule: Callable, n: int, runs: int, prompts: str):
    """`rules`, without jit."""

    def run(key):
        d, pairs = fresh_pairs(key, model, caps, obs, n)
        w = rule(pairs, d.text @ zero_shot.latent_prompts(model, prompts)[1], knob)
        return w @ d.image, w @ w

    return jax.lax.map(run, jax.random.split(key, runs), batch_size=4)


def ratio(w):
    """w_s / w_c of rules (..., 2)."""
    return np.asarray(w)[..., 1] / np.asarray(w)[..., 0]


def learnt_ratios(seed: int, model, caps, obs, knob, **how) -> np.ndarray:
    """(runs,): w_s / w_c of each of `rules`; how: rule, n and runs."""
    return ratio(rules(jax.random.key(seed), model, caps, obs, jnp.asarray(knob), **how)[0])


_rules, _rules_long = (
    compiler(_learnt, static_argnames=("rule", "n", "runs", "prompts")) for compiler in (jit, jit_long)
)
_accuracy = jit(zero_shot.linear_rule_accuracy)


def accuracies(seed: int, model, caps, obs, knob=0.5, *, rule: Callable = linear, **how) -> np.ndarray:
    """(runs, 2): exact accuracy, aligned and conflicting, of each learnt rule; how: n, runs and prompts of `rules`."""
    w, norm = rules(jax.random.key(seed), model, caps, obs, jnp.asarray(knob, float), rule=rule, **how)
    return groups(_accuracy(model, w, norm, obs.sd_image))


@functools.partial(jit, static_argnames=("runs",))
def drawn_rules(key, model, caps, obs, n, weight, *, runs: int):
    """`rules` of the linear loss from their distribution, by `sample_rule_statistics`; X9 judges it against `rules`."""
    keys = jax.random.split(key, runs)
    return jax.vmap(lambda key: learners.sample_rule_statistics(key, model, caps, obs, n, weight))(keys)


def drawn_accuracies(seed: int, model, caps, obs, weight=0.5, *, n: int, runs: int) -> np.ndarray:
    """`accuracies` of the linear loss, from their distribution."""
    w, norm = drawn_rules(jax.random.key(seed), model, caps, obs, float(n), jnp.asarray(weight, float), runs=runs)
    return groups(_accuracy(model, w, norm, obs.sd_image))


@functools.partial(jit, static_argnames=("n", "runs"))
def drawn_scores(key, model, caps, obs, *, n: int, runs: int):
    """(runs, 2): accuracy by group on 400 images from P*; rules of n pairs and scores are drawn as in X9."""

    def run(key):
        key_rules, key_latents, key_scores = jax.random.split(key, 3)
        rules = learners.sample_rules(key_rules, model, caps, obs, n)
        latents = mt.shifted(model).sample(key_latents, 400)
        return shares(learners.sample_scores(key_scores, rules, latents.z, obs.sd_image), latents)

    return jax.lax.map(run, jax.random.split(key, runs))


def accuracy_of_halves(key, model, caps, obs, *, n: int, runs: int):
    """(runs, 2): accuracy by group, on 2n images from P*, of rules learnt from n pairs; without bias of order 1/n.

    Twice the accuracy of the rule of all n pairs, less the mean accuracy of the rules of its two halves.
    """

    def run(key):
        key_d, key_train, key_test = jax.random.split(key, 3)
        d = mt.draw_dictionaries(key_d, model, obs)
        pairs = mt.sample_pairs(key_train, model, caps, obs, n, d)
        test = mt.sample_pairs(key_test, mt.shifted(model), mt.captions(), obs, 2 * n, d)
        prompts = d.text @ zero_shot.latent_prompts(model).T

        def share(part):
            c = learners.cross_covariance(pairs.image[part], pairs.text[part])
            return shares(test.image @ (c @ prompts), test)

        first, second = (share(part) for part in (slice(n // 2), slice(n // 2, n)))
        return 2 * share(slice(n)) - (first + second) / 2

    return jax.lax.map(run, jax.random.split(key, runs))


def own_weights(key, model, caps, obs, weight=None, *, n: int, runs: int):
    """(runs, 2): (A, B) of Data Model 2, averaged over its pairs, learnt from n pairs with a same-class weight."""
    m = model.num_pairs

    def run(key):
        d, pairs = fresh_pairs(key, model, caps, obs, n)
        weighting = () if weight is None else (mt.class_index(pairs.label), weight, 2 * m)
        c = d.image.T @ learners.cross_covariance(pairs.image, pairs.text, *weighting) @ d.text
        return jnp.stack([jnp.trace(c[:m, :m]), jnp.trace(c[m:, :m])])

    return repeated(run, key, runs, batch_size=8)


@functools.partial(jit, static_argnames=("n", "seeds"))
def max_margin(key, model, obs, *, n: int, seeds: int):
    """(seeds, 2): exact accuracies of the max-margin rule of n sampled images; NaN where its certificate fails."""

    def one(key):
        d, pairs = fresh_pairs(key, model, mt.captions(), obs, n)
        fit = learners.max_margin_dual(pairs.image @ pairs.image.T, pairs.label)
        accuracy = exact_accuracy(model, (fit.dual * pairs.label) @ pairs.image, d, obs)
        return jnp.where(fit.separable & (fit.gap < 1e-3), accuracy, jnp.nan)

    return jax.lax.map(one, jax.random.split(key, seeds))


def trained_critic(key, draw: Callable, start, steps: int, temperature: float = 1.0, ridge: float = 0.0):
    """W of the bilinear critic trained by Adam on InfoNCE with a fresh batch draw(key) = (images, texts) a step and
    the penalty ridge/2 |W|_F^2; the mean over the later half of the steps."""

    def loss(w, image, text):
        return losses.info_nce(image @ w, text, temperature=temperature) + ridge / 2 * (w**2).sum()

    path = descent(key, draw, start, steps, loss, optax.adam(0.02))
    return path[steps // 2 :].mean(0)


def extrapolated(run: Callable, batch: int, seeds: int) -> np.ndarray:
    """2 r(2 N) - r(N), which has no bias of order 1/N left, of run(key, batch=, seeds=) at batches of N and 2 N."""
    small, large = (run(jax.random.key(n), batch=n, seeds=seeds) for n in (batch, 2 * batch))
    return 2 * np.asarray(large) - np.asarray(small)


@functools.partial(jit_long, static_argnames=("batch", "seeds", "steps"))
def trained_ratios(key, model, caps, obs, *, batch, seeds, steps, tau=1.0, rho=0.0):
    """(seeds,): w_s/w_c of critics trained by InfoNCE at temperature tau with (rho/2) |W|_F^2, mixture batches."""

    def one(key):
        key_d, key_steps = jax.random.split(key)
        d = mt.draw_dictionaries(key_d, model, obs)

        def draw(key):
            pairs = mt.sample_pairs(key, model, caps, obs, batch, d)
            return pairs.image, pairs.text

        w = trained_critic(key_steps, draw, jnp.zeros((len(d.image), len(d.text))), steps, tau, rho)
        w = d.image.T @ w @ d.text[:, 0]
        return w[1] / w[0]

    return jax.lax.map(one, jax.random.split(key, seeds))


def descent(key, draw: Callable, start, steps: int, loss: Callable, optimizer):
    """The parameters after each of the steps on loss(parameters, images, texts), a fresh batch draw(key) a step."""

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *draw(key)), state)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, steps))[1]

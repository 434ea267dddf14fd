"""Rules learnt from sampled pairs in the ambient space, and the exact accuracy of each."""

import functools

import jax

from mmcl_theory.data import class_index
from mmcl_theory.learners import cross_covariance, linear_optimum
from proofs_checks.ambient import exact_accuracy, fresh_pairs, jit_long

PER_BLOCK = 4


def weighted(pairs, prompt, weight):
    number = class_index(pairs.label)
    return {"weighted": cross_covariance(pairs.image, pairs.text @ prompt[:, None], number, weight)[:, 0]}


def unweighted(pairs, prompt, weight):
    c_hat = cross_covariance(pairs.image, pairs.text)
    truncated = {f"rank {r}": linear_optimum(c_hat, 2.0, r) @ prompt for r in (1, 2)}
    return truncated | {"matched": cross_covariance(pairs.image, pairs.text @ prompt[:, None])[:, 0]}


@functools.partial(jit_long, static_argnames=("learner", "n", "runs"))
def learnt_rules(key, model, caps, obs, weight=0.5, *, learner=weighted, n, runs):
    """{rule: (exact accuracies, latent parts of the rule), each (runs, 2)}; PER_BLOCK runs share dictionaries."""

    def block(key):
        d, pairs = fresh_pairs(key, model, caps, obs, n * PER_BLOCK)

        def run(pairs):
            rules = learner(pairs, model.mu_core * d.text[:, 0], weight)
            return jax.tree.map(lambda w: (exact_accuracy(model, w, d, obs), w @ d.image), rules)

        return jax.vmap(run)(jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]), pairs))

    results = jax.lax.map(block, jax.random.split(key, runs // PER_BLOCK))
    return jax.tree.map(lambda x: x.reshape(runs, 2), results)

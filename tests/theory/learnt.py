"""Rules learnt from sampled pairs in the ambient space, and the exact accuracy of each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmcl_theory.data import class_index, draw_dictionaries, observation, sample_pairs
from mmcl_theory.learners import cross_covariance, linear_optimum
from mmcl_theory.zero_shot import linear_rule_accuracy

# Each program runs for a second or so: at XLA's default level compiling takes twice as long, op by op longer still.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})


def groups(accuracy):
    """(..., 2); outside of a program by NumPy, for which no shape is a program to compile."""
    stack = jnp.stack if isinstance(accuracy.aligned, jax.core.Tracer) else np.stack
    return stack([accuracy.aligned, accuracy.conflicting], -1)


PER_BLOCK = 4


def weighted(pairs, prompt, weight):
    number = class_index(pairs.label)
    return {"weighted": cross_covariance(pairs.image, pairs.text @ prompt[:, None], number, weight)[:, 0]}


def unweighted(pairs, prompt, weight):
    c_hat = cross_covariance(pairs.image, pairs.text)
    truncated = {f"rank {r}": linear_optimum(c_hat, 2.0, r) @ prompt for r in (1, 2)}
    return truncated | {"matched": cross_covariance(pairs.image, pairs.text @ prompt[:, None])[:, 0]}


@functools.partial(jit, static_argnames=("learner", "n", "runs"))
def learnt_rules(key, model, caps, obs, weight=0.5, *, learner=weighted, n, runs):
    """{rule: (exact accuracies, latent parts of the rule), each (runs, 2)}; PER_BLOCK runs share dictionaries."""

    def block(key):
        key_dictionaries, key_pairs = jax.random.split(key)
        dictionaries = draw_dictionaries(key_dictionaries, model, obs)
        pairs = sample_pairs(key_pairs, model, caps, obs, n * PER_BLOCK, dictionaries)

        def run(pairs):
            def judge(w):
                latent = w @ dictionaries.image
                return groups(linear_rule_accuracy(model, latent, w @ w, obs.sd_image)), latent

            return jax.tree.map(judge, learner(pairs, model.mu_core * dictionaries.text[:, 0], weight))

        return jax.vmap(run)(jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]), pairs))

    results = jax.lax.map(block, jax.random.split(key, runs // PER_BLOCK))
    return jax.tree.map(lambda x: x.reshape(runs, 2), results)


def noise(d_i, d_t, s_i, s_t):
    """The observation with standard deviations s_i, s_t per coordinate."""
    return observation(d_i, d_t, s_i * d_i**0.5, s_t * d_t**0.5)

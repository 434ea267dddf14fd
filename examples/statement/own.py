"""X99: mismatched captions.

With probability eps a pair has the caption of another pair, drawn independently. Then image and caption are
independent and add nothing to the cross-covariance, while the text keeps its distribution. So the linear loss learns
(1 - eps) C p, the same direction, and its noise outside the latent coordinates stays as it was. Beside the shorter rule
this noise is what (1 - eps)^2 n pairs without mismatches would give.

Fails where: mismatches depend on the class or the attribute; the loss whitens, and the ridge or text noise is felt. The
noise in the latent coordinates is not covered: it falls, but by less.
"""

import jax
import jax.numpy as jnp

import mmcl_theory as mt
from mmcl_theory import learners
from proofs_checks import ambient, ledger

STATEMENT = "A share eps of mismatched captions shortens the rule by 1 - eps, and leaves its direction and outer noise"

MODEL, CAPTIONS, EPS, N = mt.intra_class(0.9, 1.0, 0.3), mt.captions(pi_core=0.7), 0.4, 100
OBS = mt.observation(dim_image=30, dim_text=10, sigma_image=2.0, sigma_text=1.0)


# The prediction: of a project that ships it, this is a function in mmcl_theory/theory/.
def prediction(eps=EPS, shrinks=False):
    """The mean of the learnt rule (2,), and of the squared norm of what it has outside the latent coordinates."""
    moments = mt.moments(MODEL, CAPTIONS)
    scores = moments.uu[0, 0] + OBS.sd_text**2  # Var(t) for the core prompt (1, 0)
    noise = OBS.sd_image**2 * (OBS.dim_image - 2) * scores / (N - 1)
    return (1 - eps) * moments.zu[:, 0], noise * ((1 - eps) ** 2 if shrinks else 1)


# The measurement: it shares only the model's definition with the prediction.
@ambient.jit  # jax.jit, quicker to compile
@jax.vmap
def learnt(key):
    """The rule learnt from N pairs of which some have another pair's caption: latent part, and the rest squared."""
    keys = jax.random.split(key, 4)
    dictionaries = mt.draw_dictionaries(keys[0], MODEL, OBS)
    pairs, others = (mt.sample_pairs(k, MODEL, CAPTIONS, OBS, N, dictionaries) for k in keys[1:3])
    mismatched = jax.random.bernoulli(keys[3], EPS, (N, 1))
    text = jnp.where(mismatched, others.text, pairs.text)
    rule = learners.cross_covariance(pairs.image, text) @ dictionaries.text[:, 0]
    latent = rule @ dictionaries.image
    return latent, rule @ rule - latent @ latent


def runs(effort):
    """A run for each key; `effort` is a factor on their number."""
    return learnt(jax.random.split(jax.random.key(0), 1000 * effort))


def direction(effort):
    """E w = (1 - eps) C p, exactly, at any n."""
    right = prediction()[0]
    wrong = {
        "mismatches ignored": prediction(eps=0.0)[0],
        "core alone shrinks": right / jnp.array([1, 1 - EPS]),
        "p for q": right * jnp.array([1, 0.9 / 0.8]),
    }
    claim = "mean of the rules learnt from 100 pairs, 40% mismatched: (1 - eps) C p"
    return ledger.judge(claim, ledger.mean(runs(effort)[0]), right, wrong)


def noise(effort):
    """E |w_perp|^2 = s_I^2 (d_I - 2) Var(t) / (n - 1), exactly, whatever eps is."""
    right = prediction()[1]
    wrong = {"it shrinks with the rule": prediction(shrinks=True)[1], "8% more": ledger.off(right)}
    claim = "mean squared norm of the rules outside the latent coordinates: as without mismatches"
    return ledger.judge(claim, ledger.mean(runs(effort)[1]), right, wrong)


CHECKS = (direction, noise)

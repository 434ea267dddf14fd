"""X10: captions under a whitening loss; the population optimum of bilinear InfoNCE.

Under the loss CLIP is trained with, which details a caption names decides. Never naming the spurious feature leaves the
shortcut of the labels; always naming it over-corrects; between lies a balanced policy in closed form, the best
that any linear rule can do on the shifted distribution. For the mixture of classes itself the optimum of InfoNCE is
computed by quadrature, and trained encoders meet it.

The paper's captions always name the attribute (Definition 5.1, masking "mean"; ours is "named"). Then Cov(z,u) is
Cov(u) but for the text's noise, so that the whitened rule is S_I^-1 e_core whatever is mentioned. It has w_s < 0 for
q > 0: a linear encoder over-corrects under every caption, and detail acts through noise, ridge and training time alone
(X12). In the paper's Figures 2 and 5 together (conflicting = 2 OOD - aligned) the aligned group is the worse one under
rich captions; Theorem 5.2 cannot give that.

Fails where: pi_core = 1 without image noise (the balance is then pi_spu = 0); the balance exceeds 1 (no captions
over-correct); normalised embeddings and deep encoders are not covered. "mean" with nothing mentioned and q = 1 leaves
Cov(u) singular, and the rule is that of its range.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from scipy.stats import norm

import mmcl_theory as mt
from mmcl_theory import losses, theory
from proofs_checks import ambient, ledger, symbolic
from proofs_checks.symbolic import m_c, m_s, pi, pi_s, q, s_c, s_s

STATEMENT = "Under the whitened loss pi_spu decides: never named, the shortcut is learnt; always named, over-corrected"
PICTURE = "phase_diagram_caption_policy.png"

optimum = ambient.jit(theory.info_nce_optimum, static_argnames=("nodes",))
accuracy = ambient.jit(theory.whitened_accuracy)
balanced = ambient.jit(theory.balanced_pi_spu)
batch_optimum = ambient.jit_long(theory.info_nce_batch_optimum, static_argnames=("batch_size", "batches"))
POLICIES = ((1.0, 1.0), (1.0, 0.5), (1.0, 0.0), (0.5, 0.5), (0.0, 0.0), (0.0, 1.0))
# (aligned, conflicting) of encoders trained with them, one run each; copied from docs/theory.md X10.
TRAINED = np.array([[0.613, 0.944], [0.786, 0.869], [0.876, 0.775], [0.909, 0.714], [0.999, 0.006], [0.986, 0.329]])
FEW = ((1.0, 1.0), (0.5, 0.2), (0.1, 0.9))


def spurious_weight(effort):
    """w_s of S_I^-1 Cov(z,u) S_T^-1 e_core from summed draws, noise included, up to positive factors."""
    s_i, s_t = sympy.symbols("s_I s_T", positive=True)
    moments = symbolic.intra_class()
    image, text = moments["zz"] + s_i**2 * sympy.eye(2), moments["uu"] + s_t**2 * sympy.eye(2)
    w = image.adjugate() * moments["zu"] * text.adjugate() * sympy.Matrix([1, 0])
    g, d = m_c**2 + s_c**2 + s_i**2, (1 - pi) * s_c**2 + s_i**2
    v, k = m_s**2 + s_s**2, q * m_c * m_s

    def printed(d=d, g=g, squared=2, noise=s_t**2):
        return k * (d * (pi_s * v + noise) - pi_s**squared * (g * v - k**2))

    return ledger.judge(
        "w_s ~ k [D (pi_spu v + s_T^2) - pi_spu^2 (G v - k^2)]",
        ledger.algebra(sympy.factor(w[1])),
        printed(),
        {
            "s_I left out of D": printed(d=(1 - pi) * s_c**2),
            "s_I left out of G": printed(g=m_c**2 + s_c**2),
            "s_T left out": printed(noise=0),
            "pi_spu for its square": printed(squared=1),
        },
    )


def the_paper_s_masking(effort):
    """E zu^T and E uu^T under masking "mean", draw by draw."""
    derived = symbolic.intra_class("mean")["zu"]

    def printed(masking):
        return symbolic.intra_class(masking)["uu"]

    return ledger.judge(
        'masking "mean", the paper\'s: Cov(z,u) = Cov(u)',
        ledger.algebra(derived),
        printed("mean"),
        {"named": printed("named"), "zero": printed("zero")},
    )


def over_corrected_whatever_is_mentioned(effort):
    """Directions of rules learnt from 20,000 ambient pairs under three policies of the paper's captions, no text noise.

    The ratio of a rule's weights is biased by O(1/n); with other draws it is .0008 +- .0007 at 500 pairs, too little to
    be seen here."""
    model, obs, policies = mt.intra_class(0.9, 1.0, 0.5), ambient.noise(6, 2, 0.4, 0.0), FEW
    how = {"rule": ambient.whitened, "n": 20_000, "runs": 60 * effort}
    samples = [
        ambient.learnt_ratios(30 + i, model, mt.captions(*policy, "mean"), obs, 1.0, **how)
        for i, policy in enumerate(policies)
    ]

    def prediction(noise=0.4):
        s_i = np.asarray(mt.moments(model, mt.captions()).zz) + noise**2 * np.eye(2)
        return np.full(3, ambient.ratio(np.linalg.solve(s_i, [1.0, 0.0])))

    named = [theory.whitened_rule(model, mt.captions(*policy), obs) for policy in policies]
    return ledger.judge(
        'masking "mean", whitened rules of 20,000 pairs, 3 policies: w_s / w_c of S_I^-1 e_core, below 0',
        ledger.mean(np.stack(samples, -1)),
        prediction(),
        {
            "masking named": ambient.ratio(named),
            "s_I left out": prediction(0.0),
            "8% off": ledger.off(prediction()),
        },
    )


def balanced_root(effort):
    """The code's root at random points makes the code's whitened rule vanish on the spurious feature."""
    points = symbolic.random_points(50)
    pp, core, _, mu_c, mu_s, sc, ss = points.T
    model, obs = mt.intra_class(np.maximum(pp, 0.55), sc, ss, mu_c, mu_s), ambient.noise(2, 2, 0.4, 0.3)
    root = balanced(model, mt.captions(core), obs)
    inside = np.asarray(root) < 1

    def compare(pi_spu):
        w = np.asarray(theory.whitened_rule(model, mt.captions(core, np.clip(pi_spu, 0, 1)), obs))
        return ledger.close((w[:, 1] / w[:, 0])[inside], 1e-10)(0.0)

    return ledger.judge(
        f"whitened rule at balanced_pi_spu: w_s = 0 at the {inside.sum()} of 50 points whose root is in [0, 1]",
        compare,
        np.asarray(root),
        {"1% above": 1.01 * np.asarray(root), "without noise": np.asarray(balanced(model, mt.captions(core)))},
    )


def balanced_is_best(effort):
    """acc_P* of the balanced policy, against the best of a grid of all policies and any linear rule's bound."""
    model, obs = mt.intra_class(0.95, 1.0, 0.2), ambient.noise(2, 2, 0.3, 0.3)
    grid = np.linspace(0, 1, 201)
    core, spu = (x.ravel() for x in np.meshgrid(grid, grid))
    ours = accuracy(model, mt.captions(core, spu), obs).shifted.max()

    def prediction(s_i=0.3):
        return norm.cdf(1 / np.hypot(1, s_i))

    return ledger.judge(
        "best acc_P* over 201 x 201 caption policies = Phi(mu_c/sqrt(s_c^2 + s_I^2)), the balanced rule's",
        ledger.close(ours, 2e-5),
        prediction(),
        {"s_I left out": prediction(0.0), "rich captions": accuracy(model, mt.captions(), obs).shifted},
    )


def whitened_table(effort):
    core, spu = np.array(POLICIES).T
    ours = ambient.groups(accuracy(mt.intra_class(0.99, 1.0, 0.1), mt.captions(core, spu), ambient.noise(2, 2, 0, 0.1)))
    printed = np.array([[0.516, 0.975], [0.700, 0.930], [0.841, 0.841], [0.835, 0.847], [1.0, 0.0], [0.592, 0.961]])
    return ledger.judge(
        "whitened (aligned, conflicting) of six caption policies as docs/theory.md X10 states them",
        ledger.close(ours, 4e-4),
        printed,
        {"groups swapped": printed[:, ::-1], "policies reversed": printed[::-1]},
    )


def trained_table(effort):
    """Encoders of one run each, which have no standard error.

    The tolerance, .004 (1 + acc), is guessed from their distance; it resolves what is below. `exact_balance` and
    `trained_encoders` have errors.
    """
    model, obs = mt.intra_class(0.99, 1.0, 0.1), ambient.noise(2, 2, 0.3, 0.3)

    def prediction(p=0.99):
        model = mt.intra_class(p, 1.0, 0.1)
        return np.array([ambient.groups(optimum(model, mt.captions(*pi), obs).accuracy(model, obs)) for pi in POLICIES])

    core, spu = np.array(POLICIES).T
    gaussian = ambient.groups(accuracy(model, mt.captions(core, spu), obs))
    return ledger.judge(
        "X10's trained (aligned, conflicting) of six policies, one run each: population optimum, to .004 (1 + acc)",
        ledger.close(TRAINED, 4e-3),
        prediction(),
        {
            "the Gaussian formula": gaussian,
            "8% farther from the Gaussian formula": ledger.off(prediction(), gaussian),
            "8% farther from chance": ledger.off(prediction(), 0.5),
            "p off by .03": prediction(0.96),
            "groups swapped": TRAINED[:, ::-1],
        },
    )


@functools.partial(ambient.jit, static_argnames=("n", "batches"))
def gradients(key, model, caps, obs, score, *, n: int, batches: int):
    """(batches, d_i d_t): gradient of `losses.info_nce` in W at D_I M D_T^T, a fresh ambient batch of n pairs each."""
    key_d, key_batches = jax.random.split(key)
    d = mt.draw_dictionaries(key_d, model, obs)
    w = d.image @ score @ d.text.T

    def one(key):
        pairs = mt.sample_pairs(key, model, caps, obs, n, d)
        return jax.grad(lambda w: losses.info_nce(pairs.image @ w, pairs.text))(w).ravel()

    return jax.lax.map(one, jax.random.split(key_batches, batches))


def setting():
    return mt.intra_class(0.95, 0.8, 0.3), mt.captions(0.7, 0.6), ambient.noise(6, 5, 0.5, 0.6)


def batch_optimum_is_stationary(effort):
    """All 30 entries of the ambient gradient at the optimum for batches of 16."""
    model, caps, obs = setting()
    trained = batch_optimum(jax.random.key(0), model, caps, obs, batch_size=16, batches=6000 * effort)

    def compare(score):
        samples = gradients(jax.random.key(3), model, caps, obs, score, n=16, batches=1500 * effort)
        return ledger.mean(samples)(np.zeros(30))

    return ledger.judge(
        "gradient of InfoNCE, batches of 16 in 6 and 5 dimensions, at its batch optimum: all 30 entries 0",
        compare,
        trained.score,
        {
            "transposed": trained.score.T,
            "batch size inf": optimum(model, caps, obs).score,
            "p off by .05": optimum(mt.intra_class(0.9, 0.8, 0.3), caps, obs).score,
        },
    )


def trained_encoders(effort):
    """Critics trained by Adam on fresh ambient batches of 64 and 128, extrapolated to N = inf: w_s/w_c of each."""
    model, caps, obs = setting()

    train = functools.partial(ambient.trained_ratios, model=model, caps=caps, obs=obs, steps=1000)
    samples = ambient.extrapolated(train, 64, 30 * effort)

    def exact(p=0.95, caps=caps):
        return ambient.ratio(optimum(mt.intra_class(p, 0.8, 0.3), caps, obs).score[:, 0])

    return ledger.judge(
        "w_s/w_c of critics trained by InfoNCE on ambient mixture batches (64, 128 extrapolated), up to .003",
        ledger.mean(samples, bias=3e-3),
        exact(),
        {
            "the Gaussian formula": ambient.ratio(theory.whitened_rule(model, caps, obs)),
            "p off by .05": exact(p=0.9),
            "pi_spu ignored": exact(caps=mt.captions(0.7, 1.0)),
        },
    )


def exact_balance(effort):
    """Batches drawn afresh, their optimum by Newton, the 1/N bias extrapolated away."""
    model, obs, core = mt.intra_class(0.95, 0.8, 0.3), ambient.noise(2, 2, 0.5, 0.5), 0.8
    exact = ambient.jit(theory.info_nce_balanced_captions, static_argnames=("nodes",))

    def compare(pi_spu):
        caps = mt.captions(core, jnp.asarray(pi_spu, float))
        few, many = (
            batch_optimum(jax.random.key(k), model, caps, obs, batch_size=size, batches=count * effort)
            for k, size, count in ((5, 24, 1200), (6, 72, 400))
        )
        weight = (3 * many.score - few.score)[1, 0] / 2
        error = float(np.hypot(3 * many.standard_error, few.standard_error)[1, 0] / 2)
        return ledger.Gap(0.0, float(weight), error, abs(float(weight)) / error, 5.0)

    root = float(exact(model, mt.captions(core), obs, nodes=32).pi_spu)
    formula = float(balanced(model, mt.captions(core), obs))
    return ledger.judge(
        f"w_s of InfoNCE optima of batches 24 and 72, extrapolated, at the exact balance pi_spu = {root:.3f}",
        compare,
        root,
        {f"the whitened formula's {formula:.3f}": formula},
    )


@functools.partial(ambient.jit, static_argnames=("nodes",))
def slope_in_pi_core(pi_core, model, obs, *, nodes):
    """acc_P* of InfoNCE's optimum with captions (pi_core, 1), and its derivative in pi_core."""

    def value(pi):
        return theory.info_nce_optimum(model, mt.captions(pi, 1.0), obs, nodes=nodes).accuracy(model, obs).shifted

    return jax.value_and_grad(value)(pi_core)


def slope_at_rich_captions(effort):
    """At the end of the range differences are one-sided: (-3 f(1) + 4 f(1-h) - f(1-2h)) / (-2h) is right to O(h^2)."""
    model, obs, h = mt.intra_class(0.95, 0.8, 0.3), ambient.noise(2, 2, 0.5, 0.6), 1e-3
    (end, slope), (near, _), (far, _) = (slope_in_pi_core(1 - k * h, model, obs, nodes=24) for k in (0, 1, 2))
    difference = float(3 * end - 4 * near + far) / (2 * h)
    return ledger.judge(
        "d acc_P* / d pi_core of InfoNCE's optimum at rich captions, pi = (1, 1), by one-sided differences",
        ledger.close(difference, 1e-4),
        slope,
        {"8% more": ledger.off(slope), "half, as if the differences were clipped": slope / 2, "sign": -slope},
    )


def approach_to_the_whitened_rule(effort):
    """With modality noise s the gap of the exact optimum to the whitened rule falls as s^-8."""
    model, caps, _ = setting()
    sizes, gaps = (8.0, 16.0, 32.0), []
    for s in sizes:
        obs = ambient.noise(2, 2, s, s)
        score, w = optimum(model, caps, obs).score, theory.whitened_rule(model, caps, obs)
        gaps.append(ambient.ratio(score[:, 0]) - ambient.ratio(w))
    return ledger.judge(
        "w_s/w_c: exact optimum minus whitened rule falls as s^-8 in the modality noise (exponent)",
        ledger.rate(sizes, gaps),
        -8.0,
        {"s^-2": -2.0, "s^-4": -4.0},
    )


CHECKS = (
    spurious_weight,
    the_paper_s_masking,
    over_corrected_whatever_is_mentioned,
    balanced_root,
    balanced_is_best,
    whitened_table,
    trained_table,
    batch_optimum_is_stationary,
    trained_encoders,
    exact_balance,
    slope_at_rich_captions,
    approach_to_the_whitened_rule,
)

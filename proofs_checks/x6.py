"""X6: the order in which modes are learnt.

From small balanced encoders along the singular vectors, each mode of the linear loss grows by its own logistic curve:
the strong ones first, so that accuracy changes in steps.

Fails where: encoders start at random (modes then first align); the learning rate is large (an error proportional to
it); samples are few (the sampling error of a mode that has grown hides those that have not); the loss is InfoNCE, which
parts from this once scores are of order one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sympy

import mmcl_theory as mt
from mmcl_theory import learners, theory
from mmcl_theory.data.captions import second_moments
from proofs_checks import ambient, ledger

STATEMENT = (
    "Gradient flow from small aligned encoders: om(t) = (s/rho)/(1 + ((s/rho)/om_0 - 1) e^(-2st)), strong modes first"
)
PICTURE = "dynamics.png"

RHO, INITIAL = 0.8, 1e-3


def solves_its_equation(effort):
    t, s, rho, start = sympy.symbols("t s rho omega_0", positive=True)
    om = (s / rho) / (1 + ((s / rho) / start - 1) * sympy.exp(-2 * s * t))
    derived = sympy.Matrix([sympy.diff(om, t), om.subs(t, 0)])

    def prediction(rate):
        return sympy.Matrix([rate * om * (s - rho * om), start])

    return ledger.judge(
        "om' = 2 om (s - rho om), om(0) = om_0",
        ledger.algebra(derived),
        prediction(2),
        {"rate 1": prediction(1), "rate 4": prediction(4)},
    )


def flow_of_the_product(effort):
    """W_I' = W_T C^T - rho W_T W_T^T W_I and so on: for balanced scalars, the product moves at 2 om (s - rho om)."""
    a, s, rho = sympy.symbols("a s rho", positive=True)
    left, right = sympy.symbols("b c", positive=True)
    loss = -left * right * s + rho / 2 * (left * right) ** 2
    speed = -(sympy.diff(loss, left) * right + sympy.diff(loss, right) * left)
    derived = speed.subs({left: a, right: a})
    om = a**2
    return ledger.judge(
        "one balanced mode: d(b c)/dt = 2 om (s - rho om) from the gradients of the loss",
        ledger.algebra(derived),
        2 * om * (s - rho * om),
        {"one encoder only": om * (s - rho * om), "rho dropped": 2 * om * s},
    )


def aligned_encoders(c):
    """Balanced encoders along the singular vectors of C, every mode of strength INITIAL."""
    u, _, vt = jnp.linalg.svd(c, full_matrices=False)
    return learners.Encoders(INITIAL**0.5 * u.T, INITIAL**0.5 * vt)


def descended(c, time, rate):
    """The product of the encoders after so much time of gradient descent on C."""
    how = {"rho": RHO, "optimizer": optax.sgd(rate), "steps": round(time / rate)}
    return learners.train_linear_mmcl(aligned_encoders(c), c, **how)[0].product


def descent(effort):
    """Both modes of the model's C after t = 1, 2, 4 of gradient descent at rate 2e-4; its error is of that order."""
    c = mt.moments(mt.intra_class(0.95, 1.0, 0.3), mt.captions(0.7, 0.9)).zu
    u, s, vt = jnp.linalg.svd(c)
    times = (1.0, 2.0, 4.0)

    def prediction(rho=RHO, initial=INITIAL, modes=s):
        return [theory.mode_strength(t, modes, rho, initial) for t in times]

    return ledger.judge(
        "strength of both modes at t = 1, 2, 4 of gradient descent",
        ledger.close([jnp.diagonal(u.T @ descended(c, t, 2e-4) @ vt.T) for t in times], 2e-3),
        prediction(),
        {
            "rho off by 3%": prediction(rho=1.03 * RHO),
            "om_0 off by 10%": prediction(initial=1.1 * INITIAL),
            "modes swapped": prediction(modes=s[::-1]),
        },
    )


def error_of_the_rate(effort):
    """Descent against flow: the error is proportional to the learning rate."""
    c = mt.moments(mt.intra_class(0.95, 1.0, 0.3), mt.captions(0.7, 0.9)).zu
    u, s, vt = jnp.linalg.svd(c)
    rates = (4e-3, 2e-3, 1e-3)
    flow = theory.mode_strength(2.0, s[0], RHO, INITIAL)
    errors = [float((u.T @ descended(c, 2.0, rate) @ vt.T)[0, 0] - flow) for rate in rates]
    return ledger.judge(
        "descent minus flow at t = 2 shrinks as the learning rate (exponent)",
        ledger.rate(rates, errors),
        1.0,
        {"rate^2": 2.0, "rate^(1/2)": 0.5},
    )


def accuracies_along(key, model, caps, obs, times, n, runs, accuracy, rate=5e-3):
    """(runs, times, groups): accuracy(d, W) along descent on the loss of n ambient pairs, from the modes of C."""

    def run(key):
        d, pairs = ambient.fresh_pairs(key, model, caps, obs, n)
        inner = aligned_encoders(second_moments(model, caps)[1])
        encoders = learners.Encoders(inner.image @ d.image.T, inner.text @ d.text.T)
        c = learners.cross_covariance(pairs.image, pairs.text)
        accuracies, done = [], 0
        for time in times:
            steps = round(time / rate) - done
            encoders = learners.train_linear_mmcl(encoders, c, rho=RHO, optimizer=optax.sgd(rate), steps=steps)[0]
            done += steps
            accuracies.append(accuracy(d, encoders.product))
        return jnp.stack(accuracies)

    return ambient.repeated(run, key, runs)


def ambient_runs(effort):
    """Accuracy in the middle of training on the loss of 4000 sampled pairs, ambient encoders."""
    model, caps, obs = mt.intra_class(0.95, 1.0, 0.3), mt.captions(0.7, 0.9), ambient.noise(12, 8, 0.1, 0.1)
    times = (4.0, 7.0)

    def accuracy(d, product):
        return ambient.exact_accuracy(model, product @ d.text[:, 0], d, obs)

    def prediction(times=times, p=0.95, initial=INITIAL):
        model = mt.intra_class(p, 1.0, 0.3)
        arguments = {"time": np.array(times), "rho": RHO, "initial": initial}
        return ambient.groups(theory.training_accuracy(model, caps, obs, **arguments))

    return ledger.judge(
        "accuracy after t = 4 and 7 of training on 4000 ambient pairs, up to .002",
        ledger.mean(
            accuracies_along(jax.random.key(2), model, caps, obs, times, n=4000, runs=60 * effort, accuracy=accuracy),
            bias=2e-3,
        ),
        prediction(),
        {
            "at the end": prediction((50.0, 50.0)),
            "times swapped": prediction(times[::-1]),
            "p off by .03": prediction(p=0.92),
            "groups swapped": prediction()[:, ::-1],
        },
    )


def mixture_runs(effort):
    """Three classes, a background: accuracy by group while the second mode of three is growing, and after.

    Earlier, when only the first has grown, its error from sampling hides the others, unless n is far larger.
    """
    model, obs = three_classes(0.9), ambient.noise(12, 8, 0.1, 0.1)
    caps, times = mt.group_captions(model, mention=[0.7, 0.7, 0.9]), (5.0, 8.0)

    def accuracy(d, product):
        rules = model.prompts() @ d.text.T @ product.T
        return model.rule_accuracy(rules @ d.image, rules @ rules.T, obs.sd_image).by_group

    def prediction(times=times, model=model, caps=caps, initial=INITIAL):
        arguments = {"time": jnp.array(times), "rho": RHO, "initial": initial}
        return ambient.jit(theory.training_accuracy)(model, caps, obs, **arguments).by_group

    return ledger.judge(
        "accuracy of six groups of three classes after t = 5 and 8 of training on 40,000 ambient pairs, up to .005",
        ledger.mean(
            accuracies_along(jax.random.key(3), model, caps, obs, times, n=40_000, runs=20 * effort, accuracy=accuracy),
            bias=5e-3,
        ),
        prediction(),
        {
            "at the end": prediction((50.0, 50.0)),
            "times swapped": prediction(times[::-1]),
            "the background agrees in .85": prediction(model=three_classes(0.85)),
            "captions name everything": prediction(caps=None),
            "om_0 twice": prediction(initial=2 * INITIAL),
        },
    )


def three_classes(agrees):
    """Two classes of which most are on one background, and one on the other; p = agrees in each class."""
    core = np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]]).repeat(2, axis=0)
    background = np.array([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])
    mean = np.column_stack([core, background])
    return mt.mixture([agrees / 3, (1 - agrees) / 3] * 3, mean, np.diag([0.3, 0.2, 0.05]), [0, 0, 1, 1, 2, 2])


CHECKS = (solves_its_equation, flow_of_the_product, descent, error_of_the_rate, ambient_runs, mixture_runs)

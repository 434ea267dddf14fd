"""T7 (Theorems F.1 and F.2): supervised contrastive learning with a linear head.

The linear SupCon loss compares every image with the mean of its class and with that of the others. So only the class
means (mu_c, q mu_s) are in its minimiser, not what varies within classes, and the head that is trained on it weighs the
spurious feature by q mu_s. In Data Model 1 the paper concludes from this matrix that no image of the conflicting group
is classified right for p -> 1. The matrix says one half: the theorem is refuted as stated, and yet SupCon stays below
MMCL, as the paper draws from it. In Data Model 2 with alpha > 1 the conflicting group is all wrong, at every m.

No linear head does better than 75% there. Along the axis of an image's own pair, its representation is c (1 + alpha^2)
if it is aligned and -c (alpha^2 - 1) if not, up to a factor, beside a draw of the other pairs that has the same law for
all. The regions of the classes are convex, so that of these four at most three are on the right side. The
ledger tries all heads for one pair; for more it rests on this proof.

Fails where: n is small (the mean over a class's other samples is noisy); the embedding is smaller than the rank, 1 in
Data Model 1 and m in Data Model 2; the head prefers some classes, by an intercept for each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import sympy

import mmcl_theory as mt
from mmcl_theory import learners, losses, theory
from proofs_checks import ambient, ledger, population, symbolic
from proofs_checks.symbolic import al, m_c, m_s, p, q

STATEMENT = "Linear SupCon sees class means alone: with a trained head w = (mu_c, q mu_s), and (1, q alpha) inter-class"


def matrix_of_the_loss(effort):
    """Mean over the same class less mean over the others, of independent draws, summed class by class."""
    m = 2
    intra, inter = symbolic.intra_class()["class_mean"], symbolic.inter_class(m)["class_mean"]

    def of(means):
        total = sympy.zeros(*(means[0] * means[0].T).shape)
        for i, here in enumerate(means):
            others = [x for j, x in enumerate(means) if j != i]
            away = sum((here * x.T for x in others), sympy.zeros(*total.shape)) / len(others)
            total += (here * here.T - away) / len(means)
        return total

    derived = sympy.diag(of(intra), of(inter))

    def printed(q=q, over=2 * m - 1):
        v = sympy.Matrix([m_c, q * m_s])
        pairs = [
            sympy.Matrix([int(j == k) for j in range(m)] + [q * al * int(j == k) for j in range(m)]) for k in range(m)
        ]
        return sympy.diag(2 * v * v.T, 2 * sum((x * x.T for x in pairs), sympy.zeros(2 * m, 2 * m)) / over)

    return ledger.judge(
        "matrix of linear SupCon: 2 v v^T, v = (mu_c, q mu_s); 2/(2m-1) sum_k v_k v_k^T, v_k = e_k + q alpha e_(k+m)",
        ledger.algebra(derived),
        printed(),
        {"p for q": printed(q=p), "2m for 2m - 1": printed(over=2 * m)},
    )


def loss_is_linear_in_the_gram_matrix(effort):
    """The loss of 9 random samples of 3 classes, pair by pair, and its minimiser against 300 others near it."""
    rng = np.random.default_rng(0)
    x, number = rng.normal(size=(9, 4)), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    w = rng.normal(size=(3, 4))
    z = x @ w.T
    total = 0.0
    for i in range(9):
        same = [z[i] @ z[j] for j in range(9) if j != i and number[j] == number[i]]
        other = [z[i] @ z[j] for j in range(9) if number[j] != number[i]]
        total -= (np.mean(same) - np.mean(other)) / 9
    matrix = np.asarray(learners.sup_con_matrix(jnp.asarray(x), jnp.asarray(number), 3))
    best = np.asarray(learners.sup_con_optimum(jnp.asarray(matrix), 0.7, 2))

    def value(w):
        return -np.sum((w.T @ w) * matrix) + 0.35 * np.sum((w.T @ w) ** 2)

    nearby = min(value(best + scale * rng.normal(size=best.shape)) for scale in (0.3, 0.1, 0.01) for _ in range(100))
    values = [total, float(losses.linear_sup_con(jnp.asarray(z), jnp.asarray(number))), float(nearby >= value(best))]
    return ledger.judge(
        "linear SupCon loss of 9 samples = -<W^T W, M_hat>, and no W of rank 2 near the minimiser is better",
        ledger.close(values, 1e-12),
        [-np.sum((w.T @ w) * matrix)] * 2 + [1.0],
        {
            "sign": [np.sum((w.T @ w) * matrix)] * 2 + [1.0],
            "covariance": [-np.sum((w.T @ w) * np.cov(x.T))] * 2 + [1.0],
        },
    )


def logistic(features, target):
    """Weights and intercept of the logistic head, one feature, by Newton steps (a ridge of 1e-6 keeps it finite)."""
    design = jnp.stack([features, jnp.ones_like(features)], -1)

    def step(_, w):
        chance = jax.nn.sigmoid(design @ w)
        gradient = design.T @ (chance - (target + 1) / 2) / len(target) + 1e-6 * w
        hessian = (design * (chance * (1 - chance))[:, None]).T @ design / len(target) + 1e-6 * jnp.eye(2)
        return w - jnp.linalg.solve(hessian, gradient)

    return jax.lax.fori_loop(0, 25, step, jnp.zeros(2))


def least_squares(features, target):
    design = jnp.stack([features, jnp.ones_like(features)], -1)
    return jnp.linalg.lstsq(design, target)[0]


def trained_heads(seed: int, model, *, n: int, runs: int) -> np.ndarray:
    """(runs, 4): share of sampled images of P* right, aligned and conflicting, for a logistic and a least-squares head
    on the rank-1 minimiser from n ambient images without noise."""
    obs = ambient.noise(6, 4, 0.0, 0.0)

    def one(key):
        key_d, key_train, key_test = jax.random.split(key, 3)
        d = mt.draw_dictionaries(key_d, model, obs)
        train = mt.sample_pairs(key_train, model, mt.captions(), obs, n, d)
        test = mt.sample_pairs(key_test, mt.shifted(model), mt.captions(), obs, 20_000, d)
        encoder = learners.sup_con_optimum(learners.sup_con_matrix(train.image, mt.class_index(train.label)), 1.0, 1)[0]
        aligned = mt.is_aligned(test.label, test.attribute)
        shares = []
        for head in (logistic, least_squares):
            w = head(train.image @ encoder, train.label.astype(float))
            right = jnp.sign((test.image @ encoder) * w[0] + w[1]) == test.label
            shares += [(right * group).sum() / group.sum() for group in (aligned, ~aligned)]
        return jnp.stack(shares)

    return np.asarray(ambient.repeated(one, jax.random.key(seed), runs))


def trained_heads_on_data_model_1(effort):
    """n = 4,000, up to .0005: with other draws the conflicting gap to the limit was -.0025 +- .0007 at 250 images,
    -.0021 +- .0005 at 500, -.0006 +- .0004 at 1,000, so some .0002 here."""
    model = mt.intra_class(0.95, 1.0, 0.2)
    samples = trained_heads(0, model, n=4000, runs=100 * effort)

    def prediction(model=model):
        return np.tile(ambient.groups(theory.sup_con_accuracy(model)), 2)

    return ledger.judge(
        "both groups of P*, logistic and least-squares heads on SupCon's minimiser of 4000 ambient images",
        ledger.mean(samples, bias=5e-4),
        prediction(),
        {
            "p off by .03": prediction(mt.intra_class(0.92, 1.0, 0.2)),
            "MMCL": np.tile(ambient.groups(theory.mmcl_accuracy(model)), 2),
            "groups swapped": prediction().reshape(2, 2)[:, ::-1].ravel(),
        },
    )


def conflicting_group_at_the_end(effort):
    """p = 1, s_c = 1, s_s = 0: the paper's claim; its own matrix has the rule (1, q), half of the group right."""
    model = mt.intra_class(1.0, 1.0, 0.0)
    samples = trained_heads(1, model, n=4000, runs=100 * effort)[:, [1, 3]]
    right = theory.sup_con_accuracy(model).conflicting
    return ledger.refute(
        "F.1: conflicting accuracy of a head on SupCon is o(1) for p -> 1 (holds: Phi(2 (1-p)/R), so 1/2)",
        ledger.mean(samples, bias=5e-4),
        [0.0, 0.0],
        [right, right],
    )


def half_of_the_shifted_images(effort):
    """p = 1: acc_P* = (Phi(2) + 1/2)/2 = .7386, above the 1/2 of F.1 and below MMCL's .8123."""
    model = mt.intra_class(1.0, 1.0, 0.0)
    samples = trained_heads(2, model, n=4000, runs=100 * effort).reshape(-1, 2, 2).mean(-1)
    return ledger.refute(
        "F.1: no linear head on SupCon has acc_P* above 1/2 + o(1) (holds: [Phi(2p/R) + Phi(2(1-p)/R)]/2, here .7386)",
        ledger.mean(samples, bias=5e-4),
        [0.5, 0.5],
        [theory.sup_con_accuracy(model).shifted] * 2,
    )


def encoder_of(images: np.ndarray, number: np.ndarray, m: int) -> np.ndarray:
    """SupCon's minimiser of rank m. 200 copies of each image: the mean over the others of a class is that of all."""
    many = jnp.asarray(np.repeat(images, 200, 0)), jnp.asarray(np.repeat(number, 200))
    return np.asarray(learners.sup_con_optimum(learners.sup_con_matrix(*many, 2 * m), 1.0, m))


def with_intercept(features: np.ndarray) -> np.ndarray:
    return np.hstack([features, np.ones((len(features), 1))])


def softmax_head(design: np.ndarray, number: np.ndarray, classes: int) -> np.ndarray:
    """Cross-entropy with a ridge of 1e-4, by L-BFGS: (columns of the design, classes)."""
    member = np.eye(classes)[number]

    def objective(flat):
        w = flat.reshape(-1, classes)
        scores = design @ w
        scores = scores - scores.max(1, keepdims=True)
        log_sum = np.log(np.exp(scores).sum(1, keepdims=True))
        gradient = design.T @ (np.exp(scores - log_sum) - member) / len(number) + 1e-4 * w
        return -((scores - log_sum) * member).sum() / len(number) + 5e-5 * (w**2).sum(), gradient.ravel()

    start = np.zeros(design.shape[1] * classes)
    solution = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return solution.x.reshape(-1, classes)


def least_squares_head(design: np.ndarray, number: np.ndarray, classes: int) -> np.ndarray:
    return np.linalg.lstsq(design, np.eye(classes)[number], rcond=None)[0]


def heads_counted(m: int, alpha: float, beta: float, heads=(softmax_head,), copies: int = 0) -> list[float]:
    """Shares of the aligned and the conflicting images right under each head, trained on SupCon of all images of P.

    copies: of each aligned image for one conflicting, p / (1 - p); 0: p = 1, aligned images alone.
    """
    aligned, conflicting, number = population.images(m, alpha, beta, beta)
    images, classes = aligned, number
    if copies:
        images, classes = np.vstack([aligned] * copies + [conflicting]), np.tile(number, copies + 1)
    encoder = encoder_of(images, classes, m)
    accuracies = []
    for head in heads:
        w = head(with_intercept(images @ encoder.T), classes, 2 * m)
        accuracies += [
            population.share_right(with_intercept(group @ encoder.T) @ w, number, 6) for group in (aligned, conflicting)
        ]
    return accuracies


def heads_on_data_model_2(effort):
    """Every image of 3 pairs at p = 1 trains the head, on SupCon's minimiser from the same images; P* is counted."""
    settings = ((3, 1.5, 0.3), (3, 1.0, 0.3), (3, 0.6, 0.3), (1, 2.0, 0.0))
    measured = [heads_counted(*setting, (softmax_head, least_squares_head)) for setting in settings]

    def prediction(accuracy):
        ours = [ambient.groups(accuracy(mt.inter_class(m, 1.0, alpha, beta))) for m, alpha, beta in settings]
        return np.tile(ours, 2)

    return ledger.judge(
        "Data Model 2, p = 1, heads trained on all images (cross-entropy, least squares), 4 settings: both groups",
        ledger.close(measured, 1e-6),
        prediction(theory.sup_con_accuracy),
        {"conflicting right": 1.0, "MMCL": prediction(theory.mmcl_accuracy)},
    )


def cross_entropy_head(effort):
    """acc_P* of the cross-entropy head, counted over all images of 3 pairs, alpha = 1.5."""
    return ledger.judge(
        "F.2: acc_P* of a cross-entropy head on SupCon, Data Model 2, p = 1, alpha = 1.5, m = 3: 1/2",
        ledger.close(np.mean(heads_counted(3, 1.5, 0.3)), 1e-12),
        theory.sup_con_accuracy(mt.inter_class(3, 1.0, 1.5, 0.3)).shifted,
        {"alpha = .6": theory.sup_con_accuracy(mt.inter_class(3, 1.0, 0.6, 0.3)).shifted, "the best head": 0.75},
    )


def head_below_perfect_correlation(effort):
    """p = .8: aligned images four times, conflicting ones once; q alpha^2 < 1 < alpha^2, so that q decides."""
    m, alpha, beta = 3, 1.1, 0.1

    def prediction(p=0.8):
        return ambient.groups(theory.sup_con_accuracy(mt.inter_class(m, p, alpha, beta)))

    return ledger.judge(
        "Data Model 2 at p = .8, alpha = 1.1: a cross-entropy head on SupCon of all images, both groups by counting",
        ledger.close(heads_counted(m, alpha, beta, copies=4), 1e-12),
        prediction(),
        {"q dropped": prediction(1.0)},
    )


def best_of_all_heads(effort):
    """The 75% of F.2: one pair, alpha = 2, representation z_core + 2 z_spu, a number; all thresholds are tried."""
    aligned, conflicting, number = population.images(1, 2.0, 0.0, 0.0)
    images, sign = np.vstack([aligned, conflicting]), np.tile(2 * number - 1, 2)
    projection = images @ [1.0, 2.0]
    edges = np.sort(projection)
    cuts = [edges[0] - 1, *(edges[:-1] + edges[1:]) / 2, edges[-1] + 1]
    best = max(np.mean(np.sign(side * (projection - cut)) == sign) for cut in cuts for side in (-1, 1))
    return ledger.judge(
        "one pair, alpha = 2: the best head of all, intercept chosen on P*, has .75 of P* right",
        ledger.close(best, 1e-12),
        0.75,
        {"the trained head": 0.5, "all": 1.0},
    )


CHECKS = (
    matrix_of_the_loss,
    loss_is_linear_in_the_gram_matrix,
    trained_heads_on_data_model_1,
    conflicting_group_at_the_end,
    half_of_the_shifted_images,
    heads_on_data_model_2,
    cross_entropy_head,
    head_below_perfect_correlation,
    best_of_all_heads,
)

"""The paper's numbered statements in its order, each with its figure, ours, what was measured, and a verdict.

A line of the table names the check of the ledger that judges it; nothing is measured for the table alone.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

import mmcl_theory as mt
from mmcl_theory import theory
from proofs_checks.ledger import HOLDS
from sims.engine import tables

Record = Mapping[str, Any]  # a row of the ledger as in its JSON


@dataclasses.dataclass(frozen=True)
class Line:
    """A statement of the paper.

    figure: the paper's number, or its formula at that point; "" where it has none.
    check: label and name of the check that judges it.
    ours: the exact number, None for the one that the check predicts.
    measured: False where the check's "measured" side is a formula: then that is ours, and nothing is measured.
    verdict: said where the check's is "holds".
    """

    number: str
    claim: str
    figure: str
    check: tuple[str, str]
    ours: Callable[[], Any] | None = None
    verdict: str = HOLDS
    measured: bool = True


def _end_of_data_model_1() -> mt.data.IntraClass:
    return mt.intra_class(1.0, 1.0, 0.0)


LINES = (
    Line(
        "Lemma 3.2",
        "similarity of z', z'' is z'^T C z'' / rho: W = SVD_r(C) / rho; an entry of a trained W",
        "",
        ("T1", "training_reaches_it"),
    ),
    Line(
        "Corollary C.18",
        "error of the learnt W: O(sqrt(eps0)), so n^-1/4 (exponent of n)",
        "-.25",
        ("T1", "operator_norm_error"),
        verdict="sharper: O(eps0), n^-1/2",
    ),
    Line("Definition 4.1", "Data Model 1: its moments", "", ("T2", "moments_from_the_definition")),
    Line(
        "Theorem 4.3",
        "SL: conflicting accuracy at most 1/3; X1's curve at 10^4 to 10^6 + 100 images",
        ".333",
        ("T3", "curve_in_the_limit"),
        measured=False,
    ),
    Line("Theorem 4.3", "the same for sampled images, 100 + 5 in 2000 dimensions", ".333", ("T3", "sampled_images")),
    Line(
        "Theorem 4.4",
        "MMCL: conflicting accuracy at least 1 - Phi(k1); p = 1, s_c = 1, s_s = 0",
        ".6915",
        ("T2", "in_the_paper_s_limit"),
        verdict="holds, with equality",
    ),
    Line("Corollary 4.5", "MMCL: acc_P* at p = 1, s_c = 1, s_s = 0", ".81", ("T2", "shifted_in_the_paper_s_limit")),
    Line("Corollary 4.5", "no linear rule's acc_P* is above .85, s_c = 1", ".85", ("T2", "no_rule_is_better")),
    Line(
        "Appendix E.1",
        "SL in distribution: at least 99.4%; X1's curve, least of three sizes",
        ".994",
        ("T3", "in_distribution"),
        measured=False,
    ),
    Line(
        "Appendix E.1",
        "MMCL in distribution at s_c = 1, s_s = 0, p -> 1",
        ".9393",
        ("T2", "misprint"),
        lambda: theory.mmcl_accuracy(_end_of_data_model_1()).at(1.0),
    ),
    Line("Definition 4.6", "Data Model 2: the pair block of its cross-covariance", "", ("T4", "the_paper_s_block")),
    Line(
        "Theorem 4.7",
        "SL: acc_P* at most 1/2 + 2/((1+alpha^2)(1-beta)^2 - 8); alpha = 10, beta = 1/3",
        ".554",
        ("T4", "sharper_than_the_bound"),
        verdict="sharper: 1/2 for alpha > 1",
    ),
    Line(
        "Theorem 4.7",
        "the bound's formula at that point",
        ".554",
        ("T4", "the_bound_as_printed"),
        lambda: theory.shortcut_bound(mt.inter_class(3, 1.0, 10.0, 1 / 3)),
        measured=False,
    ),
    Line(
        "Theorem 4.7",
        "the largest acc_P* on a grid where the bound is defined, by counting",
        "",
        ("T4", "at_most_the_bound"),
        lambda: 0.5,
    ),
    Line(
        "Theorem 4.8",
        "MMCL: all of P* right if m > 1792 at alpha = 10, beta = 1/3; fewest m with all drawn images right",
        "1793",
        ("T4", "enough_classes"),
        verdict="holds, and no fewer do",
    ),
    Line(
        "Theorem 4.8",
        "not in the paper: conflicting accuracy with noise s_I = .05 at m = 2000",
        "",
        ("T4", "noise_above_the_threshold"),
        verdict="noise moves the threshold far",
    ),
    Line("Appendix E.2", "Data Model 2 in distribution: both learners 100%", "1", ("T4", "in_distribution")),
    Line(
        "Definition 5.1",
        "captions of Data Model 1: the core column of Cov(z,u)",
        "",
        ("T5", "rule_from_the_definition"),
    ),
    Line(
        "Theorem 5.2",
        "conflicting accuracy at pi_core = .5, whatever pi_spu; p = 1, s_c = 1, s_s = 0",
        ".631",
        ("T5", "at_half_the_detail"),
    ),
    Line(
        "Theorem 5.2",
        "it grows with pi_core: the least slope over 500 models",
        "> 0",
        ("T5", "slope_in_caption_detail"),
        measured=False,
    ),
    Line(
        "Theorem 5.4",
        "MMCL: the threshold pi~ at alpha = 10, beta = 1/3, m = 4000",
        ".448",
        ("T6", "the_paper_s_threshold"),
        lambda: theory.sharing_threshold(mt.inter_class(4000, 1.0, 10.0, 1 / 3)),
        measured=False,
    ),
    Line(
        "Theorem 5.4",
        "all of P* right above pi~, at most half below; conflicting group just below, 4 pairs, alpha = .8",
        "0",
        ("T6", "accuracy_on_both_sides"),
        lambda: (
            theory.mmcl_accuracy(
                mt.inter_class(4, 1.0, 0.8, 0.4, 0.2),
                mt.captions(theory.sharing_threshold(mt.inter_class(4, 1.0, 0.8, 0.4, 0.2)) - 1e-6),
            ).conflicting
        ),
        "holds up to 2^-m below pi~",
    ),
    Line(
        "Theorem F.1",
        "SupCon, Data Model 1: conflicting accuracy of any linear head o(1)",
        "0",
        ("T7", "conflicting_group_at_the_end"),
        lambda: theory.sup_con_accuracy(_end_of_data_model_1()).conflicting,
    ),
    Line(
        "Theorem F.1",
        "SupCon, Data Model 1: acc_P* of any linear head at most 1/2 + o(1)",
        ".5",
        ("T7", "half_of_the_shifted_images"),
        lambda: theory.sup_con_accuracy(_end_of_data_model_1()).shifted,
    ),
    Line(
        "Theorem F.2",
        "SupCon, Data Model 2, alpha > 1: a cross-entropy head has acc_P* 1/2",
        ".5",
        ("T7", "cross_entropy_head"),
    ),
    Line(
        "Theorem F.2",
        "the same: no linear head above 75%; best of all, one pair, alpha = 2",
        ".75",
        ("T7", "best_of_all_heads"),
    ),
    Line(
        "CounterAnimal, Theorem 1",
        "mean mu_spu of the spurious feature: the off-diagonal is 2 mu p - 1; mu = 3, p = .9",
        "4.4",
        ("X4", "off_diagonal"),
        lambda: theory.mmcl_rule(mt.intra_class(0.9, 1.0, 0.2, 1.0, 3.0))[1],
    ),
)

_COLUMNS = ("number", "claim", "the paper's", "ours, exact", "measured +- se", "verdict")


def keys() -> list[tuple[str, str]]:
    """Labels and names of the checks that the table needs."""
    return list(dict.fromkeys(line.check for line in LINES))


def cells(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """The table's lines, from the ledger's rows of `keys`; an absent row is "not judged"."""
    by_check = {(record["label"], record["check"]): record for record in records}
    with jax.enable_x64(True):
        return [_cells(line, by_check.get(line.check)) for line in LINES]


def _cells(line: Line, record: Record | None) -> tuple[str, ...]:
    if record is None:
        return line.number, line.claim, line.figure, "-", "-", f"not judged ({line.check[0]})"
    gap = record["gap"]
    if gap["limit"] == 0 and gap["predicted"] == 0 and line.figure == "":
        ours, measured = "algebra", f"{gap['measured']:.0f} entries differ"
    elif not line.measured:
        ours, measured = _number(gap["measured"] if line.ours is None else float(line.ours())), "-"
    else:
        ours = _number(gap["predicted"] if line.ours is None else float(line.ours()))
        measured = _number(gap["measured"])
        measured += f" +- {gap['se']:.1g}" if gap["se"] else ", exact"
    verdict = line.verdict if record["verdict"] == HOLDS else record["verdict"]
    if not record["good"]:
        verdict = "FAILS"
    return line.number, line.claim, line.figure, ours, measured, f"{verdict} ({record['label']})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def text(records: Sequence[Record]) -> str:
    """The table for a terminal."""
    return tables.as_text([_COLUMNS, *cells(records)])


def markdown(records: Sequence[Record]) -> str:
    """The table as a page."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *cells(records)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    table = re.sub(r"\((\w\d+)\) \|$", r"([\1](statements/\1.md)) |", table, flags=re.MULTILINE)
    return f"""# The paper, statement by statement

Xue, Joshi, Nguyen and Mirzasoleiman, "Understanding the Robustness of Multi-modal Contrastive Learning to Distribution
Shift", ICLR 2024 (arXiv 2310.04971), in its own order and numbers. Ours is what the functions of `mmcl_theory.theory`
compute; measured comes from simulation, from counting all images or from algebra, "-" where there is none. The label in
brackets leads to the page with all checks of the statement and the wrong theories that they reject.

    python -m proofs_checks --paper

{table}

What is refuted is so as printed: see [the theory](theory.md) for what holds instead.
"""

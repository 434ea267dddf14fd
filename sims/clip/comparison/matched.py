"""The arms at matched ID accuracy: lines over all times of training and seeds, as the paper compares its arms."""

from collections.abc import Sequence

import numpy as np

from sims.clip.comparison.config import SHIFTS
from sims.clip.comparison.runs import Row, prompts_of, select
from sims.clip.config import ARMS
from sims.engine import lines

TRANSFORM = "logit"
MEAN = "mean"  # OOD accuracy as the paper has it: the mean over the shifts, against all of val
_DRAWS = 1000


def family(rows: Sequence[Row], arm: str, shift: str, rng: np.random.Generator | None = None) -> lines.Family | None:
    """An arm's points, one for each seed and time; None if all have one ID accuracy.  shift: of SHIFTS, or MEAN.

    rng: redraws the test images, which the arm's points share.
    """
    sets = SHIFTS if shift == MEAN else (shift,)
    by_set = [_of_set(rows, arm, name) for name in sets]
    val = _of_set(rows, arm, "val") if shift == MEAN else by_set[0]
    prefix = "" if shift == MEAN else "id_"
    x = _counts(val, prefix)
    y = np.stack([_counts(each, "") for each in by_set], -1)  # (correct or images, point, set)
    acc_id, acc_ood = lines.inside(*x), lines.inside(*y)
    if len(np.unique(acc_id)) < 2:
        return None
    items = {} if rng is None else lines.redraws((x[0], x[1]), (y[0], y[1]), rng, _DRAWS)
    return lines.family(acc_id, acc_ood, [row["seed"] for row in val], **items)


def _of_set(rows: Sequence[Row], arm: str, name: str) -> list[Row]:
    chosen = select(rows, set=name, arm=arm, group="all", scope="all", prompts=prompts_of(arm), pi_core=None)
    return sorted(chosen, key=lambda row: (row["seed"], row["step"]))


def _counts(rows: Sequence[Row], prefix: str) -> np.ndarray:
    """(2, n): correct and all images of each row."""
    images = np.array([row[f"{prefix}images"] for row in rows])
    return np.stack([np.round(images * [row[f"{prefix}accuracy"] for row in rows]), images])


def table(rows: Sequence[Row], arms: Sequence[str]) -> list[list[str]]:
    """Each arm's OOD accuracy minus the first arm's at the same ID accuracy, +- half its 95% interval, by shift.

    The ID accuracy is the middle of those that both arms reach. A star marks one that some arm does not reach; a dash,
    an arm whose points all have one ID accuracy.
    """
    rng = np.random.default_rng(0)
    shown = [["", *SHIFTS, MEAN]]
    families = {(arm, shift): family(rows, arm, shift, rng) for arm in arms for shift in shown[0][1:]}
    for arm in arms[1:]:
        line = [ARMS[arm].label]
        for shift in shown[0][1:]:
            own, first = families[arm, shift], families[arms[0], shift]
            if own is None or first is None:
                line.append("-")
                continue
            both = lines.matched(own, first, lines.middle(own, first), rng, transform=TRANSFORM, draws=_DRAWS)
            half = both.high[0] - both.value[0]
            line.append(f"{both.value[0]:+.2f}±{half:.2f}{'*' if both.extrapolated[0] else ''}")
        shown.append(line)
    return shown

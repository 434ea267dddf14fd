# python -m sims.sweep_model --model=examples/models/two_spurious.py --x=cue=0:1.2:7 --curves=p_spu=0.8,0.95 \
#     --learners=mmcl,whitened,probe --n=1000 --out=runs/model_two_spurious
#
# Two spurious features beside the core feature: a background, which agrees with the class with probability p_spu, and a
# cue, which shows the class in the images whose background does not agree. The axis is the strength of the cue.
"""A model file may be a Python function: its parameters are the paths."""

import mmcl_theory as mt

GROUPS = ["class 0, background 0", "class 0, background 1", "class 1, background 0", "class 1, background 1"]


def model(p_spu=0.9, cue=1.0, sigma_core=1.0, mention_cue=1.0):
    """Four groups (class, background); coordinates core, background, cue."""
    mean = [[y, a, cue * y * (a != y)] for y in (-1.0, 1.0) for a in (-1.0, 1.0)]
    weight = [p_spu / 2, (1 - p_spu) / 2, (1 - p_spu) / 2, p_spu / 2]
    covariance = [[sigma_core**2, 0, 0], [0, 0.05, 0], [0, 0, 0.05]]
    mixture = mt.mixture(weight, mean, covariance, classes=[0, 0, 1, 1])
    return mixture, mt.group_captions(mixture, mention=[1.0, 1.0, mention_cue])

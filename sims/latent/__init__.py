"""What the experiments on the theory's own data share.

parameters.py  every parameter: its meaning, and the values that it may have
settings.py    sizes, noise, training and sampler of a run
measure.py     one run of each learner, and the theory's prediction for it
panels.py      a prediction over a plane beside the learner that measures it
summary.py     means, standard errors and verdicts, as rows and as text
plots.py       curves and planes: data and an `ax` in, `ax` out
"""

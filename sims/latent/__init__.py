"""What the experiments on the theory's own data share.

parameters.py  every parameter: its meaning, unit, symbol and allowed values
settings.py    sizes, noise, training and sampler of a run
cells.py       parameters of a cell -> model, captions, observation
measure.py     one run of each learner, and the theory's prediction for it
panels.py      a prediction over a plane, with the learner that measures it
summary.py     means, standard errors and verdicts, as rows and as text
plots.py       curves and planes: data and an `ax` in, `ax` out
"""

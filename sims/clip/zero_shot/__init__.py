"""Zero-shot evaluation, and features of pairs.

sets.py     which images and classes a set scores    scoring.py     features, ranks, shares with intervals
prompts.py  the prompts of a class                   robustness.py  effective robustness beyond a line of models
evaluation.py, table.py, report.py, scatter.py       rows of results, their table and figure
features.py features of a source's pairs, in shards  towers.py      what makes them: a CLIP, or a function
model_flags.py  the flags that name a model
"""

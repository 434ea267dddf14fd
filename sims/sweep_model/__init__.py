"""Accuracy of any mixture model along numbers of its file: `python -m sims.sweep_model`."""

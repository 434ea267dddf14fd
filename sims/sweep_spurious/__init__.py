"""Accuracy against the spurious correlation, for every learner: `python -m sims.sweep_spurious`."""

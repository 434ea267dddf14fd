"""Accuracy along training, linear loss beside InfoNCE: `python -m sims.dynamics`."""

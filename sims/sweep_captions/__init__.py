"""Accuracy over what captions name, on both data models: `python -m sims.sweep_captions`."""

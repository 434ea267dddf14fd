"""The theory as a page with sliders, live or in one file: `python -m sims.explore`."""

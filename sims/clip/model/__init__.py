"""The model: models (towers), weights (published ones), learner (a training step), probe, encoder (for evaluation)."""

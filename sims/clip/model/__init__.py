"""What learns: models (the towers), weights (published ones), learner (one step), probe, encoder (as evaluated)."""

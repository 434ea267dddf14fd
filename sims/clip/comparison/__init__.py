"""The comparison on generated scenes: config, runs (measured, judged, predicted), figures."""

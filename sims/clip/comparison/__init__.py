"""The comparison on generated scenes: config, runs (measured, judged, predicted), matched (ID-OOD lines), figures."""

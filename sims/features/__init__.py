"""Heads on frozen features and their ID-OOD lines: sets reads, heads trains, experiment compares the arms."""

"""A value over two parameters, with theory's boundaries and measured cells: `python -m sims.phase_diagram`."""

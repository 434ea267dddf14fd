"""The semi-synthetic experiment: real digits on coloured backgrounds, with captions.

config.py     what is asked for, checked; the studies and presets
images.py     handwritten digits from scikit-learn or IDX files, with their measured style
scenes.py     a digit on a background whose colour may go with the label; drawn on the device
captions.py   what the text says of a scene, as words; vectors.py: as the paper's vectors
encoders.py   image and text encoders
arms.py       what is trained: CLIP and its ablations, SigLIP, SL, SupCon, SimCLR, linear closed forms
training.py   one run: train in stages, and measure after each
moments.py    the linear and the whitened theory's predictions, from measured moments
dial.py       what lies between the two (X11), for the paper's digits
studies.py    which arms over which axes, run and completed
results.py    accuracies, intervals, rows, and how well the theories order the cells
figures.py    sample sheet and curves; paper.py: the paper's Figures 2 and 5
readouts.py   a command: kept networks, digit by digit and prompt by prompt
"""

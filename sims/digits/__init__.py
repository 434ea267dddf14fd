"""The semi-synthetic experiment: real digits on coloured backgrounds, with captions.

config.py     the settings and their checks; the studies and presets
images.py     handwritten digits from scikit-learn or IDX files, with their measured style
scenes.py     a digit on a background whose colour may correlate with the label; drawn on the device
captions.py   captions of scenes as words; vectors.py: as the paper's vectors
encoders.py   image and text encoders
arms.py       what is trained: CLIP and its ablations, SigLIP, SL, SupCon, SimCLR, linear closed forms
training.py   one run: train in stages, and measure after each
moments.py    the linear and the whitened theory's predictions, from measured moments
dial.py       predictions between the two theories (X11), for the paper's digits
balance.py    the captions and the ridge that the dial predicts to be best
studies.py    runs the studies: which arms over which axes, with the theories' predictions
results.py    accuracies, intervals, rows, and how well the theories order the cells
figures.py    sample sheet and curves; paper.py: the paper's Figures 2 and 5
regimes.py    gains over conflicting images and training; sensitivity.py: what open settings move, from folders
readouts.py   a command: accuracy of saved networks by digit and by prompt
"""

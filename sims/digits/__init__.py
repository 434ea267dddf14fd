"""The semi-synthetic experiment: real digits on coloured backgrounds, with captions.

images.py     handwritten digits from scikit-learn or IDX files, with their measured style
scenes.py     a digit on a background whose colour may go with the label; drawn on the device
captions.py   what the text says of a scene, and its tokens
encoders.py   image and text encoders
arms.py       what is trained: CLIP and its ablations, SigLIP, SL, SupCon, SimCLR, linear closed forms
training.py   one run: train in stages, and measure after each
moments.py    the linear and the whitened theory's predictions, from measured moments
studies.py    which arms over which axes; results, tables
figures.py    sample sheet and curves
"""

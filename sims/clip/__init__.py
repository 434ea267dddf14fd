"""CLIP on captioned images. Commands: make_scenes, train, evaluate, embed, compare.

config.py    the settings of a training run
records/     the data: images, captions and classes from disk, tokens, batches
model/       the towers, published weights, one sharded training step, a linear probe
fit/         a training run and its folder: loop, checkpoints, log
zero_shot/   evaluation: images and classes of a set, prompts, accuracy with intervals, effective robustness, figures
scenes/      generated scenes in the layouts of COCO and of the shifted ImageNets
comparison/  arms over seeds, what captions name, and both theories' predictions
"""

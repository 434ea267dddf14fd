"""CLIP on captioned images. Commands: make_scenes, train, evaluate, compare; config.py: what a training run is given.

records/     what is read: images, captions and classes from disk, tokens, batches
model/       the towers, published weights, one sharded training step, a linear probe
fit/         a training run and its folder: loop, checkpoints, log
zero_shot/   which images and classes, prompts, accuracy with intervals, effective robustness, tables and figures
scenes/      generated scenes in the layouts of COCO and of the shifted ImageNets
comparison/  arms over seeds, what captions name, and both theories' predictions
"""

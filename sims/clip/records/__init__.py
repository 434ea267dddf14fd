"""Captioned images on disk, read by random access; a foreign file that is unfit is refused with one reason.

sources.py    COCO, tars, lists and CIFAR-10 as records     images.py     decoding, crops, normalisation
tars.py       img2dataset's tars, indexed once              tokenizer.py  byte pair encoding
captions.py   a record's text in each arm                   pipeline.py   batches: a pure function of seed and step
classes.py    the class list                                words.py      articles
reading.py    text, JSON and arrays that may be damaged     class_maps.py ImageNet's classes as COCO's categories
make_maps.py  makes the maps from WordNet
"""

"""CLIP on captioned images: records from disk, towers, training, zero-shot evaluation on shifted sets.

make_scenes writes captioned scenes in the layouts of COCO and of the shifted ImageNets; train, evaluate and compare
read those or the real data.

    what is seen                what learns                          what is compared
    sources, tars  records      tokenizer   BPE                      sets, prompts  what is classified, by which words
    images         decoding     models      towers, weights          zero_shot      accuracy with its interval
    pipeline       batches      training    arms, losses, sharding   robustness     against the line of standard models
"""

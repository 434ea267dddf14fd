"""CLIP on captioned images: records from disk, towers, training, zero-shot evaluation on shifted sets.

Commands: make_scenes draws captioned scenes in the layouts of COCO and of the shifted ImageNets; train, evaluate and
compare read those or the real data.

    what is seen                     what learns                       what is compared
    sources, tars  records on disk   tokenizer   BPE                   classes, sets  which images, which labels
    images         decoding, crops   models      the towers            prompts        the words of a class
    captions       an arm's words    weights     published ones        zero_shot      accuracy with its interval
    pipeline       batches           learner     one step, sharded     probe          a head for features
    scenes, shapes, backgrounds,     training    a run, resumed        robustness     against lines of standard models
    layouts, sheet  generated        prepare, metrics, trained, speed  evaluation, report, scatter, table
                                                                       comparison     arms, captions, both theories
"""

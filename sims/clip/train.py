"""Train CLIP, or a method that it is compared with, on captioned images.

    python -m sims.clip.train                                           # generated scenes, a small ResNet
    python -m sims.clip.train --preset=cc3m_rn50 --data='tars:/data/cc3m/{00000..00331}.tar' --out=runs/cc3m
    python -m sims.clip.train --preset=coco_rn50 --data=coco:/data/coco --arm=clip_no_intra --out=runs/coco_no_intra

data: scenes (those of make_scenes, in runs/scenes; made with its defaults if absent), coco:DIR[:SPLIT], tars:GLOB
(img2dataset), csv:FILE, parquet:FILE, cifar10:DIR[:test].
arms: clip; clip_no_intra (no same-class negatives); clip_labels (captions name the class only); clip_masked (each word
of a caption kept w.p. --pi); siglip; supervised; sup_con.
Each line of a tar's KEY.txt is a caption. Images that cannot be decoded are bad records: see --max_bad. So are images
of more than 67 million pixels, 65,535 pixels a side, 256 MiB, or (JPEG) 2^31 pixels times scans.
The same command continues a stopped run where it was, to the same numbers. Weights for `evaluate` are in
OUT/checkpoints.
"""

import dataclasses
import pathlib

from absl import flags

from sims.clip.config import ARMS, PRESETS, SCENES, Config
from sims.engine import devices, processes
from sims.engine.flags import check_choice, check_range, define, integer, number, path, run_main

_TEXTS = {
    "arm": f"of {', '.join(ARMS)}",
    "data": "scenes, coco:DIR[:SPLIT], tars:GLOB, csv:FILE, parquet:FILE or cifar10:DIR[:test]",
    "captions": "JSON of COCO's layout in the place of its own captions",
    "classes": "JSON list of class names: gives tars labels, where a caption names exactly one",
    "architecture": "RN50, ViT-B-16, ViT-B-32, each also with -quickgelu, RN-tiny or ViT-tiny",
    "vocabulary": "CLIP's bpe_simple_vocab_16e6.txt.gz, or a run's tokenizer.json; none: BPE trained on the captions",
}
_NUMBERS = {
    "pi": "chance that a word of a caption stays (arm clip_masked), in [0, 1]; none: .5",
    "same_class_weight": "weight of an anchor's same-class negatives (arm clip), in [0, 1]; none: the ordinary loss",
    "epochs": "passes over the data, > 0; unless --steps is given",
    "learning_rate": "of AdamW at its peak, in (0, 1]",
    "weight_decay": "of AdamW, in [0, 1]",
    "beta_2": "of AdamW, in [0, 1)",
    "epsilon": "of AdamW, in (0, 1]",
    "temperature": "of the loss at the start, in [0.01, 1], and it stays there as it is learnt",
    "percent": "share of the training records in percent, in [1, 100]; at one seed smaller parts lie in larger ones",
    "validation": "share of each class's records that no run trains on, at any seed, in [0, 1)",
    "crop_scale": "least share of an image's area that a crop keeps, in (0, 1]",
}
_INTEGERS = {
    "image_size": "pixels a side, in [16, 1024]",
    "context_length": "tokens of a caption, in [4, 1024]",
    "vocabulary_size": "of a trained BPE, in [300, 1e6]",
    "batch_size": "pairs of all devices together, >= 2",
    "chunks": "parts in which a batch is embedded, to save memory; the loss is the whole batch's, a ResNet's "
    "batch normalisation each part's",
    "steps": "updates in all",
    "warm_up": "steps in which the learning rate rises",
    "held_out": "records kept from training, for the loss that tells the best checkpoint",
    "seed": "root of all randomness, in [0, 2^32)",
}


def _define_flags() -> None:
    define("preset", "scenes", f"defaults of what follows: {', '.join(PRESETS)}", str)
    for texts, convert in ((_TEXTS, str), (_NUMBERS, number), (_INTEGERS, integer)):
        for name, text in texts.items():
            shown = "; ".join(f"{preset}: {getattr(config, name)}" for preset, config in PRESETS.items())
            same = len({getattr(config, name) for config in PRESETS.values()}) == 1
            define(name, None, f"{text}. {'Default: ' if same else 'Presets: '}"
                   f"{getattr(PRESETS['scenes'], name) if same else shown}", convert)  # fmt: skip
    flags.DEFINE_bool("bf16", None, "compute in bfloat16; parameters stay float32. Presets: the full ones")
    text = "pairs with the very same caption are each other's negatives. Default: yes"
    flags.DEFINE_bool("same_captions", None, text)
    text = "processes that decode images, >= 0; 0: threads of this one"
    define("workers", None, f"{text}. Presets: scenes: 0; others: one a core, less one", integer)
    define("max_bad", 100, "records that cannot be read before the run is given up, >= 0", integer)
    flags.DEFINE_bool("fsdp", False, "split parameters and optimizer state over the devices too")
    define("log_every", 20, "steps between looks at the metrics, >= 1", integer)
    define("save_every", 500, "steps between checkpoints, >= 1", integer)
    flags.DEFINE_bool("tensorboard", True, "write OUT/tensorboard")
    flags.DEFINE_bool("overwrite", False, "train again, whatever --out holds")
    devices.define_process_flags()
    define("out", "runs/clip", "folder of the run; another run's is refused", path)


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    check_choice("preset", values["preset"], PRESETS)
    given = {f.name: values[f.name] for f in dataclasses.fields(Config) if values.get(f.name) is not None}
    config = dataclasses.replace(PRESETS[values["preset"]], **given)
    config.check()
    workers = values["workers"]
    if workers is None:
        workers = 0 if values["preset"] == "scenes" else processes.cores() - 1
    check_range("workers", workers, 0)
    for name, least in (("log_every", 1), ("save_every", 1), ("max_bad", 0)):
        check_range(name, values[name], least)
    devices.start_processes(1)
    from sims.clip.fit import speed, training
    from sims.clip.scenes import generation

    if config.data == "scenes":
        generation.default(pathlib.Path(SCENES))
    options = {
        name: values[name] for name in ("fsdp", "log_every", "save_every", "tensorboard", "overwrite", "max_bad")
    }
    how = training.How(workers=workers, peak=speed.peak(config.bf16), **options)
    result = training.run(config, pathlib.Path(values["out"]), how)
    print("\n".join(f"{name:16} {value}" for name, value in result.items()))
    print(f"\nEvaluate it: python -m sims.clip.evaluate --run={values['out']}")
    return 0


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)

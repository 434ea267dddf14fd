"""The flags that name a model: a training run's folder, or published weights. Imports JAX only to load it."""

import pathlib
from typing import TYPE_CHECKING

from absl import flags

from sims.engine.flags import UsageError, check_choice, define, path

if TYPE_CHECKING:
    from sims.clip.model.encoder import Encoder

flags.disclaim_key_flags()  # as in sims.engine.flags: they are the command's own


def define_model() -> None:
    """Define the flags that name a model."""
    define("run", None, "folder of a training run; or else --weights", path)
    define("checkpoint", "last", "of the run: last, or best by held-out loss", str)
    define("weights", None, "state dict of open_clip or OpenAI, .safetensors or .npz; with --architecture", path)
    define("architecture", None, "of the weights, such as RN50, ViT-B-16; OpenAI's own: RN50-quickgelu", str)
    define("vocabulary", None, "of the weights: bpe_simple_vocab_16e6.txt.gz, or a tokenizer.json of a run", path)


def check() -> None:
    """Raise UsageError unless the flags name one model."""
    values = flags.FLAGS
    if (values.run is None) == (values.weights is None):
        raise UsageError("needs one of --run=DIR and --weights=FILE; python -m sims.clip.train makes a run.")
    if values.weights is not None and (values.architecture is None or values.vocabulary is None):
        raise UsageError("--weights needs --architecture and --vocabulary.")
    if values.weights is not None and values["checkpoint"].present:
        raise UsageError("--checkpoint belongs to --run; leave it out.")
    if values.weights is None and (values.architecture is not None or values.vocabulary is not None):
        raise UsageError("--architecture and --vocabulary belong to --weights; a run has its own.")
    check_choice("checkpoint", values.checkpoint, ("last", "best"))


def load() -> tuple[str, "Encoder"]:
    """(its id in tables, the encoder) of the model that the flags name."""
    from sims.clip.zero_shot import evaluation

    values = flags.FLAGS
    if values.run:
        return evaluation.load_run(pathlib.Path(values.run), values.checkpoint)
    return evaluation.load_weights(pathlib.Path(values.weights), values.architecture, pathlib.Path(values.vocabulary))

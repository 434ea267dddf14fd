"""Phase diagrams: a predicted value over two parameters, theory's boundaries, and measured cells on top.

Measured cells are squares on the same colour scale as the prediction around them, so that a difference stands out. The
largest |z| over all cells is printed. Each diagram has its own axes, parameters and defaults:

    robustness         linear contrastive loss beside max-margin supervised learning (T2, X1, X2, X4)
    same_class_weight  how much intra-class contrasting is best at n samples (X3)
    whitening          from the linear loss to InfoNCE's second order, against modality noise (X5)
    caption_policy     which details captions name, under the whitened rule and under InfoNCE (X10)
    align_predict      where alignment, prediction and the linear loss find the shared signal (X7)
    sharing            details that classes share, and captions that name them (T4, T6)

    python -m sims.phase_diagram --diagram=robustness --x=p_spu:0.5:1:101 --y=mu_spu:0.2:2:101 --value=conflicting
"""

from absl import flags

from sims.engine import command, devices
from sims.engine.flags import define, integer, names, optional, path, run_main
from sims.latent import parameters
from sims.phase_diagram.config import DIAGRAMS, ROW_SIZES, VALUES, Config, axis


def _define_flags() -> None:
    define("diagram", "robustness", f"one of {', '.join(DIAGRAMS)}", str)
    form = "NAME:start:stop:count, or NAME:start:stop:count:log; NAME is a parameter of the diagram, not a size"
    shown = {name: "; ".join(f"{k}: {getattr(d, name)}" for k, d in DIAGRAMS.items()) for name in ("x", "y", "value")}
    define("x", None, f"horizontal axis, {form}. Defaults: {shown['x']}", axis)
    define("y", None, f"vertical axis, {form}, or {' or '.join(ROW_SIZES)}. Defaults: {shown['y']}", axis)
    define("value", None, f"shown number, of {', '.join(VALUES)}. Defaults: {shown['value']}", str)
    panels = "; ".join(f"{k}: {', '.join(d.panels)}" for k, d in DIAGRAMS.items())
    define("learners", None, f"panels, a list of the diagram's: {panels}. Default: all", names)
    cells, seeds = (", ".join(f"{k}: {getattr(d, name)}" for k, d in DIAGRAMS.items()) for name in ("cells", "seeds"))
    define("cells", None, f"measured cells along each axis, >= 0. Defaults: {cells}", optional(integer))
    define("seeds", None, f"independent runs of each measured cell, >= 2. Defaults: {seeds}", optional(integer))
    define("seed", Config.seed, "root of all randomness, in [0, 2^32)", integer)
    parameters.define_flags({name: diagram.parameters for name, diagram in DIAGRAMS.items()})
    devices.define_flags()
    define("out", None, "folder for results and figure; another run's is refused. Default: runs/phase_DIAGRAM", path)


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    fields = ("diagram", "x", "y", "value", "learners", "cells", "seeds", "seed")
    config = Config(**{name: values[name] for name in fields}, parameters=parameters.given())
    config.check()
    return command.run(config, values["out"] or f"runs/phase_{config.diagram}", "sims.phase_diagram.experiment")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)

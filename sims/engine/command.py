"""The command of an experiment, from its checked config to the exit code."""

import importlib
import pathlib
from typing import Any

from sims.engine import devices


def run(config: Any, out: str, module: str) -> int:
    """Start JAX, run the experiment and print its report; returns the exit code.

    config: checked, so that a refusal need not wait seconds for JAX, xarray and matplotlib to load.
    module: name of the experiment's module, which is imported here.
    """
    folder = pathlib.Path(out)
    options = devices.start()
    experiment = importlib.import_module(module)
    dataset = experiment.run(config, folder, options)
    return 0 if dataset is None else experiment.EXPERIMENT.report(dataset, folder)

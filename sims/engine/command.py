"""The command of an experiment, from its checked config to the exit code."""

import importlib
import pathlib
from typing import Any

from sims.engine import devices


def run(config: Any, out: str, module: str) -> int:
    """Check the config, start JAX, run the experiment and print its report; returns the exit code.

    module: name of the experiment's module. It is imported only after the config is checked, since JAX, xarray and
    matplotlib take seconds to load.
    """
    folder = pathlib.Path(out)
    config.check()
    options = devices.start()
    experiment = importlib.import_module(module)
    dataset = experiment.run(config, folder, options)
    return 0 if dataset is None else experiment.EXPERIMENT.report(dataset, folder)

"""A sweep on K devices of this CPU, for `sims.bench`: each line on stdin runs all its blocks once.

python -m sims.bench.devices_server K SEEDS FILE    # numbers go to FILE (.npy), the seconds of a round to stdout
"""

import sys
import time

import jax
import numpy as np

from sims.engine.grid import Programs, run_blocks
from sims.latent.settings import Setting
from sims.sweep_spurious import experiment
from sims.sweep_spurious.config import Config


def _serve(devices: int, seeds: int, file: str) -> None:
    jax.config.update("jax_platforms", "cpu")  # also where there is a GPU
    jax.config.update("jax_num_cpu_devices", devices)
    setting = Setting(n=200, dim_image=400, sampler="latent")
    plan = experiment.grid_of(Config(p_spu=(0.6, 0.9), learners=("mmcl", "supervised"), seeds=seeds, setting=setting))
    programs, nothing = Programs(plan, np.inf), np.zeros(plan.blocks_shape, bool)
    values = np.empty(plan.shape)
    for block, accuracies in run_blocks(plan, nothing, programs):
        values[plan.region(block)] = accuracies
    np.save(file, values)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in run_blocks(plan, nothing, programs):
            pass
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

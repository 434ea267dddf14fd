"""The number of threads that PyTorch is timed with."""

import time
from collections.abc import Callable
from typing import Any

import torch


def fastest_threads(call: Callable[[], Any], cores: int) -> int:
    """The number of threads, 1 or all cores, with which a call is faster; PyTorch is left with it.

    Small matrices need only one.
    """
    seconds = {}
    for threads in {1, cores}:
        torch.set_num_threads(threads)
        call()
        begin = time.perf_counter()
        call()
        seconds[threads] = time.perf_counter() - begin
    best = min(seconds, key=lambda threads: seconds[threads])
    torch.set_num_threads(best)
    return best

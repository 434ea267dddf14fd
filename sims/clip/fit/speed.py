"""The devices' peak speed, so that a run's speed can be reported as a share of it."""

import re
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of a device, from its maker's data sheet.
_BF16 = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
}


def peak(bf16: bool) -> float:
    """FLOP/s of all devices together.

    For bfloat16 it is the maker's figure, if known; else the measured speed of a product of large matrices.
    """
    kind, devices = jax.devices()[0].device_kind, jax.device_count()
    for name, value in _BF16.items():
        if bf16 and re.search(rf"\b{re.escape(name)}\b(?!.*PCIe)", kind):
            return devices * value
    side = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((side, side), jnp.bfloat16 if bf16 else jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = min(_time(product, x) for _ in range(5))
    return devices * 2 * side**3 / seconds


def _time(product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> float:
    began = time.perf_counter()
    product(x, x).block_until_ready()
    return time.perf_counter() - began

"""LeNet by XLA's convolution and flax's pooling, on the parameters of `sims.digits.encoders.LeNet`."""

from typing import Any

import flax.linen as nn
import jax


def apply(params: Any, image: jax.Array) -> jax.Array:
    """(n, embed_dim) of images (n, h, w, 3)."""
    x = image
    for features in (6, 16):
        kernel, bias = params[f"kernel_{features}"], params[f"bias_{features}"]
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = nn.max_pool(nn.relu(x + bias[None, None, None]), (2, 2), (2, 2))
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    for i in range(3):
        x = x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"][None]
        x = nn.relu(x) if i < 2 else x
    return x

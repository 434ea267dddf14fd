"""Heads on frozen features trained in PyTorch under the CLIP loss, one run at a time. A family is a loop over this."""

import numpy as np
import torch
from torch import nn

Layers = list[tuple[np.ndarray, np.ndarray]]  # kernel (in, out) and offset of each dense layer


def train(
    image: np.ndarray, text: np.ndarray, start: tuple[Layers, Layers], batches: np.ndarray, rate: float,
    temperature: float,
) -> np.ndarray:  # fmt: skip
    """The loss of each step, for rows `batches` (steps, b), by AdamW without decay; the temperature is trained."""
    x, t = torch.from_numpy(image), torch.from_numpy(text)
    towers = [_head(layers) for layers in start]
    log_scale = nn.Parameter(-torch.log(torch.tensor(temperature)))
    parameters = [log_scale, *(p for tower in towers for p in tower.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    target, losses = torch.arange(batches.shape[1]), []
    for rows in torch.from_numpy(batches):
        optimizer.zero_grad()
        z, u = (nn.functional.normalize(tower(y[rows])) for tower, y in zip(towers, (x, t), strict=True))
        logits = log_scale.exp() * z @ u.T
        loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).numpy()


def _head(layers: Layers) -> nn.Sequential:
    """Dense layers, with batch norm and ReLU between them."""
    parts: list[nn.Module] = []
    for number, (kernel, offset) in enumerate(layers):
        last = number == len(layers) - 1
        dense = nn.Linear(*kernel.shape, bias=last)
        with torch.no_grad():
            dense.weight.copy_(torch.from_numpy(kernel.T.copy()))
            if last:
                dense.bias.copy_(torch.from_numpy(offset.copy()))
        parts += [dense] if last else [dense, nn.BatchNorm1d(kernel.shape[1], momentum=0.1), nn.ReLU()]
    return nn.Sequential(*parts)

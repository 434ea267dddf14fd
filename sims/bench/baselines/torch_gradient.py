"""Both linear encoders trained in PyTorch, one run at a time, on the full batch of pairs.

A sweep is a loop over this.
"""

import numpy as np
import torch


def train(
    image: np.ndarray, text: np.ndarray, start_image: np.ndarray, start_text: np.ndarray, rate: float, steps: int
) -> np.ndarray:
    """W = W_I^T W_T, (d_i, d_t), after `steps` of SGD with Nesterov momentum 0.9 on the linear loss with rho = 1:

        -sum_i (x_i - x_bar)^T W (t_i - t_bar) / (n - 1) + |W|^2 / 2.

    Training starts from the given encoders, (r, d_i) and (r, d_t).
    """
    x, t = torch.from_numpy(image), torch.from_numpy(text)
    w_image = torch.from_numpy(start_image.copy()).requires_grad_()
    w_text = torch.from_numpy(start_text.copy()).requires_grad_()
    optimizer = torch.optim.SGD([w_image, w_text], lr=rate, momentum=0.9, nesterov=True)
    for _ in range(steps):
        optimizer.zero_grad()
        left, right = x @ w_image.T, t @ w_text.T
        data = ((left - left.mean(0)) * (right - right.mean(0))).sum() / (len(x) - 1)
        penalty = ((w_image @ w_image.T) * (w_text @ w_text.T)).sum() / 2
        (penalty - data).backward()
        optimizer.step()
    return (w_image.T @ w_text).detach().numpy()

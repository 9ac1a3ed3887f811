"""Counting the values of an integer tensor on any device."""
import torch
from torch import Tensor


def count(index: Tensor, size: int) -> Tensor:
    """int64 [size]: how often each value of `index` (int64, any shape, values in 0..size-1) occurs.

    On a GPU, ones are scattered into the result: torch.bincount would make the CPU wait for the GPU, since the size of
    its result depends on the values.
    """
    index = index.flatten()
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=size)
    return torch.zeros(size, dtype=torch.int64, device=index.device).scatter_add_(0, index, torch.ones_like(index))

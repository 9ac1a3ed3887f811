"""Counting on any device."""
import torch
from torch import Tensor


def count(index: Tensor, size: int) -> Tensor:
    """int64 [size]: how often each value of `index` (int64, any shape, values in 0..size-1) occurs.

    torch.bincount makes the CPU wait for a GPU, since the size of its result depends on the values; there a scatter of
    ones, whose size is known, counts instead.
    """
    index = index.flatten()
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=size)
    return torch.zeros(size, dtype=torch.int64, device=index.device).scatter_add_(0, index, torch.ones_like(index))

"""Counting the values of an integer tensor on any device."""
import torch
from torch import Tensor

_COUNTERS = 2**18  # at most, of all copies of a result together
_MOST_COPIES = 2**10


def count(index: Tensor, size: int) -> Tensor:
    """int64 [size]: how often each value of `index` (int64, any shape, values in 0..size-1) occurs."""
    if index.device.type == "cpu":
        return torch.bincount(index.flatten(), minlength=size)
    return scattered_count(index, size)


def scattered_count(index: Tensor, size: int) -> Tensor:
    """`count` on a GPU, where torch.bincount would make the CPU wait, since its result's size depends on the values.

    Ones are added into the result by atomic additions, of which those to one address follow each other. A class has
    many pixels, so a small result is kept in up to 1,024 copies, which neighbouring pixels fill in turn, and which are
    added up at the end. Sums of integers do not depend on the order.
    """
    index, copies = index.flatten(), 1
    while 2 * copies <= min(_MOST_COPIES, _COUNTERS // size):
        copies *= 2
    if copies > 1:
        index = index * copies + torch.arange(len(index), device=index.device) % copies
    counts = torch.zeros(size * copies, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(0, index, index.new_ones(1).expand_as(index)).view(size, copies).sum(1)

"""Bilinear resizing, with a gradient that is fast and deterministic on a GPU."""
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

_kernel = torch._C._nn.upsample_bilinear2d  # in deterministic mode F.interpolate replaces it by many small operations


def bilinear(x: Tensor, size: tuple[int, int] | None, align_corners: bool,
             factors: tuple[float, float] | None = None) -> Tensor:
    """Resize float [B, C, h, w] bilinearly to `size`, or by `factors`, rounded down, of height and width."""
    if x.device.type != "cuda":
        return F.interpolate(x, size, factors, "bilinear", align_corners, recompute_scale_factor=False)
    return Bilinear.apply(x, size, align_corners, factors)


class Bilinear(torch.autograd.Function):
    """Resizing whose gradient is two matrix products, one along each axis. CUDA's own kernel adds each pixel's share to
    the four positions that it came from, by atomic additions in any order."""

    @staticmethod
    def forward(ctx, x, size, align_corners, factors):
        """See `bilinear`."""
        ctx.shape, ctx.how = x.shape[-2:], (size, align_corners, factors)
        return _kernel(x, size, align_corners, factors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """Of x alone."""
        size, align_corners, factors = ctx.how
        rows, columns = (_weights(length, size and size[axis], align_corners, factors and factors[axis], grad.dtype,
                                  grad.device) for axis, length in enumerate(ctx.shape))
        with torch.autocast(grad.device.type, enabled=False):
            return rows @ (grad @ columns.T), None, None, None


@functools.lru_cache(maxsize=16)
def _weights(length, size, align_corners, factor, dtype, device):
    """The weight of each of `length` positions in each position after resizing along one axis, [length, size]: what the
    kernel itself makes of the unit vectors."""
    units = torch.eye(length, dtype=dtype, device=device).view(1, length, length, 1)
    return _kernel(units, size and (size, 1), align_corners, factor and (factor, 1.0)).view(length, -1)

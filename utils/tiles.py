"""Splitting work on large [C, N] arrays into pieces that fit into the cache."""
import torch

_CACHE_BYTES = 2**19  # of one [C, n] float32 piece: a few of these fit the second-level cache of a core


def tiles(num_pixels: int, num_classes: int, device: torch.device) -> list[slice]:
    """Slices that cover 0..num_pixels: on the CPU pieces of about half a MiB as float32 [C, n], else one piece."""
    size = max(1, _CACHE_BYTES // (4 * num_classes)) if device.type == "cpu" else max(1, num_pixels)
    return [slice(start, min(start + size, num_pixels)) for start in range(0, num_pixels, size)]

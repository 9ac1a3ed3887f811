"""Selective ClassMix (after Olsson et al., WACV 2021): paste half of one image's classes over its neighbour."""
import torch
from torch import Tensor


def draw_classes(label: Tensor, generator: torch.Generator) -> Tensor:
    """Half (rounded down) of the classes present in one label map int64 [H, W], drawn at random: int64 [n // 2]."""
    present = label.unique()
    order = torch.randperm(len(present), generator=generator)[: len(present) // 2]
    return present[order.to(present.device)]


def class_mix(images: Tensor, label: Tensor, conf: Tensor,
              generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Paste the drawn classes of image i over image (i+1) mod B, with one mask for image, label and confidence.

    images: float [B, K, H, W]. label: int64 [B, H, W], no ignored pixels. conf: float [B, H, W]. generator: on the CPU,
    advanced once per image. Returns new tensors of the same shapes. B >= 2, as a single image would be mixed with
    itself.
    """
    mask = torch.stack([torch.isin(one, draw_classes(one, generator)) for one in label])
    def paste(x, pasted):
        return torch.where(pasted, x, x.roll(-1, dims=0))
    return paste(images, mask.unsqueeze(1)), paste(label, mask), paste(conf, mask)

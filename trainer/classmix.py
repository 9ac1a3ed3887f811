"""Selective ClassMix (after Olsson et al., WACV 2021): paste half of one image's classes over its neighbour."""
import torch
from torch import Tensor

_CLASSES = 256  # train ids are below


def draw_classes(label: Tensor, generator: torch.Generator) -> Tensor:
    """Half (rounded down) of the classes present in each label map int64 [B, H, W], drawn at random: bool [B, 256],
    whether a class is drawn. generator: on the CPU."""
    absent = torch.zeros(len(label), _CLASSES, dtype=torch.bool, device=label.device)
    present = absent.scatter(1, label.flatten(1), True)
    if label.device.type != "cpu":  # how many classes are present is not known without waiting for the GPU
        keys = torch.rand(present.shape, generator=generator).pin_memory()
        return half_by_keys(present, keys.to(label.device, non_blocking=True))
    for drawn, classes in zip(absent, present):
        ids = classes.nonzero().squeeze(1)
        drawn[ids[torch.randperm(len(ids), generator=generator)[: len(ids) // 2]]] = True
    return absent


def half_by_keys(present: Tensor, keys: Tensor) -> Tensor:
    """Half (rounded down) of the classes present in each row, those with the smallest keys: bool [B, C]. present: bool
    [B, C]. keys: float [B, C] in 0..1; if they are random, all halves are equally likely."""
    rank = keys.masked_fill(~present, 2).argsort(dim=1, stable=True).argsort(1)
    return present & (rank < present.sum(1, keepdim=True) // 2)


def class_mix(images: Tensor, label: Tensor, conf: Tensor,
              generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Paste the drawn classes of image i over image (i+1) mod B, with one mask for image, label and confidence.

    images: float [B, K, H, W]. label: int64 [B, H, W], no ignored pixels. conf: float [B, H, W]. generator: on the CPU.
    Returns new tensors of the same shapes. B >= 2, as a single image would be mixed with itself.
    """
    mask = draw_classes(label, generator).gather(1, label.flatten(1)).view_as(label)
    def paste(x, pasted):
        return torch.where(pasted, x, x.roll(-1, dims=0))
    return paste(images, mask.unsqueeze(1)), paste(label, mask), paste(conf, mask)

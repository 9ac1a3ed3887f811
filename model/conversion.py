"""From other hands' DeepLabV2 to ours: its heads, told by their shapes, and the input that it was trained with, told by
the scale of its first layer."""
import math
import re

import torch
from torch import Tensor

from model.deeplabv2 import WEIGHT_STD
from utils.constants import HOUSE_INPUT, InputConvention


def convert(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Recognise a network's kind by names and shapes: (kind, tensors under our names, names dropped).

    - Caffe initialisation: every name starts with `Scale.`; its 21-class head is dropped.
    - torchvision: has `fc.weight`, which is dropped.
    - multi-level (AdaptSegNet, ADVENT): layer5 reads layer3 and is auxiliary; layer6 becomes our layer5.
    - single-level ADVENT: layer6 alone becomes our layer5.
    - two heads on layer4 (the authors'): layer6 is not used and dropped.
    - anything else is taken to have our names already (AdaptSegNet single-level, CCM, CRST, ours).
    """
    if all(name.startswith("Scale.") for name in tensors):
        tensors = {name.removeprefix("Scale."): tensor for name, tensor in tensors.items()}
        return _without("Caffe initialisation", "layer5.", tensors)
    stem = tensors.get("conv1.weight")
    if "fc.weight" in tensors and stem is not None and stem.ndim == 4 and "bn1.running_mean" in tensors:
        return _without("torchvision ImageNet", "fc.", tensors)
    first, second = (_head_input(tensors, head) for head in ("layer5", "layer6"))
    if second is None:
        return "one head", tensors, ()
    if first is None:
        return "single-level, head layer6", _renamed(tensors), ()
    if first != second and second == 2 * first:  # layer4 has twice the channels of layer3
        name, kept, dropped = _without("multi-level, head layer6 (layer5 is auxiliary)", "layer5.", tensors)
        return name, _renamed(kept), dropped
    return _without("two heads", "layer6.", tensors)


def sum_of_heads(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One head for two on the same features, whose score maps are the sums of theirs: a convolution is linear."""
    heads = [{k.removeprefix(head): v for k, v in tensors.items() if k.startswith(head)}
             for head in ("layer5.", "layer6.")]
    if not heads[0] or heads[0].keys() != heads[1].keys() or any(
            heads[1][k].shape != v.shape or not v.is_floating_point() for k, v in heads[0].items()):
        raise ValueError("no two heads of one shape")
    kept = {k: v for k, v in tensors.items() if not k.startswith(("layer5.", "layer6."))}
    return kept | {f"layer5.{k}": v + heads[1][k] for k, v in heads[0].items()}


def untrained_branches(weights: list[Tensor]) -> list[bool | None]:
    """Of each of a head's convolution weights float [C, in, 3, 3]: True if it cannot be told from its random start
    N(0, 0.01), False if it lies far from it, None in between.

    Three statistics that are N(0, 1) at the random start, whatever the number of weights: of the mean, of the logarithm
    of the variance, and of the same for sums over the nine taps, which training moves together. Within 5 is near; far
    is beyond 20, so that branches trained alike do not fall on both sides.
    """
    distances = [_distance_from_start(weight) for weight in weights]
    return [True if d < 5 else False if d > 20 else None for d in distances]


def _distance_from_start(weight):
    values = weight.detach().double()
    sums = values.flatten(2).sum(2)
    parts = [(values, WEIGHT_STD), (sums, WEIGHT_STD * math.sqrt(values[0, 0].numel()))]
    spread = [abs(math.log(max(v.square().mean().item(), 1e-300) / s**2)) * math.sqrt(v.numel() / 2) for v, s in parts]
    return max(*spread, abs(values.mean().item()) / WEIGHT_STD * math.sqrt(values.numel()))


def _head_input(tensors, head):
    """Channels that a head reads, None if the file has no such head."""
    weight = tensors.get(f"{head}.conv2d_list.0.weight")
    return weight.shape[1] if weight is not None and weight.ndim == 4 else None


def _renamed(tensors):
    return {re.sub(r"^layer6\.", "layer5.", name): tensor for name, tensor in tensors.items()}


def _without(name, prefix, tensors):
    dropped = tuple(k for k in tensors if k.startswith(prefix))
    return name, {k: v for k, v in tensors.items() if k not in dropped}, dropped


# ---- its input -------------------------------------------------------------------------------------------------------

def recognise_input(tensors: dict[str, Tensor]) -> str | None:
    """The input that a network was trained with, a name of INPUTS, by the scale of its first layer; None if unclear.

    The variance that bn1 has seen, over the sum of its filter's squared weights, is the input's variance times a factor
    that depends on the filters' shape: about 1 to 10 for RGB / 255 with mean and std, 3,400 times that for 0..255. The
    median over the channels of networks trained on images lies within 0.01..20 or above 340; N(0, 0.01) weights and a
    variance of 1, a network that never saw an image, give 68.
    """
    weight, variance = tensors.get("conv1.weight"), tensors.get("bn1.running_var")
    if weight is None or variance is None or weight.ndim != 4 or variance.shape != weight.shape[:1]:
        return None
    power = weight.double().square().sum((1, 2, 3))
    ratios = (variance.double() / power)[power > 0]
    scale = ratios.median().item() if len(ratios) else math.nan
    return "rgb01" if 0.01 <= scale <= 20 else "bgr255" if scale >= 340 else None


def convert_input(tensors: dict[str, Tensor], given: InputConvention,
                  wanted: InputConvention = HOUSE_INPUT) -> dict[str, Tensor]:
    """A network that was trained with the input `given`, for the input `wanted`: its conv1 and bn1 are changed.

    With a pixel p = s u + o, where u is the wanted input, the given one is (s u + o - o') / s' (`on_pixels` has offset
    o and scale s), so the first convolution becomes (W s / s') * u + k with k = sum over input channels and taps of
    W (o - o') / s': scaled weights on channels in their new order, and a constant that bn1 takes off with its running
    mean (the batch's mean contains it by itself). Equal but at the image's border, where zero padding stands for o here
    and for o' there.
    """
    (offset, scale), (new_offset, new_scale) = (
        (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in c.on_pixels()) for c in (given, wanted))
    if given.order != wanted.order:  # all in the given order, until the end
        new_offset, new_scale = new_offset.flip(1), new_scale.flip(1)
    weight, running_mean = tensors["conv1.weight"], tensors["bn1.running_mean"]
    constant = (weight.double() * (new_offset - offset) / scale).sum((1, 2, 3))
    converted = weight.double() * new_scale / scale
    converted = converted.flip(1) if given.order != wanted.order else converted
    return {**tensors, "conv1.weight": converted.to(weight.dtype),
            "bn1.running_mean": (running_mean.double() - constant).to(running_mean.dtype)}

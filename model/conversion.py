"""Conversion of other projects' DeepLabV2 checkpoints: which head they use, recognised by the heads' shapes, and the
input that they were trained with, recognised by the scale of the first layer."""
import math
import re

import torch
from torch import Tensor

from model.deeplabv2 import WEIGHT_STD
from utils.constants import HOUSE_INPUT, InputConvention


def convert(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Recognise the kind of a DeepLabV2 by names and shapes: (kind, tensors under our names, names dropped).

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
    """Replace two heads on the same features by one, whose scores are the sums of theirs, as a convolution is linear.
    Raises ValueError if the network has no two heads of one shape."""
    heads = [{k.removeprefix(head): v for k, v in tensors.items() if k.startswith(head)}
             for head in ("layer5.", "layer6.")]
    if not heads[0] or heads[0].keys() != heads[1].keys() or any(
            heads[1][k].shape != v.shape or not v.is_floating_point() for k, v in heads[0].items()):
        raise ValueError("no two heads of one shape")
    kept = {k: v for k, v in tensors.items() if not k.startswith(("layer5.", "layer6."))}
    return kept | {f"layer5.{k}": v + heads[1][k] for k, v in heads[0].items()}


LAYOUTS = ("own", "authors", "advent", "multi-level")


def in_layout(tensors: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The tensors of a DeepLabV2 by the names that other code of the field loads; `convert` takes them back.

    - own: this project's, AdaptSegNet's for one level, CCM's and CRST's.
    - authors: the LDBE authors', with a second head on layer4, layer6, that is not used.
    - advent: ADVENT's for one level, whose head is layer6.
    - multi-level: AdaptSegNet's and ADVENT's for two levels: the head is layer6, and layer5 an auxiliary one on layer3.

    A head that is not used has a random start, always the same.
    """
    head = {name.removeprefix("layer5."): tensor for name, tensor in tensors.items() if name.startswith("layer5.")}
    rest, draw = {k: v for k, v in tensors.items() if not k.startswith("layer5.")}, torch.Generator().manual_seed(0)

    def unused(tensor, divisor):
        shape = (len(tensor), tensor.shape[1] // divisor, *tensor.shape[2:]) if tensor.ndim > 1 else tensor.shape
        return torch.randn(shape, generator=draw).mul(WEIGHT_STD).to(tensor.dtype)
    fifth = {f"layer5.{name}": unused(tensor, 2) for name, tensor in head.items()} if layout == "multi-level" else {}
    sixth = {f"layer6.{name}": unused(tensor, 1) if layout == "authors" else tensor for name, tensor in head.items()}
    return dict(tensors) if layout == "own" else {**tensors, **sixth} if layout == "authors" else {
        **rest, **fifth, **sixth}


def untrained_branches(weights: list[Tensor], heads: int = 1) -> list[bool | None]:
    """For each of a head's convolution weights, float [C, in, 3, 3]: True if it looks like its random start N(0, 0.01),
    False if it lies far from that, None in between. heads: the number of heads that `sum_of_heads` has added up.

    True: within 5 standard deviations for all weights, for the sums over the nine taps, which training moves together,
    and for the centre taps. False: beyond 12 for the centre taps. These get the same gradient in every branch that is
    summed, so of branches trained together no one is False and another True, however small the images were.
    """
    def state(weight):
        values = weight.detach().double() / math.sqrt(heads)
        centre = _from_start(values[..., 1, 1], WEIGHT_STD)
        near = max(centre, _from_start(values, WEIGHT_STD), _from_start(values.sum((2, 3)), 3 * WEIGHT_STD)) < 5
        return True if near else False if centre > 12 else None
    return [state(weight) for weight in weights]


def _from_start(values, std):
    """How far values lie from N(0, std): the larger of the distances of their mean and of the logarithm of their
    variance, in standard deviations of each."""
    variance = max(values.square().mean().item(), 1e-300)
    return max(abs(values.mean().item()) / std * math.sqrt(values.numel()),
               abs(math.log(variance / std**2)) * math.sqrt(values.numel() / 2))


def _head_input(tensors, head):
    """The number of input channels of a head, None if the file has no such head."""
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

    `input_scale` is about 1 for RGB / 255 with mean and std, and about (255 x 0.226)^2 = 3300 for 0..255. Values up to
    10 and from 300 on are clear, with two exceptions. The first is a network that never saw an image: bn1's statistics
    are at their start, 0 and 1, or its variance is near 1 while the weights are at their start N(0, 0.01), which gives
    about 50. The second is a variance of a hundredth of what noise would give, as photographs, and filters trained on
    them, give more than noise.
    """
    weight, mean, variance = (tensors.get(name) for name in ("conv1.weight", "bn1.running_mean", "bn1.running_var"))
    if weight is None or mean is None or variance is None or weight.ndim != 4 or weight.shape[1] != 3:
        return None
    weight, variance = weight.double(), variance.double()
    typical = variance.median().item()
    never_fed = mean.eq(0).all() and variance.eq(1).all() or 0.4 < typical < 1.6 and _from_start(weight, WEIGHT_STD) < 5
    if never_fed or typical < 0.012 * weight.square().sum((1, 2, 3)).median():
        return None
    scale = input_scale(weight, variance)
    return "rgb01" if scale <= 10 else "bgr255" if scale >= 300 else None


def input_scale(weight: Tensor, variance: Tensor) -> float:
    """Scale of a network's input variance: the running variance of the batch norm after the first convolution, divided
    by the variance that the convolution's weights, float [out, 3, h, w], give on photographs in RGB / 255 with mean and
    std; the median over the channels.

    Photographs are modelled with a variance of 1.5 per channel, a correlation of 0.95 between channels and of
    exp(-distance / 15) between pixels. With this model, other than with the weights' squares, smooth filters, edge
    filters and random filters give similar scales.
    """
    height, width = weight.shape[2:]
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    between_channels = 0.95 + 0.05 * torch.eye(3, dtype=torch.float64)
    covariance = 1.5 * torch.kron(between_channels, torch.exp(-torch.cdist(pixels, pixels) / 15))
    filters = weight.double().flatten(1)
    return (variance.double() / ((filters @ covariance) * filters).sum(1)).nanmedian().item()


def convert_input(tensors: dict[str, Tensor], given: InputConvention,
                  wanted: InputConvention = HOUSE_INPUT) -> dict[str, Tensor]:
    """Convert a network that was trained with the input `given` to the input `wanted`, by changing its conv1 and bn1.

    With a pixel p = s u + o, where u is the wanted input, the given one is (s u + o - o') / s' (`on_pixels` has offset
    o and scale s), so the first convolution becomes (W s / s') * u + k with k = sum over input channels and taps of
    W (o - o') / s': scaled weights on channels in their new order, and a constant, which bn1 subtracts with its running
    mean (a batch's mean contains it already). The results are equal except at the image's border, where zero padding
    stands for o with one input and for o' with the other.
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

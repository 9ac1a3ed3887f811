"""Selection of pseudo labels: which pixels are confident enough, per class and per image. Pure functions on tensors.

Confidence is represented by the uncertainty, 1 - confidence, computed from the logits without cancellation. Float32
cannot distinguish 0.99999999 from 1, but it holds an uncertainty of 1e-8 to seven digits, so that very confident pixels
stay ordered. Thresholds over a whole data set come from histograms of the uncertainty for each predicted class. Their
bins are the float32 numbers cut to their upper 19 bits, 1,024 bins per factor of two. Histograms of several images add,
and their size does not depend on the number of images.

A round keeps of each image the score map at the network's own resolution, in 16 bits a number (`pack_scores`). This is
exact enough to compare pixels with a threshold, but not to find the threshold: if only 50 pixels are predicted as a
class, one that rounding moves to another class shifts the class's quantile by a pixel, which may be a large step.
"""
import math

import torch
from torch import Tensor

from utils.counting import count
from utils.tiles import tiles

_CUT = 13                                # bits of a float32 that its bin leaves out
_FIRST = (127 - 80 << 23) >> _CUT        # 2^-80; smaller ones share bin 0, as packed scores end at e^-64
NUM_BINS = (127 << 23 >> _CUT) - _FIRST + 1  # up to the bin of float32 1.0, the largest uncertainty
NOTHING = -1                             # threshold of a class without predicted pixels: selects nothing
_STEP, _TOP = 2.0**-10, 2**15 - 1        # of packed scores: resolution, and the integer that stands for 0


def pack_scores(scores: Tensor) -> Tensor:
    """Pack a score map into 16 bits a number: float [C, h, w] -> int16 [C, h, w]. Each position's maximum is
    subtracted, which does not change the softmax.

    The format is fixed point, not half precision, since a logit's absolute error is a probability's relative error. It
    is below 2^-10 down to 64 below the maximum (an uncertainty of 1e-28), where packed scores end. Thus uncertainties
    keep a relative error below 2^-10 over the range that the bins resolve. Scores are rounded down, so the maximum
    stays 0 and uncertainties only fall (except where interpolation mixes positions with different maxima): a pixel that
    is selected with the exact scores is selected with the packed ones too.
    """
    below = scores.float() - scores.float().amax(0)
    return (below / _STEP + _TOP).floor().clamp(-_TOP - 1, _TOP).to(torch.int16)


def unpack_scores(packed: Tensor) -> Tensor:
    """Undo `pack_scores`: int16 [C, h, w] -> float32 [C, h, w], at most 0."""
    return (packed.float() - _TOP) * _STEP


def predict(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted class and uncertainty of each pixel.

    logits: float [C, H, W]. Returns label int64 [H, W] = argmax_c p_c, and uncertainty float32 [H, W] =
    1 - max_c p_c = S / (1 + S) with S = sum over the other classes of exp(z_c - z_max), in 0..1.
    """
    num_classes, flat = len(logits), logits.float().flatten(1)
    label = torch.empty(flat.shape[1], dtype=torch.int64, device=logits.device)
    uncertainty = torch.empty(flat.shape[1], device=logits.device)
    # Rank falls with the class, so the largest rank at the maximum is its first class; much faster than argmax.
    rank = torch.arange(num_classes, 0, -1, dtype=torch.uint8, device=logits.device).unsqueeze(1)
    for part in tiles(flat.shape[1], num_classes, logits.device):
        z = flat[:, part]
        top = z.amax(0)
        first = (num_classes - ((z == top) * rank).amax(0).long()).clamp_(max=num_classes - 1)  # of NaN: any class
        others = (z - top).exp_().scatter_(0, first.unsqueeze(0), 0).sum(0)
        label[part], uncertainty[part] = first, others / (1 + others)
    return label.view(logits.shape[1:]), uncertainty.view(logits.shape[1:])


def uncertainty_bin(uncertainty: Tensor) -> Tensor:
    """Bin of each uncertainty: float32 in 0..1 -> int64 in 0..NUM_BINS-1, monotone. A bin spans a factor of at most
    1 + 2^-10, except bin 0, which holds everything up to about 2^-80. NaN gets some bin; `rounds.label_round` raises an
    error for it."""
    return ((uncertainty.contiguous().view(torch.int32) >> _CUT) - _FIRST).clamp_(0, NUM_BINS - 1).long()


def uncertainty_histogram(label: Tensor, bins: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each predicted class and bin: int64 [C, NUM_BINS]. label, bins: int64 [H, W]. Histograms of
    several images add."""
    return count(label * NUM_BINS + bins, num_classes * NUM_BINS).view(num_classes, NUM_BINS)


def class_thresholds(histogram: Tensor, portion: float) -> Tensor:
    """Intra-class thresholds delta_c as bins, int64 [C]: a pixel of class c is selected if its bin is <= threshold_c.

    In the order of falling confidence, the threshold is the bin of the pixel at position floor(portion * n_c), at least
    1, where n_c pixels are predicted as c; ties are selected. It is the exact quantile of the binned uncertainties, so
    the uncertainty at which selection ends exceeds the exact one by a factor below 1 + 2^-10. A class without pixels
    gets NOTHING.
    """
    count = histogram.sum(1)
    wanted = torch.tensor([_portion_count(portion, n) for n in count.tolist()], device=histogram.device)
    position = torch.searchsorted(histogram.cumsum(1), wanted.unsqueeze(1)).squeeze(1)
    return torch.where(count > 0, position, NOTHING)


def threshold_confidence(bins: Tensor) -> Tensor:
    """Thresholds delta_c as confidences: bins int64 [C] -> float64 [C] in 0..1, NaN for NOTHING.

    A bin's confidence is the lowest in it: 1 minus the bin's upper edge.
    """
    edge = ((bins.clamp(min=0) + _FIRST + 1) << _CUT).int() - 1
    confidence = 1 - edge.view(torch.float32).double().clamp(max=1)
    return torch.where(bins == NOTHING, torch.nan, confidence)


def image_threshold(uncertainty: Tensor, portion: float) -> Tensor:
    """The largest uncertainty, a scalar, among the image's most confident `portion` of pixels (at least one pixel)."""
    position, values = _portion_count(portion, uncertainty.numel()), uncertainty.flatten()
    if values.device.type == "cpu":
        return values.kthvalue(position).values
    return values.sort().values[position - 1]  # much faster than a GPU's kthvalue, which uses one block of threads


def select(label: Tensor, uncertainty: Tensor, thresholds: Tensor, portion: float | None,
           ignore_index: int = 255) -> Tensor:
    """Pseudo label uint8 [H, W]: the predicted class where the pixel is selected, else ignore_index.

    label, uncertainty: from `predict`. A pixel is selected if the bin of its uncertainty is at most the threshold of
    its predicted class (You et al., ACM MM 2021, intra-class threshold). With `portion` given, it is also selected if
    it is among that share of the image's most confident pixels (in their released code only).
    """
    selected = uncertainty_bin(uncertainty) <= thresholds[label]
    if portion is not None:
        selected |= uncertainty <= image_threshold(uncertainty, portion)
    return torch.where(selected, label, ignore_index).to(torch.uint8)


def cbst_select(logits: Tensor, thresholds: Tensor, ignore_index: int = 255) -> Tensor:
    """Pseudo label uint8 [H, W] of class-balanced self-training (CBST; Zou et al., ECCV 2018).

    logits: float [C, H, W]. thresholds: bins of `class_thresholds`, which stand for the confidences delta_c =
    exp(-lambda_c) that the top portion of the pixels predicted as c reach. The label is argmax_c p_c / delta_c, which
    prefers classes of low confidence; the pixel is selected if that ratio reaches 1, as in the
    released code; the paper says "exceeds". A class without a threshold is never selected.
    """
    below = logits.float() - logits.float().amax(0)
    delta = threshold_confidence(thresholds).nan_to_num(math.inf).to(below)
    label = (below - delta.log().view(-1, 1, 1)).argmax(0, keepdim=True)
    # p >= delta is decided as 1 - p <= 1 - delta, by bins: near 1, float32 resolves uncertainties, not confidences.
    exp = below.exp()
    own = exp.gather(0, label)
    others = exp.scatter_(0, label, 0).sum(0)
    label = label.squeeze(0)
    selected = uncertainty_bin(others / (own.squeeze(0) + others)) <= thresholds[label]
    return torch.where(selected, label, ignore_index).to(torch.uint8)


def _portion_count(portion: float, n: int) -> int:
    """floor(portion * n), at least 1; the small term undoes the rounding of products such as 0.29 * 100."""
    return max(1, math.floor(portion * n + 1e-9))

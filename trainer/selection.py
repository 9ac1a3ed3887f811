"""Selection of pseudo labels: which pixels are confident enough, per class and per image. Pure functions on tensors.

Confidence is carried as *uncertainty*, 1 - confidence, computed from the logits without cancellation: float32 cannot
tell 0.99999999 from 1, but it holds an uncertainty of 1e-8 to seven digits, so saturated pixels stay ordered.
Thresholds over a whole data set come from histograms of the uncertainty per predicted class, whose bins are the float32
numbers cut to their upper 19 bits: 1,024 bins per factor of two. Histograms of several images add, and their size does
not depend on the number of images.

What a round keeps of an image is its score map at the network's own resolution, in 16 bits a number (`pack_scores`).
This is exact enough to compare pixels with a threshold, not to find the threshold: where 50 pixels are predicted as a
class, one that the rounding moves to another class moves the class's quantile by a pixel, which may be far.
"""
import math

import torch
from torch import Tensor

from utils.counting import count
from utils.tiles import tiles

_CUT = 13                                # bits of a float32 that its bin leaves out
_FIRST = (127 - 80 << 23) >> _CUT        # 2^-80: one bin for all that is below, as packed scores end at e^-64
NUM_BINS = (127 << 23 >> _CUT) - _FIRST + 1  # up to the bin of float32 1.0, the largest uncertainty
NOTHING = -1                             # threshold of a class that no pixel is predicted as: selects nothing
_STEP, _TOP = 2.0**-10, 2**15 - 1        # of packed scores: distance of two neighbours, the value that stands for 0


def pack_scores(scores: Tensor) -> Tensor:
    """Score map float [C, h, w] -> int16 [C, h, w], less each position's maximum, which does not change the softmax.

    Fixed point, not half precision: a logit's absolute error is a probability's relative one. It is below 2^-10 down to
    64 below the maximum, where the scores end (an uncertainty of 1e-28), so an uncertainty keeps a relative error below
    2^-10 as far as bins tell uncertainties apart. Rounding down, which leaves the maximum 0, lowers the uncertainty
    (except where interpolation mixes positions with different maxima): a pixel that is selected with the exact scores
    is selected with the packed ones too.
    """
    below = scores.float() - scores.float().amax(0)
    return (below / _STEP + _TOP).floor().clamp(-_TOP - 1, _TOP).to(torch.int16)


def unpack_scores(packed: Tensor) -> Tensor:
    """Float32 [C, h, w] scores, at most 0, of `pack_scores`."""
    return (packed.float() - _TOP) * _STEP


def predict(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted class and uncertainty of each pixel.

    logits: float [C, H, W]. Returns label int64 [H, W] = argmax_c p_c, and uncertainty float32 [H, W] =
    1 - max_c p_c = S / (1 + S) with S = sum over the other classes of exp(z_c - z_max), in 0..1.
    """
    num_classes, flat = len(logits), logits.float().flatten(1)
    label = torch.empty(flat.shape[1], dtype=torch.int64, device=logits.device)
    uncertainty = torch.empty(flat.shape[1], device=logits.device)
    # The largest rank among the classes that reach the maximum: the first of them, in a fraction of argmax's time.
    rank = torch.arange(num_classes, 0, -1, dtype=torch.uint8, device=logits.device).unsqueeze(1)
    for part in tiles(flat.shape[1], num_classes, logits.device):
        z = flat[:, part]
        top = z.amax(0)
        first = (num_classes - ((z == top) * rank).amax(0).long()).clamp_(max=num_classes - 1)  # of NaN: any class
        others = (z - top).exp_().scatter_(0, first.unsqueeze(0), 0).sum(0)
        label[part], uncertainty[part] = first, others / (1 + others)
    return label.view(logits.shape[1:]), uncertainty.view(logits.shape[1:])


def uncertainty_bin(uncertainty: Tensor) -> Tensor:
    """int64 bin, 0..NUM_BINS-1, of each uncertainty (float32, 0..1); monotone. A bin spans a factor of at most
    1 + 2^-10, except bin 0, which holds everything up to about 2^-80. NaN stays within the bins; `label_round` refuses
    it."""
    return ((uncertainty.contiguous().view(torch.int32) >> _CUT) - _FIRST).clamp_(0, NUM_BINS - 1).long()


def uncertainty_histogram(label: Tensor, bins: Tensor, num_classes: int) -> Tensor:
    """int64 [C, NUM_BINS]: pixels of each predicted class and bin. Histograms of several images add."""
    return count(label * NUM_BINS + bins, num_classes * NUM_BINS).view(num_classes, NUM_BINS)


def class_thresholds(histogram: Tensor, portion: float) -> Tensor:
    """Intra-class thresholds delta_c as bins: int64 [C]; a pixel of class c is selected if its bin is <= threshold_c.

    The threshold is the bin of the pixel at position floor(portion * n_c) (at least 1) in the order of falling
    confidence, n_c the pixels predicted as c; ties are selected. It is the exact quantile of the binned uncertainties,
    so the uncertainty at which selection ends exceeds the exact one by a factor below 1 + 2^-10. A class without pixels
    gets NOTHING.
    """
    count = histogram.sum(1)
    wanted = torch.tensor([_portion_count(portion, n) for n in count.tolist()], device=histogram.device)
    position = torch.searchsorted(histogram.cumsum(1), wanted.unsqueeze(1)).squeeze(1)
    return torch.where(count > 0, position, NOTHING)


def threshold_confidence(bins: Tensor) -> Tensor:
    """float64 delta_c in 0..1 of threshold bins, for reports; NaN for NOTHING.

    It is the lowest confidence in the bin: 1 minus the bin's upper edge.
    """
    edge = ((bins.clamp(min=0) + _FIRST + 1) << _CUT).int() - 1
    confidence = 1 - edge.view(torch.float32).double().clamp(max=1)
    return torch.where(bins == NOTHING, torch.nan, confidence)


def image_threshold(uncertainty: Tensor, portion: float) -> Tensor:
    """Scalar: the largest uncertainty among the image's most confident `portion` of pixels (at least one)."""
    return uncertainty.flatten().kthvalue(_portion_count(portion, uncertainty.numel())).values


def select(label: Tensor, uncertainty: Tensor, thresholds: Tensor, portion: float | None,
           ignore_index: int = 255) -> Tensor:
    """Pseudo label uint8 [H, W]: the predicted class where the pixel is selected, else ignore_index.

    label, uncertainty: of `predict`. A pixel is selected if the bin of its uncertainty is within its predicted class's
    threshold (You et al., ACM MM 2021, intra-class threshold), or, with `portion` given, if it is among the image's own
    most confident share (their released code only).
    """
    selected = uncertainty_bin(uncertainty) <= thresholds[label]
    if portion is not None:
        selected |= uncertainty <= image_threshold(uncertainty, portion)
    return torch.where(selected, label, ignore_index).to(torch.uint8)


def cbst_select(logits: Tensor, thresholds: Tensor, ignore_index: int = 255) -> Tensor:
    """Pseudo label uint8 [H, W] of class-balanced self-training (CBST; Zou et al., ECCV 2018).

    logits: float [C, H, W]. thresholds: bins of `class_thresholds`, which stand for the confidences delta_c =
    exp(-lambda_c) that the top portion of the pixels predicted as c reach. The label is argmax_c p_c / delta_c, which
    prefers classes that the network is seldom sure of; the pixel is selected if that ratio reaches 1, as in the
    released code, where the paper has "exceeds". A class without a threshold is never selected.
    """
    below = logits.float() - logits.float().amax(0)
    delta = threshold_confidence(thresholds).nan_to_num(math.inf).to(below)
    label = (below - delta.log().view(-1, 1, 1)).argmax(0, keepdim=True)
    # p >= delta is decided as 1 - p <= 1 - delta, by bins: near 1 float32 tells uncertainties apart, not confidences.
    exp = below.exp()
    own = exp.gather(0, label)
    others = exp.scatter_(0, label, 0).sum(0)
    label = label.squeeze(0)
    selected = uncertainty_bin(others / (own.squeeze(0) + others)) <= thresholds[label]
    return torch.where(selected, label, ignore_index).to(torch.uint8)


def _portion_count(portion: float, n: int) -> int:
    """floor(portion * n), at least 1; the small term undoes the rounding of products such as 0.29 * 100."""
    return max(1, math.floor(portion * n + 1e-9))

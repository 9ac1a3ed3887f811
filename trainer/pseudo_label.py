"""Class-balanced pseudo labels: who is confident enough, class by class and image by image. Pure functions on tensors.

Confidence is carried as *doubt*, 1 - conf, computed from the logits without cancellation: float32 cannot tell
0.99999999 from 1, but it holds a doubt of 1e-8 to seven digits, so saturated pixels stay ordered. Thresholds over a
whole data set come from histograms of doubt per predicted class, whose bins are the float32 numbers cut to their upper
19 bits: 1,024 bins per factor of two. Two histograms add up, and their size does not depend on the number of images.

What a round keeps of an image is its score map at output stride 8, in 16 bits a number (`pack_scores`): enough to tell
who passes a threshold, not for the threshold itself. Where 50 pixels are predicted as a class, one that the rounding
moves to another class moves the class's quantile by a pixel, which may be far.
"""
import math

import torch
from torch import Tensor

from utils.counting import count

_CUT = 13                                # bits of a float32 that its bin leaves out
_FIRST = (127 - 80 << 23) >> _CUT        # 2^-80: below, all doubts are one, as packed scores end at e^-64
NUM_BINS = (127 << 23 >> _CUT) - _FIRST + 1  # up to the bin of float32 1.0, the largest doubt
NOTHING = -1                             # threshold of a class that nobody predicts: selects no pixel
_STEP, _TOP = 2.0**-10, 2**15 - 1        # of packed scores: distance of two neighbours, the value that stands for 0


def pack_scores(scores: Tensor) -> Tensor:
    """Score map float [C, h, w] -> int16 [C, h, w], less each position's maximum, which softmax does not see.

    Fixed point, not half precision: a logit's absolute error is a probability's relative one. It is below 2^-10 down to
    64 below the maximum, where the scores end (a doubt of 1e-28), so a doubt keeps a relative error below 2^-10 as far
    as bins tell doubts apart. Rounding down, which leaves the maximum 0, lowers doubts (but where scores of positions
    with different maxima are mixed): who passes a threshold of the exact scores passes it here too.
    """
    below = scores.float() - scores.float().amax(0)
    return (below / _STEP + _TOP).floor().clamp(-_TOP - 1, _TOP).to(torch.int16)


def unpack_scores(packed: Tensor) -> Tensor:
    """Float32 [C, h, w] scores, at most 0, of `pack_scores`."""
    return (packed.float() - _TOP) * _STEP


def predict(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted class and doubt of each pixel.

    logits: float [C, H, W]. Returns label int64 [H, W] = argmax_c p_c, and doubt float32 [H, W] =
    1 - max_c p_c = S / (1 + S) with S = sum over the other classes of exp(z_c - z_max), in 0..1.
    """
    logits = logits.float()
    top, label = logits.max(dim=0)
    others = (logits - top).exp_().scatter_(0, label.unsqueeze(0), 0).sum(0)
    return label, others / (1 + others)


def doubt_bin(doubt: Tensor) -> Tensor:
    """int64 bin of each doubt, 0..NUM_BINS-1, monotone; a bin spans a factor of at most 1 + 2^-10 in doubt, but for
    bin 0, which has all doubts up to about 2^-80. NaN stays within the bins; `label_round` refuses it."""
    return ((doubt.contiguous().view(torch.int32) >> _CUT) - _FIRST).clamp_(0, NUM_BINS - 1).long()


def doubt_histogram(label: Tensor, bins: Tensor, num_classes: int) -> Tensor:
    """int64 [C, NUM_BINS]: pixels of each predicted class and bin. Histograms of several images add."""
    return count(label * NUM_BINS + bins, num_classes * NUM_BINS).view(num_classes, NUM_BINS)


def class_thresholds(histogram: Tensor, portion: float) -> Tensor:
    """Intra-class thresholds delta_c as bins: int64 [C]; a pixel of class c passes if its bin is <= threshold_c.

    The threshold is the bin of the pixel at position floor(portion * n_c) (at least 1) in the order of falling
    confidence, n_c the pixels predicted as c; ties pass. It is the exact quantile of the binned doubts, so the doubt at
    which selection ends exceeds the exact one by a factor below 1 + 2^-10. A class without pixels gets NOTHING.
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


def image_threshold(doubt: Tensor, portion: float) -> Tensor:
    """Scalar: the doubt that the image's own most confident `portion` of pixels (at least one) does not exceed."""
    return doubt.flatten().kthvalue(_portion_count(portion, doubt.numel())).values


def select(label: Tensor, doubt: Tensor, thresholds: Tensor, portion: float | None,
           ignore_index: int = 255) -> Tensor:
    """Pseudo label uint8 [H, W]: the predicted class where it is selected, else ignore_index.

    A pixel is selected if its doubt's bin is within its predicted class's threshold (eq. of the intra-class
    threshold), or, with `portion` given, if it is among the image's own most confident share (released code only).
    """
    selected = doubt_bin(doubt) <= thresholds[label]
    if portion is not None:
        selected |= doubt <= image_threshold(doubt, portion)
    return torch.where(selected, label, ignore_index).to(torch.uint8)


def _portion_count(portion: float, n: int) -> int:
    """floor(portion * n), at least 1; the small term undoes the rounding of products such as 0.29 * 100."""
    return max(1, math.floor(portion * n + 1e-9))

"""The losses of all methods, as their papers write them.

They are pure functions. Each returns a scalar that is to be minimised, or several by name. Everywhere, logits are float
[B, C, H, W] with C classes, labels are int64 [B, H, W], train ids or `ignore_index`, and p = softmax(logits) over the
classes. Losses are computed in float32, for float64 logits in float64. Finite logits of any size give finite values and
gradients. A mean over no pixels is 0, and so is its gradient.

Where a step's batch has several parts (processes, `accumulate`), the mean of the parts' losses is the loss of the whole
batch if each is divided by the count of a part in the mean, in place of its own: `labelled`, `mean`.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.counting import count
from utils.distributed import Mean, alone

MIN_OTHERS = 1e-5  # lower clamp of 1 - p_k in the negative term


def cross_entropy(logits: Tensor, label: Tensor, ignore_index: int = 255, labelled: Tensor | None = None) -> Tensor:
    """Cross entropy -log p_y, mean over the labelled pixels; 0 if there are none, where torch's own mean is NaN.
    labelled: what to divide by in place of their number."""
    loss = F.cross_entropy(widened(logits), label, ignore_index=ignore_index, reduction="sum")
    return share(loss, (label != ignore_index).sum() if labelled is None else labelled)


def positive(logits: Tensor, pseudo_label: Tensor, ignore_index: int = 255, labelled: Tensor | None = None) -> Tensor:
    """Positive term of label denoising (You et al., ACM MM 2021): cross entropy on the selected pixels, that is those
    whose pseudo label is a class."""
    return cross_entropy(logits, pseudo_label, ignore_index, labelled)


def entropy(logits: Tensor, mask: Tensor | None = None, kind: str = "shannon") -> Tensor:
    """Entropy of the prediction, mean over the pixels of `mask` (bool [B, H, W]; None: all).

    kind `shannon`: -sum_c p_c log p_c, in 0..log C (Vu et al., CVPR 2019; the paper of label denoising).
    kind `released`: -sum_c p_c log softmax(p)_c = logsumexp(p) - sum_c p_c^2. The released code of label denoising
    takes the softmax twice. But for its first term this is twice the maximum-squares loss, whose gradient is smaller
    for uncertain pixels.
    """
    if kind not in ("shannon", "released"):
        raise ValueError(f"entropy: kind is `shannon` or `released`, not {kind!r}")
    log_p = widened(logits).log_softmax(1)
    p = log_p.exp()
    values = -(p * (log_p if kind == "shannon" else p.log_softmax(1))).sum(1)
    return values.mean() if mask is None else (values * mask).sum() / mask.sum().clamp(min=1)


def negative(logits: Tensor, rank: int) -> Tensor:
    """Negative term of label denoising: -log(1 - p_k), mean over all pixels, with 1 - p_k clamped to [1e-5, 1].

    k is the class of the given rank in the order of the pixel's probabilities: 1 the most probable, C the least.
    """
    z = widened(logits)
    k = z.detach().topk(rank, dim=1).indices[:, -1:]
    return -(1 - z.softmax(1).gather(1, k)).clamp(MIN_OTHERS, 1).log().mean()


def negative_rank(num_classes: int, width: int, rng: np.random.Generator) -> int:
    """Draw the rank of a step: `floor(C/2) + U{-width..width}`, clamped to 2..C; 1 is the most probable class.

    The middle of the ranking is drawn from since the first ranks may hold the true class, and the last ones teach
    nothing. Rank 1 is excluded: it is the predicted class itself, which the other two terms strengthen, and with two or
    three classes floor(C/2) would be 1.
    """
    return min(max(num_classes // 2 + int(rng.integers(-width, width + 1)), 2), num_classes)


def mixed_cross_entropy(logits: Tensor, label: Tensor, conf: Tensor, conf_thresh: float,
                        mean: Mean = alone) -> Tensor:
    """Cross entropy of boundary enhancement (You et al., ACM MM 2021).

    label: without ignored pixels. conf: float [B, H, W], confidence of each label in 0..1. The pixels of an image are
    weighted by the share of its pixels with conf >= conf_thresh. The mean runs over the pixels whose cross entropy is
    positive, as in the released code. mean: of a value over the parts of the batch, `Method.mean`.
    """
    loss = F.cross_entropy(widened(logits), label, reduction="none")
    return share((_confident_share(conf, conf_thresh, loss.dtype) * loss).sum(), mean((loss > 0).sum().double()))


def confidence_weighted_cross_entropy(logits: Tensor, label: Tensor, confidence: Tensor, threshold: float = 0.968,
                                      ignore_index: int = 255) -> Tensor:
    """Cross entropy of a student with its teacher's labels, weighted by the teacher's confidence.

    q_i/(BHW) sum over image i's labelled pixels of -log p_y, summed over the images; q_i is the share of the pixels of
    image i with confidence >= threshold. label: the teacher's argmax. confidence: float [B, H, W], its probability.
    DACS (Tranheden et al., WACV 2021) and DAFormer (Hoyer et al., CVPR 2022), which writes q per image. The released
    code of both takes one q over the whole batch; with one image a batch that is the same. As in both, ignored pixels
    add nothing but count in the mean.
    """
    loss = F.cross_entropy(widened(logits), label, ignore_index=ignore_index, reduction="none")
    return (_confident_share(confidence, threshold, loss.dtype) * loss).mean()


def maximum_squares(logits: Tensor, balance: float = 0.0) -> Tensor:
    """-1/(2N) sum_n sum_c p_nc^2 over the N pixels of an image, mean over the images; in -1/2..-1/(2C) for balance 0.

    Maximum-squares loss (Chen, Xue and Cai, ICCV 2019): its derivative by a probability grows linearly, where that of
    the entropy is largest for confident pixels, which then dominate. balance: exponent q of the image-wise class
    balance, 0.2 in the paper: a pixel has weight 1 / (N_c^q N^(1-q)) in place of 1/N, N_c the number of the image's
    pixels that are predicted as the pixel's own predicted class c. The weights are constants to the gradient.
    The released code's loss is this one divided by C for balance 0, and times 2/C for the balanced one, whose 1/2 it
    leaves out.
    """
    z = widened(logits)
    values = z.softmax(1).square().sum(1)
    if balance:
        predicted = z.argmax(1)
        own_count = torch.stack([count(image, z.shape[1])[image] for image in predicted])
        values = values * (predicted[0].numel() / own_count.to(z.dtype)) ** balance
    return -values.mean() / 2


def information_maximisation(logits: Tensor, mean: Mean = alone) -> dict[str, Tensor]:
    """SHOT's two terms (Liang, Hu and Feng, ICML 2020), whose sum is minimised: confident pixels, not all of one class.

    `entropy`: -sum_c p_c log p_c, mean over the pixels. `diversity`: sum_c m_c log m_c, the negative entropy of the
    mean prediction m over all pixels of the batch, in -log C..0. In SHOT the mean runs over a batch of whole images'
    predictions. Its released code adds 1e-5 within the logarithms; here log m is computed from log p, which needs none.
    mean: of a value over the parts of the batch, `Method.mean`; log m is computed from the mean of their m, if several.
    """
    log_p = widened(logits).log_softmax(1)
    log_mean = log_p.logsumexp((0, 2, 3)) - math.log(log_p[:, 0].numel())
    own = log_mean.exp()
    prediction = mean(own)
    if prediction is not own:
        log_mean = prediction.clamp(min=torch.finfo(own.dtype).tiny).log()
    return {"entropy": -(log_p.exp() * log_p).sum(1).mean(), "diversity": (prediction * log_mean).sum()}


def crst_mrkld(logits: Tensor, pseudo_label: Tensor, weight: float = 0.1, ignore_index: int = 255,
               labelled: Tensor | None = None) -> Tensor:
    """-log p_y - weight/C sum_c log p_c, mean over the selected pixels.

    Self-training with model regularisation (CRST's MRKLD; Zou et al., ICCV 2019): the second term is the
    Kullback-Leibler divergence of p from the uniform distribution, less its constant -log C; its gradient by the logits
    is weight (p - 1/C). As in the released code it acts on the selected pixels alone. That code multiplies by its
    option `mr_weight_kld` twice, once per image and once per batch: its 0.1 is a weight of 0.01 here.
    """
    log_p = widened(logits).log_softmax(1)
    selected = pseudo_label != ignore_index
    to_uniform = share(-(log_p.mean(1) * selected).sum(), selected.sum() if labelled is None else labelled)
    return cross_entropy(logits, pseudo_label, ignore_index, labelled) + weight * to_uniform


def share(total: Tensor, count: Tensor) -> Tensor:
    """A sum divided by a count, which may be the mean of several; 0 for a count of 0, whose sum is 0."""
    return total / (count + (count == 0)).to(total.dtype)


def widened(logits: Tensor) -> Tensor:
    """The logits in float32, or as they are if they are float32 or float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _confident_share(confidence: Tensor, threshold: float, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1]: share of each image's pixels with confidence >= threshold."""
    return (confidence >= threshold).to(dtype).mean(dim=(1, 2), keepdim=True)

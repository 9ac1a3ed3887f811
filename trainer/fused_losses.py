"""The three losses of label denoising in one pass: the values of `losses` in a fraction of their time and memory.

Pure functions of logits and labels, for C classes and B images of H x W pixels.
"""
import functools

import torch
from torch import Tensor

from trainer.losses import MIN_OTHERS, share, widened
from utils.compiling import prepare_compiler
from utils.tiles import tiles


def ld_losses(logits: Tensor, pseudo_label: Tensor, negative_rank: int, entropy_on: str = "all",
              entropy: str = "released", ignore_index: int = 255, compile: bool = False,
             labelled: Tensor | None = None) -> dict[str, Tensor]:
    """The scalars `positive`, `entropy` and `negative`, as in `losses`; label denoising minimises their plain sum.

    logits: float [B, C, H, W]. pseudo_label: int64 [B, H, W], train ids, or ignore_index where a pixel is not selected.
    negative_rank: k of this step, 1-based: 1 = the most probable class of a pixel, C = the least. entropy_on: `all`
    pixels (released code) or the `unselected` ones (paper). entropy: which function, see below. compile: fuse with
    torch.compile. labelled: the number of selected pixels by which to divide, in place of this batch's (`losses`).
    - positive: cross entropy, mean over the selected pixels; 0 if there are none.
    - entropy, mean over the pixels named by entropy_on; 0 if there are none. `shannon` (paper): -sum_c p_c log p_c.
      `released` (the released code takes the softmax twice): -sum_c p_c log softmax(p)_c = logsumexp(p) - sum_c p_c^2,
      but for its first term twice the maximum-squares loss (Chen et al., ICCV 2019).
    - negative: -log(1 - p_k), mean over all pixels, with 1 - p_k clamped to [1e-5, 1]; classes that tie for the rank
      share its gradient.
    Computed in float32 (float64 for float64 logits); differentiable once.
    """
    selected = pseudo_label != ignore_index
    in_entropy = torch.ones_like(selected) if entropy_on == "all" else ~selected
    label = pseudo_label.masked_fill(~selected, 0)
    positive, entropic, negative = _LDSums.apply(logits, label, selected, in_entropy, negative_rank, entropy, compile)
    labelled = selected.sum() if labelled is None else labelled
    everywhere = selected.numel()
    return {"positive": share(positive, labelled),
            "entropy": entropic / everywhere if entropy_on == "all" else share(entropic, everywhere - labelled),
            "negative": negative / everywhere}


class _LDSums(torch.autograd.Function):
    """The three terms, each summed over the pixels. They share one log-softmax. The closed-form gradient needs only
    four numbers a pixel, so nothing as large as the logits is kept for the backward pass."""

    @staticmethod
    def forward(ctx, logits, label, selected, in_entropy, rank, entropy, compile):
        work = _compiled(_forward_tile) if compile else _forward_tile
        flat, planes = logits.flatten(2), (label.flatten(1), selected.flatten(1), in_entropy.flatten(1))
        sums = torch.zeros(3, dtype=torch.float64, device=logits.device)
        saved = torch.empty(4, *planes[0].shape, dtype=torch.promote_types(logits.dtype, torch.float32),
                            device=logits.device)
        for part in tiles(flat.shape[2], flat.shape[0] * flat.shape[1], logits.device):
            terms, saved[..., part] = work(flat[..., part], *(plane[:, part] for plane in planes), rank, entropy)
            sums += terms
        ctx.save_for_backward(logits, label, selected, in_entropy, saved)
        ctx.entropy, ctx.compile = entropy, compile
        return tuple(sums.to(saved.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *weights):
        work = _compiled(_backward_tile) if ctx.compile else _backward_tile
        logits, label, selected, in_entropy, saved = ctx.saved_tensors
        flat, planes = logits.flatten(2), (label.flatten(1), selected.flatten(1), in_entropy.flatten(1))
        grad = torch.empty_like(flat, memory_format=torch.contiguous_format)
        weights = torch.stack(weights)
        for part in tiles(flat.shape[2], flat.shape[0] * flat.shape[1], logits.device):
            grad[..., part] = work(flat[..., part], *(plane[:, part] for plane in planes), saved[..., part], weights,
                                   ctx.entropy)
        return grad.view(logits.shape), None, None, None, None, None, None


def _forward_tile(z, label, selected, in_entropy, rank, kind):
    """z: [B, C, n], masks and label [B, n]. Returns the three sums, float64 [3], and what the gradient needs of each
    pixel, [4, B, n]: max z, log sum exp(z - max z), the entropy (shannon) or logsumexp(p) (released), the logit of the
    given rank."""
    z = widened(z)
    top = z.amax(1)
    shifted = z - top.unsqueeze(1)
    of_label = shifted.gather(1, label.unsqueeze(1)).squeeze(1)
    exp = shifted.exp() if kind == "shannon" else shifted.exp_()
    total = exp.sum(1)
    log_total = total.log()
    if kind == "shannon":
        entropy = kept = log_total - (exp * shifted).sum(1) / total  # every summand is >= 0: nothing cancels
    else:
        p = exp.div_(total.unsqueeze(1))
        squares = (p * p).sum(1)
        kept = p.exp_().sum(1).log()
        entropy = kept - squares
    kth = kth_largest(z, rank)
    p_k = (kth - top).exp() / total
    cross_entropy = log_total - of_label
    terms = (cross_entropy * selected, entropy * in_entropy, -(1 - p_k).clamp(min=MIN_OTHERS).log())
    return (torch.stack([term.sum(dtype=torch.float64) for term in terms]),
            torch.stack([top, log_total, kept, kth]))


def _backward_tile(z, label, selected, in_entropy, saved, weights, kind):
    """Gradient [B, C, n] of the weighted sums, with e_y the one-hot label and e_k the class of the rank:
    w0 (p - e_y) on selected pixels + w1 p (g - sum p g) + w2 p_k / (1 - p_k) (e_k - p), 0 where clamped; g is the
    entropy's derivative by p, -log p (- 1, which cancels) or softmax(p) - 2 p."""
    wide = z.to(saved.dtype)
    top, log_total, kept, kth = saved
    log_p = (wide - top.unsqueeze(1)).sub_(log_total.unsqueeze(1))
    p_k = (kth - top - log_total).exp()
    positive, entropic = weights[0] * selected, weights[1] * in_entropy
    negative = weights[2] * torch.where(1 - p_k > MIN_OTHERS, p_k / (1 - p_k), 0)
    if kind == "shannon":
        p, by_p, mean = log_p.exp(), log_p.neg_(), kept
    else:
        p = log_p.exp_()
        by_p = (p - kept.unsqueeze(1)).exp_().sub_(p, alpha=2)
        mean = (p * by_p).sum(1)
    grad = by_p.mul_(entropic.unsqueeze(1)).add_((positive - negative - entropic * mean).unsqueeze(1)).mul_(p)
    of_rank = (wide == kth.unsqueeze(1)).to(grad.dtype)
    grad.addcmul_(of_rank, (negative / of_rank.sum(1)).unsqueeze(1))  # exact products, so a fused rounding is the same
    return grad.scatter_add_(1, label.unsqueeze(1), -positive.unsqueeze(1)).to(z.dtype)


def kth_largest(z: Tensor, rank: int) -> Tensor:
    """The value of the given rank (1 = largest) among the C values of each pixel: z float [B, C, n] -> float [B, n].

    It is a selection network of minima and maxima over whole planes, which takes an eighth of topk's time on the CPU
    (`python -m bench losses`).
    """
    planes = list(z.unbind(1))
    for high, low, keep_high, keep_low in _selection_network(len(planes), rank):
        a, b = planes[high], planes[low]
        planes[high] = torch.maximum(a, b) if keep_high else None
        planes[low] = torch.minimum(a, b) if keep_low else None
    return planes[rank - 1]


@functools.cache
def _selection_network(n: int, rank: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Compare-exchange pairs of Batcher's merge exchange (Knuth, TAOCP vol. 3, algorithm 5.2.2M), without those that do
    not affect the output of the given rank: (place of the larger value, of the smaller, whether each is used)."""
    pairs = []
    p = largest = 1 << (n - 1).bit_length() >> 1
    while p > 0:
        q, r, d = largest, 0, p
        while d > 0:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            d, q, r = q - p, q >> 1, p
        p >>= 1
    needed, kept = {rank - 1}, []
    for pair in reversed(pairs):
        if needed & set(pair):
            kept.append((*pair, pair[0] in needed, pair[1] in needed))
            needed |= set(pair)
    return tuple(reversed(kept))


@functools.cache
def _compiled(function):
    prepare_compiler()  # a variant for each rank; without a compiler it runs uncompiled
    return torch.compile(function)

"""The losses of the method. Pure functions of logits and labels; C classes, B images of H x W pixels."""
import torch
import torch.nn.functional as F
from torch import Tensor


def ld_losses(logits: Tensor, pseudo_label: Tensor, negative_rank: int, entropy_on: str = "all",
              ignore_index: int = 255) -> dict[str, Tensor]:
    """The three terms of label denoising, each a scalar; the stage minimises their plain sum.

    logits: float [B, C, H, W]. pseudo_label: int64 [B, H, W], train ids or ignore_index where nothing was selected.
    negative_rank: k of this step, 1-based (see `complementary_class`). entropy_on: `all` pixels (released code) or the
    `unselected` ones (paper).
    - positive: cross entropy, mean over the selected pixels; 0 if there are none.
    - entropy: -sum_c p_c log p_c, mean over the pixels named by entropy_on; 0 if there are none.
    - negative: -log(1 - p_k), mean over all pixels, with 1 - p_k clamped to [1e-5, 1].
    """
    log_probs = F.log_softmax(_at_least_float32(logits), dim=1)
    probs = log_probs.exp()
    selected = pseudo_label != ignore_index
    positive = F.nll_loss(log_probs, pseudo_label, ignore_index=ignore_index, reduction="sum")
    entropy = -(probs * log_probs).sum(1)
    if entropy_on == "unselected":
        entropy = entropy * ~selected
        entropy_pixels = (~selected).sum().clamp(min=1)
    else:
        entropy_pixels = entropy.numel()
    unlikely = complementary_class(logits, negative_rank)
    others = 1 - probs.gather(1, unlikely.unsqueeze(1))
    return {
        "positive": positive / selected.sum().clamp(min=1),
        "entropy": entropy.sum() / entropy_pixels,
        "negative": -others.clamp(1e-5, 1).log().mean(),
    }


def complementary_class(logits: Tensor, rank: int) -> Tensor:
    """int64 [B, H, W]: the class of the given rank in each pixel's probabilities, 1 = most probable, C = least."""
    return logits.detach().topk(rank, dim=1).indices[:, -1]


def negative_rank(num_classes: int, width: int, rng) -> int:
    """Draw the rank of a step, `floor(C/2) + U{-width..width}`, 1-based; rng: numpy Generator.

    The middle of the ranking: the head may hold the true class, and the tail teaches nothing.
    """
    return num_classes // 2 + int(rng.integers(-width, width + 1))


def mixed_cross_entropy(logits: Tensor, label: Tensor, conf: Tensor, conf_thresh: float) -> Tensor:
    """Cross entropy of boundary enhancement, a scalar.

    logits: float [B, C, H, W]; label: int64 [B, H, W]; conf: float [B, H, W], confidence of each label in 0..1.
    Each image's pixels are weighted by the share of its pixels with conf >= conf_thresh; the mean runs over the pixels
    whose cross entropy is positive (as in the released code), 0 if there are none.
    """
    loss = F.cross_entropy(_at_least_float32(logits), label, reduction="none")
    weight = (conf >= conf_thresh).to(loss.dtype).mean(dim=(1, 2), keepdim=True)
    return (weight * loss).sum() / (loss > 0).sum().clamp(min=1)


def _at_least_float32(x: Tensor) -> Tensor:
    """Half-precision logits are widened: losses are computed in float32, or float64 where that is given."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

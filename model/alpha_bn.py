"""alpha-BN (You, Li and Zhao, "Test-time batch statistics calibration for covariate shift", 2021, arXiv 2110.04065), in
training too: batch norms that normalise by a mixture of the source's statistics and those of the batch."""
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.parallel import require_plain
from model.segmenter import Segmenter
from model.statistics import TargetStatistics, batch_norms


class AlphaBatchNorm:
    """With the source's mean m_S and variance v_S of a batch norm and a batch's m_B and v_B (biased), training
    normalises by share m_S + (1 - share) m_B, and the same of v; gradients flow through m_B and v_B. The running
    statistics, by which whole images are labelled and evaluated, follow that mixture (with the unbiased v_B). They
    begin as the mixture of the source's and the target's (`start`).

    share: of the source, 0..1. The source's statistics are those of the network when `start` is called; they are the
    state, as the network's own statistics move on. Raises ConfigError for batch norms that compute more than torch's.
    """

    def __init__(self, network: nn.Module, share: float):
        self.share, self.norms = share, batch_norms(network)
        require_plain(self.norms, "bn_source", "bn_source=0")
        self.source = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in self.norms]
        self._index = {norm: i for i, norm in enumerate(self.norms)}

    def start(self, network: Segmenter, images: Iterable[Tensor]) -> None:
        """Set the running statistics to the mixture of the network's own and the mean of those of the images, each seen
        alone and normalised by its own statistics (as `bn_adapt`). images: from `Segmenter.prepare`, this process's
        share. Collective."""
        for norm, kept in zip(self.norms, self.source):
            kept[0].copy_(norm.running_mean)
            kept[1].copy_(norm.running_var)
        momenta = [norm.momentum for norm in self.norms]
        try:
            statistics = TargetStatistics(network, None, self.share, False)
            statistics.gather(images)
        finally:
            for norm, momentum in zip(self.norms, momenta):
                norm.momentum = momentum

    def normalise(self, norm: _BatchNorm, x: Tensor) -> Tensor:
        """The forward pass of a batch norm in training: x float [B, K, ...] -> the same."""
        mean_s, var_s = self.source[self._index[norm]]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        var_b, mean_b = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0)
        mean, var = mean_b.lerp(mean_s, self.share), var_b.lerp(var_s, self.share)
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            norm.num_batches_tracked += 1
            momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            unbiased = (var_b * (count / max(count - 1, 1))).lerp(var_s, self.share)
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = (var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        shift = -mean * scale + (0 if norm.bias is None else norm.bias)
        return (wide * scale.view(shape) + shift.view(shape)).to(x.dtype)

    def state_dict(self) -> dict:
        """The source's statistics."""
        return {"source": [list(pair) for pair in self.source]}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where `state_dict` was."""
        for kept, saved in zip(self.source, state["source"]):
            for tensor, value in zip(kept, saved):
                tensor.copy_(value)

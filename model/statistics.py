"""Statistics of batch norms gathered over images; parameters stay as they are."""
import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.segmenter import Segmenter


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a network that keep running statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


class TargetStatistics:
    """Running statistics of all batch norms of a network, gathered over images that it sees one at a time.

    Averages of mean, variance and squared mean over the images are kept in float64. momentum: weight of each image in
    an exponential moving average that starts from the network's own statistics; None: the plain mean over the images,
    without the network's statistics. population: the variance is E[var + mean^2] - E[mean]^2 in place of E[var]. alpha:
    share of the network's former mean and variance in the statistics that the batch norms get after each image.

    norms: the batch norms with running statistics. From now on a forward pass with batch statistics sets these to the
    statistics of its batch.
    """

    def __init__(self, network: nn.Module, momentum: float | None, alpha: float, population: bool):
        self.norms = batch_norms(network)
        self.momentum, self.alpha, self.population, self.images = momentum, alpha, population, 0
        for norm in self.norms:
            norm.momentum = 1.0  # a forward pass leaves the statistics of its batch
        self.source, self.target = self._moments(), self._moments()

    @property
    def finite(self) -> bool:
        """Whether the target's statistics hold neither NaN nor infinity."""
        return bool(self.target.isfinite().all())

    def add_image(self) -> None:
        """Add the image that the network has just seen, in a pass that set its running statistics."""
        self.target.lerp_(self._moments(), self.momentum or 1 / (self.images + 1))
        self.images += 1
        self.use(self.alpha)

    def use(self, alpha: float) -> None:
        """Give the batch norms the target's statistics, with the share `alpha` of the source's."""
        mean, var, square = self.target
        found = torch.stack([mean, var + (square - mean.square()).clamp(min=0) if self.population else var])
        sizes = [len(norm.running_mean) for norm in self.norms]
        for norm, (mean, var) in zip(self.norms, found.lerp(self.source[:2], alpha).split(sizes, 1)):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)

    def _moments(self) -> Tensor:
        """Mean, variance and squared mean, float64 [3, channels of all batch norms]."""
        if not self.norms:
            return torch.zeros(3, 0, dtype=torch.float64)
        mean, var = (torch.cat([getattr(norm, name) for norm in self.norms]).double()
                     for name in ("running_mean", "running_var"))
        return torch.stack([mean, var, mean.square()])

    def state_dict(self) -> dict:
        """The images so far, and the moments of source and target."""
        return {"images": self.images, "source": self.source, "target": self.target}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where `state_dict` was."""
        self.images = state["images"]
        self.source.copy_(state["source"])
        self.target.copy_(state["target"])


@contextlib.contextmanager
def gathered(network: Segmenter, images: Iterable[Tensor],
             source: Tensor | None = None) -> Iterator[TargetStatistics]:
    """The statistics over images, each normalised by its own; within, the network may `use` them, afterwards its own
    are as before. images: from `Segmenter.prepare`, one each. source: moments to mix with in place of its own."""
    before = [(norm, norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in batch_norms(network)]
    try:
        statistics = TargetStatistics(network, None, 0.0, False)
        if source is not None:
            statistics.source = source.to(statistics.source.device)  # of a resumed run on the CPU
        network.use_statistics("batch")
        with torch.no_grad():
            for x in images:
                network.score_map(x)
                statistics.add_image()
        yield statistics
    finally:
        for norm, momentum, buffers in before:
            norm.momentum = momentum
            for buffer, old in zip(norm.buffers(), buffers):
                buffer.copy_(old)

"""Statistics of batch norms gathered over images; parameters stay as they are.

Of several processes (`utils.distributed`) each sees its share of the images, `distributed.share`, in lockstep: after
each image the moments of all are added in the order of the images. So the result has the bits of one process.
"""
import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.segmenter import Segmenter
from utils import distributed


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

    def __init__(self, network: Segmenter, momentum: float | None, alpha: float, population: bool):
        self.network, self.norms = network, batch_norms(network)
        self.momentum, self.alpha, self.population, self.images = momentum, alpha, population, 0
        for norm in self.norms:
            norm.momentum = 1.0  # a forward pass leaves the statistics of its batch
        self.source, self.target = self._moments(), self._moments()

    @property
    def finite(self) -> bool:
        """Whether the target's statistics hold neither NaN nor infinity."""
        return bool(self.target.isfinite().all())

    def gather(self, images: Iterable[Tensor]) -> None:
        """`add` each of the images, this process's share. If a signal ends the share of one process, all raise Stopped.
        Collective."""
        own, nothing = iter(images), torch.empty(0)
        while True:
            with distributed.together():
                image = next(own, nothing)
            if not self.add(image):
                return

    def add(self, image: Tensor) -> int:
        """Let the network see an image, normalised by its own statistics, and add these: float [1, K, H, W] from
        `Segmenter.prepare`, or a batch of none in a process whose share is at its end. Returns the number of images
        that the processes have added. Collective."""
        with torch.no_grad(), self._counted():
            self.network.use_statistics("batch")
            if len(image):
                self.network.score_map(image)
        seen = distributed.stacked(torch.tensor(len(image))).tolist()
        for moments, there in zip(distributed.stacked(self._moments()), seen):
            if there:
                self.target.lerp_(moments, self.momentum or 1 / (self.images + 1))
                self.images += 1
        if any(seen):
            self.use(self.alpha)
        return sum(seen)

    def use(self, alpha: float) -> None:
        """Give the batch norms the target's statistics, with the share `alpha` of the source's."""
        mean, var, square = self.target
        found = torch.stack([mean, var + (square - mean.square()).clamp(min=0) if self.population else var])
        sizes = [len(norm.running_mean) for norm in self.norms]
        for norm, (mean, var) in zip(self.norms, found.lerp(self.source[:2], alpha).split(sizes, 1)):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """In the block each process makes a forward pass; afterwards all batch norms have counted those of all."""
        counters = [n.num_batches_tracked for n in self.norms if n.num_batches_tracked is not None]
        before = torch.stack(counters) if counters and distributed.size() > 1 else None
        yield
        if before is not None:
            for counter, number in zip(counters, before + distributed.total(torch.stack(counters) - before)):
                counter.copy_(number)

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
    are as before. images: from `Segmenter.prepare`, one each, this process's share. source: moments to mix with in
    place of its own. Collective."""
    before = [(norm, norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in batch_norms(network)]
    try:
        statistics = TargetStatistics(network, None, 0.0, False)
        if source is not None:
            statistics.source = source.to(statistics.source.device)  # of a resumed run on the CPU
        statistics.gather(images)
        yield statistics
    finally:
        for norm, momentum, buffers in before:
            norm.momentum = momentum
            for buffer, old in zip(norm.buffers(), buffers):
                buffer.copy_(old)

"""A network that several processes train: gradients averaged over them, batch norms that see the batches of all, and
running statistics that move by the mean of all batches."""
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from utils import distributed
from utils.errors import ConfigError


class Parallel:
    """A network's forward pass whose backward pass averages the gradients over all processes
    (DistributedDataParallel). It is no module, so that the network may hold it without becoming a part of itself.

    Parameters that no loss has reached in any process keep their gradient None. Buffers stay each process's own.
    Building it is collective; it gives the network process 0's parameters.
    """

    def __init__(self, network: nn.Module, forward: Callable[[Tensor], Tensor]):
        inner = _Pass(network, forward)
        # Unlike `broadcast_buffers`, which torch 2.14 deprecates, and what replaces it, this is in all versions.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            inner, [name for name, _ in inner.named_buffers()])
        self.trained = _trained(network)
        self._wrapped = DistributedDataParallel(inner, find_unused_parameters=True, gradient_as_bucket_view=True)

    def __call__(self, x: Tensor) -> Tensor:
        """The forward pass."""
        return self._wrapped(x)

    def fits(self, network: nn.Module) -> bool:
        """Whether the parameters that the network trains are those whose gradients are averaged."""
        return self.trained == _trained(network)

    def apart(self) -> AbstractContextManager:
        """Within, backward passes add to this process's own gradients; the next one outside averages the sums."""
        return self._wrapped.no_sync()


class _Pass(nn.Module):
    def __init__(self, network, forward):
        super().__init__()
        self.network, self.run = network, forward

    def forward(self, x):
        return self.run(x)


def _trained(network):
    return [id(p) for p in network.parameters() if p.requires_grad]


def require_plain(norms: list[_BatchNorm], key: str, advice: str) -> None:
    """Raise ConfigError, which names the key and says what to set, if a batch norm computes more than one of torch does
    (an activation as well, say): that would be left out where its forward pass is replaced."""
    for norm in norms:
        if type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            raise ConfigError(f"{key}: the network's {type(norm).__name__} computes more than a batch norm, which "
                              f"would be left out: set {advice}.")


def synchronised(norms: list[_BatchNorm]) -> Callable[[_BatchNorm, Tensor], Tensor]:
    """A forward pass for batch norms in training, forward(norm, x), that normalises by the statistics of all processes'
    batches together (torch's SyncBatchNorm, which needs CUDA). Collective, also in the backward pass. Raises
    ConfigError for a class of batch norms that computes something else, too."""
    require_plain(norms, "sync_bn", "sync_bn=false")
    # Twins, as a module that is a SyncBatchNorm would wait for the other processes whenever it uses batch statistics,
    # so in passes over images that only one process sees.
    twins = {norm: nn.SyncBatchNorm.convert_sync_batchnorm(norm).train() for norm in norms}

    def forward(norm: _BatchNorm, x: Tensor) -> Tensor:
        twin = twins[norm]
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(twin, name, buffer)  # a copy, in a pass that must not move the statistics
        return twin(x)
    return forward


class PartStatistics:
    """A network's buffers, such as running statistics, in a step whose batch has several parts: each part begins with
    those of the step's beginning, and in the end they have moved by the mean over the parts of all processes.

    Those that are no floating-point numbers, such as counts, are in the end as after this process's last part. They are
    the same everywhere if all parts are of one size. parts: their number, of all processes together.
    """

    def __init__(self, network: nn.Module, parts: int):
        self.network, self.parts = network, parts
        self._before, self._counts = _flat(network), [count.clone() for count in _others(network)]
        self._moved: Tensor | None = None

    @torch.no_grad()
    def rewind(self) -> None:
        """Put the buffers of the step's beginning back."""
        self._set(self._before)
        for count, before in zip(_others(self.network), self._counts):
            count.copy_(before)

    @torch.no_grad()
    def add(self) -> None:
        """Add how far a part has moved them."""
        after = _flat(self.network)
        moved = torch.where(after == self._before, 0, after - self._before)  # an infinite constant has not moved
        self._moved = moved if self._moved is None else self._moved + moved

    @torch.no_grad()
    def settle(self) -> None:
        """Set the buffers to where they have moved in the mean. Collective."""
        if len(self._before):
            self._set(self._before + distributed.total(self._moved) / self.parts)

    def _set(self, values):
        if floating := _floating(self.network):
            parts = values.split([buffer.numel() for buffer in floating])
            torch._foreach_copy_(floating, [part.view(buffer.shape) for part, buffer in zip(parts, floating)])


def _floating(network):
    return [buffer.detach() for buffer in network.buffers() if buffer.is_floating_point()]


def _others(network):
    return [buffer for buffer in network.buffers() if not buffer.is_floating_point()]


def _flat(network):
    """A copy of all floating-point buffers in one vector."""
    floating = [buffer.reshape(-1) for buffer in _floating(network)]
    return torch.cat(floating) if floating else torch.zeros(0)

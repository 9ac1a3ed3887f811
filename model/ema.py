"""A mean teacher: an exponential moving average of the student."""
import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.segmenter import Segmenter
from utils.errors import ConfigError, first_line


def ema_decay(updates: int, ema_alpha: float) -> float:
    """Share of the old teacher that update number t = `updates` (from 0) keeps: `min(1 - 1/(t+1), ema_alpha)`. The
    first update copies the student; early ones average all students so far."""
    return min(1 - 1 / (updates + 1), ema_alpha)


class Teacher:
    """A copy of the student that follows it: theta' <- a theta' + (1 - a) theta with a = `ema_decay`.

    Parameters are averaged. Batch-norm buffers are copied: they are unused with batch statistics, and with running
    statistics the teacher normalises as the student does. Raises ConfigError for a network that torch cannot copy.
    compile: compile the copy's blocks.
    """

    def __init__(self, student: Segmenter, ema_alpha: float, compile: bool = False):
        try:
            self.model = copy.deepcopy(student).requires_grad_(False)
        except RuntimeError as error:
            raise ConfigError(f"model: the teacher is a copy of the network, which cannot be copied "
                              f"({first_line(error)}): use a method without a teacher, or a network that is not "
                              "compiled to TorchScript.") from error
        if compile:
            self.model.compile_blocks()
        self.ema_alpha = ema_alpha
        self.updates = 0

    @torch.no_grad()
    def predict(self, images: Tensor, statistics: str) -> tuple[Tensor, Tensor]:
        """Confidence float [B, H, W] in 0..1 and class int64 [B, H, W] of each pixel. images: from
        `Segmenter.prepare`; statistics: of the batch norms, as `Segmenter.use_statistics` takes them."""
        self.model.use_statistics(statistics)
        confidence, label = self.model(images).softmax(1).max(1)
        return confidence, label

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move towards the student's current weights."""
        decay = ema_decay(self.updates, self.ema_alpha)
        for mine, theirs in _by_type(self.model.parameters(), student.parameters()):
            torch._foreach_mul_(mine, decay)
            torch._foreach_add_(mine, theirs, alpha=1 - decay)
        for mine, theirs in _by_type(self.model.buffers(), student.buffers()):
            torch._foreach_copy_(mine, theirs)
        self.updates += 1

    def state_dict(self) -> dict:
        """The teacher's weights, and the number of updates so far."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where `state_dict` was."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def _by_type(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    """Lists of corresponding tensors, those of one type together: of mixed lists torch computes each tensor alone."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for one, other in zip(mine, theirs):
        for tensors, tensor in zip(groups.setdefault(one.dtype, ([], [])), (one, other)):
            tensors.append(tensor.detach())
    return groups.values()

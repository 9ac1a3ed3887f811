"""Which classes labels have shown, so that those that never occur can be named."""
import torch

from dataset.labels import IGNORE_INDEX
from utils import distributed


class SeenClasses:
    """The classes that the labels of all processes have shown so far. named: those that the last warning named."""

    def __init__(self, num_classes: int, device: torch.device):
        self.crops, self.num_classes, self.named = 0, num_classes, []
        self._ids = torch.zeros(IGNORE_INDEX + 1, dtype=torch.bool, device=device)

    def add(self, labels: torch.Tensor) -> None:
        """Add a batch's labels, int64 [B, H, W], of each process, without waiting for a GPU. Collective."""
        self.crops += len(labels) * distributed.size()
        shown = torch.zeros_like(self._ids, dtype=torch.int32).index_fill_(0, labels.flatten(), 1)
        self._ids |= distributed.total(shown) > 0

    @property
    def unseen(self) -> list[int]:
        """The classes without a pixel so far."""
        return (~self._ids[: self.num_classes]).nonzero().flatten().tolist()

    def state_dict(self) -> dict:
        """All of it."""
        return {"crops": self.crops, "ids": self._ids, "named": self.named}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where `state_dict` was."""
        self.crops, self.named = state["crops"], state["named"]
        self._ids.copy_(state["ids"])

"""A round's optimiser: SGD, its learning-rate schedule, and the check that numbers are finite before it moves."""
from typing import Any

import torch
from torch import Tensor

from model.segmenter import Segmenter
from trainer.checks import not_finite
from utils import distributed
from utils.config import Config
from utils.schedule import poly_lr


class Optimisation:
    """SGD over the network's two parameter groups, with a loss scaler for fp16. Building it is collective.

    A step: `begin`, then `add` for each part of the batch, then `move`.
    """

    def __init__(self, cfg: Config, network: Segmenter, device: torch.device):
        self.cfg, self.network = cfg, network
        groups = network.parameter_groups(cfg.backbone_lr_mult, cfg.head_lr_mult)
        self.optimizer = torch.optim.SGD(groups, 0.0, cfg.momentum, weight_decay=cfg.weight_decay, foreach=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=cfg.amp == "fp16")
        if distributed.joined():
            network.distribute()

    def schedule(self, base_lr: float, step: int) -> None:
        """Set the rates of a step of the round."""
        rate = poly_lr(base_lr, step, self.cfg.num_steps, self.cfg.power)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_mult"]

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self.optimizer.zero_grad()

    def add(self, losses: dict[str, Tensor], parts: int = 1) -> None:
        """Add the gradient of the sum of the losses of one of so many parts of this process's batch."""
        total: Any = sum(losses.values())
        self.scaler.scale(total if parts == 1 else total / parts).backward()

    def move(self, losses: dict[str, Tensor]) -> str | None:
        """Take a step on the gradients. losses: the whole batch's. If their sum or a gradient is not finite, nothing
        moves, and its name is returned (`checks.not_finite`)."""
        total: Any = sum(losses.values())
        if broken := not_finite(self.cfg.method, self.network, total, self.scaler):
            return broken
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return None

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each group."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    @property
    def parts(self) -> dict[str, Any]:
        """Its parts of the run's saved state."""
        return {"optimizer": self.optimizer, "scaler": self.scaler}

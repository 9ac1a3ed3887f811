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

    A step: `begin`, then `add` for each part of the batch, then `move`. fused: SGD's kernel that skips a step by a flag
    on the device, for which the CPU does not wait; default: on a GPU.
    """

    def __init__(self, cfg: Config, network: Segmenter, device: torch.device, fused: bool | None = None):
        self.cfg, self.network = cfg, network
        self._fused = device.type == "cuda" if fused is None else fused
        groups = network.parameter_groups(cfg.backbone_lr_mult, cfg.head_lr_mult)
        self.optimizer: Any = torch.optim.SGD(groups, 0.0, cfg.momentum, weight_decay=cfg.weight_decay,
                                              foreach=not self._fused, fused=self._fused)
        self.scaler = torch.amp.GradScaler(device.type, enabled=cfg.amp == "fp16")
        self._choose_kernel()
        self.optimizer.register_load_state_dict_post_hook(lambda _: self._choose_kernel())  # saved on another device
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

    def move(self, losses: dict[str, Tensor]) -> Tensor:
        """Take a step on the gradients, unless one of them or the loss is not finite: then nothing moves. losses: the
        whole batch's. Returns what `checks.not_finite` has found."""
        total: Any = sum(losses.values())
        found = not_finite(self.cfg.method, self.network, total, self.scaler)
        if not self._fused:
            if found.any():
                return found
        elif self.scaler.is_enabled():  # it tells the optimiser what it finds in the gradients, and nothing else
            gradient = next(p.grad for p in self.network.parameters() if p.grad is not None)
            gradient.mul_(torch.where(found.any(), torch.nan, 1.0))
        else:
            self.optimizer.found_inf = found.any().float()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return found

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each group."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    @property
    def parts(self) -> dict[str, Any]:
        """Its parts of the run's saved state."""
        return {"optimizer": self.optimizer, "scaler": self.scaler}

    def _choose_kernel(self):
        fused = self._fused
        for group in self.optimizer.param_groups:
            group.update(fused=fused, foreach=not fused)
            for p in group["params"] if fused and self.cfg.momentum else ():
                # If its first step is skipped, the fused kernel leaves a buffer of its own making as it finds it.
                self.optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))

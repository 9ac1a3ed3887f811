"""Checks of a run: what it starts from, and each step's losses and gradients before the optimiser moves."""
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.interface import described
from model.weights import LoadReport
from trainer.methods.base import TRAINED
from utils.background import host_copy
from utils.config import Config
from utils.errors import CheckpointError, ConfigError, TrainingError
from utils.user_code import is_user_code

MIN_SCALE = 2.0**-10  # of the fp16 loss scaler, which halves with every overflow: below it, halving no longer helps


def require_start(cfg: Config) -> None:
    """Raise ConfigError if the method starts from a trained network and the configuration names none, or if keys do not
    go together."""
    method = cfg.method_class
    if cfg.bn_source and cfg.compile:
        raise ConfigError("bn_source: compiled batch norms cannot mix statistics: set compile=false or bn_source=0.")
    if cfg.sync_bn and (cfg.bn_source or cfg.compile):
        other = "bn_source" if cfg.bn_source else "compile"
        raise ConfigError(f"sync_bn: it does not go together with {other}: set one of them to its default.")
    if method.starts_from == TRAINED and cfg.init_weight is None and not cfg.network_class.brings_weights:
        raise ConfigError(f"init_weight: stage {cfg.stage} starts from a trained network: give its checkpoint, "
                          f"such as {cfg.snapshot}/{cfg.note}/{method.after}.pth.")


def require_device(cfg: Config, device: torch.device) -> None:
    """Raise ConfigError if the configuration trains with what the device does not have."""
    if cfg.sync_bn and device.type != "cuda":
        raise ConfigError(f"sync_bn: batch norms are synchronised on CUDA GPUs only, and this run is on {device}: set "
                          "sync_bn=false; each process then normalises by its own batch.")


def require_trained(cfg: Config, report: LoadReport) -> None:
    """Raise CheckpointError if the method starts from a trained network and a part of this one is at random."""
    if cfg.method_class.starts_from == TRAINED and report.initialised:
        raise CheckpointError(f"init_weight: {cfg.init_weight} ({report.format}) leaves {report.initialised[0]} "
                              f"and others at random: stage {cfg.stage} starts from a trained network.")


def require_losses(method: str, trains: bool, losses: object) -> None:
    """Raise TrainingError, which names the method, if the loop cannot minimise what its `losses` returned.

    They must be a dict: name -> scalar floating-point tensor that depends on trainable parameters, or {} for a step
    without losses. trains: `Method.trains`; False: always {}. No GPU is waited for.
    """
    expected = ""
    if not isinstance(losses, dict) or not all(isinstance(loss, Tensor) and loss.ndim == 0 and loss.is_floating_point()
                                               for loss in losses.values()):
        expected = "a dict of scalar tensors by name, {} for a step without losses"
    elif losses and not trains:
        expected = "{}, as its `trains` is False"
    elif losses and not any(loss.requires_grad for loss in losses.values()):
        expected = "losses that depend on the network's trainable parameters, {} for a step without any"
    if expected:
        raise TrainingError(f"method: {method}: losses returned {described(losses)}, expected {expected}.")


def require_parts(method: str, parts: Mapping[str, Any]) -> None:
    """Raise TrainingError, which names the method, if its `parts` have a name of the loop's own, or a state that cannot
    be read again without running code (only a user's method is tried)."""
    if taken := parts.keys() & {"network", "log", "validation", "optimizer", "scaler"}:
        raise TrainingError(f"method: {method}: parts has {taken.pop()!r}, which the saved state has already: "
                            "rename it.")
    for name, part in parts.items() if is_user_code(method) else ():
        file = io.BytesIO()
        torch.save(part.state_dict(), file)
        file.seek(0)
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise TrainingError(f"method: {method}: the state of its part {name!r} holds more than plain tensors, "
                                "numbers, texts, lists and dicts: no run could be resumed from it.") from None


def not_finite(method: str, network: nn.Module, total: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
    """Whether the loss and whether a gradient is not finite after the backward pass of the sum `total`: bool [2] on its
    device, for which no GPU is waited.

    The fp16 scaler skips steps whose gradients overflow; with it, of gradients only a scale that has collapsed counts.
    A loss does not depend on the scale, nor do the running statistics, which say what happens in front of it: they
    count as the loss. Raises TrainingError, which names the method, if there is no gradient at all.
    """
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if not gradients:
        raise TrainingError(f"method: {method}: its losses reach none of the network's trainable parameters: compute "
                            "them from self.network's output.")
    loss = total.detach()
    if scaler.is_enabled():
        statistics = [b for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var"))]
        fine = _all_finite([loss, *statistics]), scaler.scale(torch.ones_like(loss)) >= MIN_SCALE
    else:
        fine = loss.isfinite(), _all_finite(gradients)
    return ~torch.stack(fine)


class FiniteCheck:
    """Raises the error of a step whose loss or gradient is not finite. Of a GPU, what `not_finite` found is read when
    the next step is added, so that the CPU need not wait for the step; what relies on a step settles it before."""

    def __init__(self) -> None:
        self._last: tuple[Callable[[], Tensor], Callable[[str], Exception]] | None = None

    def add(self, found: Tensor, error: Callable[[str], Exception]) -> None:
        """Add a step. found: of `not_finite`. error: makes the error of `loss` or `gradient`. Raises that of the step
        before; on the CPU, where nothing is to be waited for, this step's too."""
        self.settle()
        self._last = host_copy(found), error
        if found.device.type == "cpu":
            self.settle()

    def settle(self) -> None:
        """Raise the error of the last step, if it has one."""
        if self._last:
            (copy, error), self._last = self._last, None
            loss, gradient = copy().tolist()
            if loss or gradient:
                raise error("loss" if loss else "gradient")


def _all_finite(tensors):
    """Bool scalar, by a norm of each."""
    return torch.stack(torch._foreach_norm(tensors)).sum().isfinite()

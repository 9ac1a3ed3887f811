"""Building the network and choosing the device that a configuration asks for."""
import dataclasses
from typing import cast

import torch
import torch.nn.functional as F

from model.networks import Network
from model.segmenter import Segmenter
from model.weights import LoadReport, load_weights
from utils import distributed, machine
from utils.allocator import keep_freed_memory
from utils.config import Config
from utils.determinism import compute_deterministically
from utils.errors import ConfigError, first_line
from utils.memory import gpu_is_full

AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of the key `amp`


def with_precision(cfg: Config, device: torch.device) -> Config:
    """The configuration with the precision that `amp: auto` stands for on a device: bf16 where it, and that of every
    other process, has units for it. Collective, if amp is auto. Raises ConfigError if the device cannot compute in the
    precision that is asked for."""
    if cfg.amp == "auto":
        everywhere = not distributed.any_of(not machine.computes_in_bf16(device))
        cfg = dataclasses.replace(cfg, amp="bf16" if everywhere else "off")
    if (dtype := AUTOCAST[cfg.amp]) is not None:
        try:
            x = torch.ones(8, 8, 3, 3, device=device, dtype=dtype)
            F.conv2d(x, x)
        except RuntimeError as error:
            if gpu_is_full(error):
                raise
            raise ConfigError(f"amp: {cfg.amp} is not computed on {device} ({first_line(error)}): use off there, or "
                              "another device; a run goes on in the precision that it began with.") from error
    return cfg


def build_model(cfg: Config, device: torch.device, weights: str | None = None,
                load: bool = True) -> tuple[Segmenter, LoadReport]:
    """Build the network of a configuration on a device and load its weights: (network, report on what was loaded).

    weights: a checkpoint to load in place of `init_weight`. load: False loads none, for a caller that loads them later.
    On the CPU, the process from now on keeps the memory that it frees, unless `checkpointing` asks to save memory. On a
    GPU, it computes with deterministic kernels from now on if `deterministic` asks for them.
    Raises CheckpointError if the weights do not fit, ConfigError if the network cannot be built or used.
    """
    if device.type == "cpu" and not cfg.checkpointing:
        keep_freed_memory()
    if cfg.deterministic:
        compute_deterministically(device)
    family = cast(Network, cfg.network_class(cfg.options))
    network = family.segmenter(cfg.model, cfg.num_classes)
    source = (weights or cfg.init_weight) if load else None
    if source is None and family.brings_weights:
        total, at_random = len(network.state_dict()), family.untrained if load else ()
        report = LoadReport(f"as {cfg.model} gives it", total - len(at_random), total, at_random)
    else:
        report = load_weights(network, source, cfg.options.get("init_input", "auto"))
    if cfg.fixbn:
        network.freeze_bn_affine()
    network.autocast, network.checkpointing = AUTOCAST[with_precision(cfg, device).amp], cfg.checkpointing
    network.to(device)
    if cfg.channels_last and not any(t.dim() == 5 for t in network.state_dict().values()):  # as torch refuses those
        network.to(memory_format=torch.channels_last)
    if cfg.compile:
        network.compile_blocks()
    return network, report


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU, or the CPU if there is none. Of several processes (`utils.distributed`),
    each has the GPU of its number on its machine. Makes a GPU the current one of torch. Raises ConfigError if a GPU is
    asked for that is not there."""
    device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda":
        return device
    if distributed.joined():
        if device.index is not None and distributed.local_size() > 1:
            raise ConfigError(f"device: {name!r} is one GPU, and torchrun has started {distributed.local_size()} "
                              "processes on this machine, each with a GPU of its own: use auto or cuda.")
        if device.index is None:
            device = torch.device("cuda", distributed.local_rank())
    found, needed = torch.cuda.device_count(), (device.index or 0) + 1
    if needed > found:
        several = f", and torchrun has started {distributed.local_size()} processes here" if needed > 1 and (
            distributed.local_size() > 1) else ""
        raise ConfigError(f"device: {name!r} is not there ({found} GPUs found{several}): use auto or cpu, or as many "
                          "processes as there are GPUs.")
    device = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(device)  # also for events and streams, which are the current device's
    return device

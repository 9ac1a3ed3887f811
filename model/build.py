"""Configuration -> device and network."""
import torch

from model.deeplabv2 import DeepLabV2, compile_blocks, freeze_bn_affine
from model.weights import LoadReport, load_weights
from utils.allocator import keep_freed_memory
from utils.config import Config
from model.segmenter import Segmenter
from utils.errors import ConfigError

AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of the key `amp`


def build_model(cfg: Config, device: torch.device, weights: str | None = None,
                load: bool = True) -> tuple[Segmenter, LoadReport]:
    """The network of a configuration with `weights` (default: init_weight) loaded: (model on device, what was loaded).
    load: False leaves the random start, for weights that come from elsewhere. On the CPU the process keeps the memory
    that it frees from now on, unless `checkpointing` asks for little of it.

    Raises CheckpointError if they do not fit.
    """
    if device.type == "cpu" and not cfg.checkpointing:
        keep_freed_memory()
    model = DeepLabV2(cfg.num_classes, *(cfg.options[k] for k in ("layers", "width", "head_branches")))
    report = load_weights(model, (weights or cfg.init_weight) if load else None, cfg.options["init_input"])
    if cfg.fixbn:
        freeze_bn_affine(model)
    model.autocast, model.checkpointing = AUTOCAST[cfg.amp], cfg.checkpointing
    model.to(device, memory_format=torch.channels_last if cfg.channels_last else torch.preserve_format)
    if cfg.compile:
        compile_blocks(model)
    return Segmenter(model), report


def pick_device(name: str) -> torch.device:
    """`auto`: the first GPU, else the CPU. Raises ConfigError if a GPU is asked for that is not there."""
    device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name!r} is not there ({torch.cuda.device_count()} GPUs found): use auto or cpu.")
    return device

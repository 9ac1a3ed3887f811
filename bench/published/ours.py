"""This project's side of a comparison: a method as the training loop builds it, with stand-ins for what the published
code has no counterpart of."""
import torch
from torch import Tensor, nn

from model.interface import Interface
from model.segmenter import Segmenter
from trainer.methods.base import Batch, Method, Setting
from trainer.run_state import Position
from utils.config import parse_config
from utils.constants import HOUSE_INPUT

CLASSES = 19


def method(name: str, network=None, *words: str) -> Method:
    """The method of that name on the CPU, without data and log. network: what it trains, or anything that is called as
    one; words: `key=value`, the other keys have their defaults."""
    cfg = parse_config("", "-", words, method=name)
    return cfg.method_class(Setting(cfg, network, torch.device("cpu"), [], (), Position(0), None, lambda: None))


def segmenter(network: nn.Module) -> Segmenter:
    """A plain network of 19 classes that takes what the paper's takes."""
    return Segmenter(network, CLASSES, Interface(HOUSE_INPUT))


def batch(images: Tensor, label: Tensor) -> Batch:
    """Images float [B, 3, H, W], ready for the network, with labels int64 [B, H, W]."""
    return Batch(images, label, [], None)

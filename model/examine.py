"""A trial of a network before it is used."""
from collections.abc import Mapping
from pathlib import Path

import torch

from model import recompute
from model.segmenter import Segmenter
from utils.errors import ConfigError
from utils.user_code import fault

_TINY = (64, 256)  # pixels a side of the image that a network is tried on


def examine(segmenter: Segmenter) -> None:
    """Run a network on a tiny black image, in evaluation mode, without changing it. Raises ConfigError if that fails or
    does not give one score per class. Finds the blocks that `checkpointing` and `compile_blocks` must not touch."""
    modes = {module: module.training for module in segmenter.modules()}
    hooks, unfit = [], set()

    def watch_norm(norm, args):
        norm._single = args[0].numel() == args[0].shape[1]

    def watch_block(block):
        before = []

        def begins(_, args, named):
            before.append(_arguments((args, named)))

        def ends(_, args, named, __):
            if before.pop() != _arguments((args, named)):
                unfit.add(id(block))

        hooks.append(block.register_forward_pre_hook(begins, with_kwargs=True))
        hooks.append(block.register_forward_hook(ends, with_kwargs=True))

    for block in segmenter._blocks:
        watch_block(block)
    hooks += [norm.register_forward_pre_hook(watch_norm) for norm in segmenter._norms]
    try:
        segmenter.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), recompute.copied_buffers(segmenter.network):
            _pass_over_tiny_image(segmenter)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    segmenter._blocks = [block for block in segmenter._blocks if id(block) not in unfit]


def _arguments(found):
    """(identity, version) of every tensor in a block's arguments; lists and mappings are opened. A block that changes
    one of them, or puts another in its place, cannot be computed again from them."""
    if isinstance(found, Mapping):
        found = tuple(found.values())
    if isinstance(found, (tuple, list)):
        return [entry for part in found for entry in _arguments(part)]
    return [(id(found), found._version)] if isinstance(found, torch.Tensor) else []


def _pass_over_tiny_image(segmenter):
    interface = segmenter.interface
    bands = len(interface.input.mean)
    for size in _TINY:  # the smaller one is too small for some
        try:
            found = interface.run(segmenter.network, interface.padded(torch.zeros(1, bands, size, size)))
            return interface.scores(found, segmenter.num_classes)
        except ConfigError:
            raise
        except Exception as error:
            failure = error
    raise ConfigError(f"model: a pass over a black image of {bands} bands and {size} x {size} pixels fails with "
                      f"{fault(failure, Path.cwd())}: if the network takes other sizes, set size_multiple; if another "
                      "number of bands, input_mean and input_std.") from failure

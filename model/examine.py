"""A trial of a network before it is used."""
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

    def watch(module, see):
        versions = []
        hooks.append(module.register_forward_pre_hook(lambda m, args: versions.append(args[0]._version)))
        hooks.append(module.register_forward_hook(lambda m, args, _: see(m, args[0], versions.pop())))

    def see_norm(norm, x, _):
        norm._single = x.numel() == x.shape[1]

    def see_block(block, x, version):
        if x._version != version:
            unfit.add(id(block))

    for block in segmenter._blocks:
        watch(block, see_block)
    for norm in segmenter._norms:
        watch(norm, see_norm)
    try:
        segmenter.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), recompute.copied_buffers(segmenter):
            _pass_over_tiny_image(segmenter)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    segmenter._blocks = [block for block in segmenter._blocks if id(block) not in unfit]


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

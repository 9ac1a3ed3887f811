"""A wrapper that gives every network the same input and output: pixels in, one score per class out. Only this module
and `interface.py` know what the wrapped network itself takes and returns."""
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model import recompute
from model.interface import Interface
from model.parallel import Parallel, synchronised
from utils.compiling import prepare_compiler
from utils.errors import ConfigError, first_line
from utils.memory import gpu_is_full

_MUCH_PADDING = 0.1  # of an input's pixels, from which on it is said what batch norm makes of it


class Segmenter(nn.Module):
    """A network with the input and output that all networks have here. Its state dict, parameters and buffers have the
    wrapped network's own names.

    autocast: torch.bfloat16 or torch.float16 for its convolutions (parameters and scores stay float32), or None.
    checkpointing: in training keep only the input of each block, and compute the rest again in the backward pass; this
    needs less memory and one more forward pass. remarks: notes for the log on how the network is used.
    """

    def __init__(self, network: nn.Module, num_classes: int, interface: Interface):
        super().__init__()
        self.network: Any = network
        self.num_classes, self.interface = num_classes, interface
        self.autocast: torch.dtype | None = None
        self.remarks: list[str] = []
        self.training_norm: Callable[[_BatchNorm, Tensor], Tensor] | None = None  # their forward pass in training mode
        self.parallel: Parallel | None = None  # through which training passes go, of several processes
        self._checkpointing = False
        self._norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
        self._watched = list(self._norms)  # batch norms that may see one value per channel
        self._blocks = [] if interface.own_blocks else list(recompute.blocks(network))
        self._fused: dict[nn.Module, Callable] = {}  # block -> its compiled forward pass

    # ---- input and output --------------------------------------------------------------------------------------------

    def prepare(self, pixels: Tensor) -> Tensor:
        """Convert pixels to the network's input: uint8 or float [B, H, W, K] in 0..255, RGB for three bands -> float32
        [B, K, H, W], on the same device. Raises ConfigError for another number of bands than the network takes."""
        return self.interface.prepared(pixels)

    def score_map(self, x: Tensor) -> Tensor:
        """Logits at the network's own resolution, float32 (float64 for float64) [B, C, h, w]. x: from `prepare`."""
        return self.parallel(x) if self.parallel and self.training and torch.is_grad_enabled() else self._scores(x)

    def _scores(self, x):
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None), self._adjusted(len(x)):
            found = self._run(self._padded(x))
        scores = self.interface.scores(found, self.num_classes)
        # One plane a class: what follows works on planes, and upsampling keeps the layout.
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).contiguous()

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Logits upsampled bilinearly, float [B, C, *size]. x: from `prepare`. size: (height, width) of the result,
        default that of x."""
        height, width = x.shape[-2:]
        return self.interface.resized(self.score_map(x), size or (height, width), (height, width))

    def upsample(self, scores: Tensor, size: tuple[int, int], image_size: tuple[int, int] | None = None) -> Tensor:
        """Upsample one image's score map as `forward` does: float [C, h, w] -> logits float [C, *size]. image_size:
        (height, width) of the image that gave the scores, default `size`; it matters if that image was padded."""
        return self.interface.resized(scores.unsqueeze(0), size, image_size or size)[0]

    # ---- how it is computed ------------------------------------------------------------------------------------------

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network has any batch norm."""
        return bool(self._norms)

    @property
    def checkpointing(self) -> bool:
        """Whether the tensors inside each block are computed again in the backward pass."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, wanted: bool) -> None:
        self._checkpointing = wanted
        if self.interface.own_blocks:
            self.network.checkpointing = wanted
        elif wanted and not self._blocks:
            self.remark("checkpointing has no effect: the network has no blocks in a Sequential or ModuleList")

    def use_statistics(self, which: str) -> None:
        """Switch to evaluation mode, with dropout off. Batch norms use the statistics of the `batch`, which also move
        the running ones, or the `running` ones."""
        self.eval()
        if which == "batch":
            for norm in self._norms:
                norm.train()

    def freeze_bn_affine(self) -> None:
        """Exclude weight and bias of every batch norm from training. Its running statistics still move."""
        for norm in self._norms:
            norm.requires_grad_(False)

    def distribute(self) -> None:
        """From now on the gradients of training passes are averaged over all processes. Collective."""
        if self.parallel is None or not self.parallel.fits(self.network):
            self.parallel = None  # before the next one: it would go on averaging
            self.parallel = Parallel(self.network, self._scores)

    def synchronise_norms(self) -> None:
        """From now on batch norms normalise by the batches of all processes in training; on CUDA only."""
        self.training_norm = synchronised(self._norms)

    def parameter_groups(self, backbone_lr_mult: float, head_lr_mult: float) -> list[dict]:
        """Two groups for the optimiser, `backbone` and `head`, which together hold every trainable tensor once. A
        group's learning rate is the schedule's times its `lr_mult`. Raises ConfigError if no parameter's name is one of
        the head's."""
        fronts = self.interface.head or (_last_with_parameters(self.network),)
        named = list(self.network.named_parameters())
        head = {id(p) for name, p in named if any(f"{name}.".startswith(f"{front.rstrip('.')}.") for front in fronts)}
        if not head:
            tops = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in named))
            raise ConfigError(f"head: no parameter's name begins with {' or '.join(fronts)}; they begin with {tops}.")
        both = [[p for _, p in named if p.requires_grad and (id(p) in head) == wanted] for wanted in (False, True)]
        return [{"name": name, "lr_mult": lr_mult, "params": params} for name, lr_mult, params in zip(
            ("backbone", "head"), (backbone_lr_mult, head_lr_mult), both)]

    def compile_blocks(self) -> None:
        """Compile each of the network's blocks with torch.compile; parameter names stay. Blocks of one shape share
        their code, so a deep network compiles as fast as a shallow one. A block that cannot be compiled, for example
        because there is no compiler, runs uncompiled."""
        prepare_compiler()
        if self.interface.own_blocks:
            compiled = self.network.compile_blocks()
        else:
            pooled = {id(norm) for norm in self._norms if getattr(norm, "_single", False)}
            compiled = [b for b in self._blocks if not any(id(m) in pooled for m in b.modules())]
            self._fused = {block: self._tolerant(block) for block in compiled}
        inside = {id(m) for block in compiled for m in block.modules()}
        self._watched = [norm for norm in self._norms if id(norm) not in inside]

    def _tolerant(self, block):
        """The compiled forward pass of a block, and from the first call on that fails the plain one: compiled code may
        refuse strides or sizes that it was not made for."""
        # Else blocks of one class and several sizes share code for sizes unknown, whose backward pass takes one size's
        # strides for another's (torch 2.14).
        compiled = torch.compile(block.forward, dynamic=False)

        def forward(*args, **kwargs):
            try:
                return compiled(*args, **kwargs)
            except (AssertionError, RuntimeError) as error:
                result = type(block).forward(block, *args, **kwargs)  # raises its own error, if it is the block's fault
                self.remark(f"compile: a {type(block).__name__} runs as it is ({first_line(error)})")
                self._fused[block] = functools.partial(type(block).forward, block)
                return result
        return forward

    def remark(self, text: str) -> None:
        """Add a note to `remarks`, unless it is there already."""
        if text not in self.remarks:
            self.remarks.append(text)

    def _padded(self, x):
        padded = self.interface.padded(x)
        share = 1 - x.shape[2] * x.shape[3] / (padded.shape[2] * padded.shape[3])
        if share > _MUCH_PADDING and any(norm.training for norm in self._norms):
            sizes = [" x ".join(map(str, tensor.shape[:1:-1])) for tensor in (x, padded)]
            self.remark(f"images of {sizes[0]} pixels (width x height) are padded to {sizes[1]}, so {share:.0%} of "
                        "what batch norm averages over is padding: choose multiples of size_multiple for input_size, "
                        "crop_tgt and crop_src")
        return padded

    def _run(self, x):
        try:
            return self.interface.run(self.network, x)
        except (RuntimeError, ValueError, AssertionError) as error:
            if gpu_is_full(error):  # which no other size would help
                raise
            if multiple := self.interface.fitting_multiple(self.network.eval(), x):
                size, reason = " x ".join(map(str, x.shape[-2:])), first_line(error).rstrip(".")
                raise ConfigError(f"size_multiple: the network fails on an input of {size} pixels, height x width "
                                  f"({type(error).__name__}: {reason}): set size_multiple={multiple}, with which it "
                                  "does not.") from error
            raise

    def _adjusted(self, batch_size):
        """The context of a forward pass: in it, blocks are compiled or recomputed if asked for, batch norms have the
        forward pass `training_norm`, and those that see a single value per channel use their running statistics."""
        forwards, norms = {}, {}
        if self.training and self.training_norm:
            norms = {norm: functools.partial(self.training_norm, norm) for norm in self._norms
                     if norm.training and norm.running_mean is not None}
        if batch_size == 1:
            norms |= {norm: functools.partial(self._normalised, norm, norms.get(norm, norm.forward))
                      for norm in self._watched if norm.training}
        again = self._checkpointing and self.training and torch.is_grad_enabled()
        if again or self._fused:
            for block in self._blocks:
                call = self._fused.get(block, block.forward)
                forwards[block] = functools.partial(recompute.recomputed, call, block) if again else call
        return recompute.replaced_forwards({**norms, **forwards})

    def _normalised(self, norm, plain, x):
        """A batch norm's forward pass, in which a single value per channel, which has no variance, is normalised by
        the running statistics."""
        if x.numel() != x.shape[1] or norm.running_mean is None:
            return plain(x)
        self.remark("a batch norm sees one value per channel (pooled features of one image), which has no variance: it "
                    "uses its running statistics there")
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)

    # ---- its state is the network's ----------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of the wrapped network."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of the wrapped network."""
        return self.network.load_state_dict(state, strict=strict, assign=assign)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As of the wrapped network."""
        return self.network.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """As of the wrapped network."""
        return self.network.named_buffers(*args, **kwargs)

    def __getstate__(self):
        """The attributes of a copy, which is not compiled, since compiled code belongs to the original's blocks, and
        whose gradients stay its own."""
        return {**self.__dict__, "_fused": {}, "parallel": None}


def _last_with_parameters(network):
    return [name for name, module in network.named_modules() if any(True for _ in module.parameters(recurse=False))][-1]

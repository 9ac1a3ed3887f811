"""A network's input and output conventions, and the conversion from pixels and to logits: pure functions on tensors."""
import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.bilinear import bilinear
from utils.constants import InputConvention
from utils.errors import ConfigError

AUTO = "auto"
_NAMES = ("out", "logits")  # of the scores in a network's output


def plain_forward(network: nn.Module, x: Tensor) -> Any:
    """What the network returns."""
    return network(x)


@dataclass(frozen=True)
class Interface:
    """A network's input and output conventions.

    - input: channel order (of three bands), range, mean and standard deviation.
    - run(network, x): the forward pass, at the network's own resolution.
    - output: the part of its result that holds the scores: a name, an index as text, or `auto`: the result itself if
      it is a tensor, else what is called out or logits, else the only map [B, channels, h, w] in a tuple or list.
      Index 0 of a tensor is the tensor: networks with auxiliary heads return several in training, one in evaluation.
    - channels: the channels of the scores that are the classes, in the classes' order; None: all.
    - head: prefixes of the names of the head's parameters; None: the last module that has parameters.
    - size_multiple: the network takes heights and widths that are multiples of this.
    - align_corners: of the bilinear upsampling.
    - own_blocks: the network recomputes and compiles its blocks itself, by an attribute `checkpointing` and a method
      `compile_blocks`, which returns the blocks.
    """

    input: InputConvention
    run: Callable[[Any, Tensor], Any] = plain_forward
    output: str = AUTO
    channels: tuple[int, ...] | None = None
    head: tuple[str, ...] | None = None
    size_multiple: int = 1
    align_corners: bool = False
    own_blocks: bool = False

    def prepared(self, pixels: Tensor) -> Tensor:
        """Convert pixels to the network's input: uint8 or float [B, H, W, K] in 0..255, RGB for three bands -> float32
        [B, K, H, W], on the same device. Raises ConfigError for another number of bands than the network takes."""
        convention = self.input
        if pixels.shape[3] != len(convention.mean):
            raise ConfigError(f"model: the images have {pixels.shape[3]} bands, the network takes "
                              f"{len(convention.mean)}: give input_mean and input_std with one number for each band.")
        offset, scale = _offset_and_scale(convention, pixels.device)
        bands = pixels.permute(0, 3, 1, 2).contiguous()
        bands = bands.flip(1) if convention.order == "bgr" and bands.shape[1] == 3 else bands
        shifted = bands.float() - offset
        return shifted if set(convention.std) == {1} and convention.maximum == 255 else shifted / scale

    def _padded_size(self, size):
        multiple = self.size_multiple
        return tuple((extent + multiple - 1) // multiple * multiple for extent in size)

    def padded(self, x: Tensor) -> Tensor:
        """Pad x [B, K, H, W] below and on the right to multiples of `size_multiple`, with 0, the mean colour."""
        (height, width), (full_height, full_width) = x.shape[-2:], self._padded_size(x.shape[-2:])
        symbolic = isinstance(height, torch.SymInt)  # in an export: a comparison would fix what holds for every size
        if self.size_multiple == 1 or not symbolic and (height, width) == (full_height, full_width):
            return x
        return F.pad(x, (0, full_width - width, 0, full_height - height))

    def fitting_multiple(self, network: nn.Module, x: Tensor) -> int | None:
        """The smallest power of two such that the network takes an input of the size of x padded to its multiples. None
        if there is none, or if the network takes a single image of x's size, so that the size is not the problem."""
        tried: set[tuple[int, ...]] = set()
        for multiple in (2**i for i in range(10)):
            size = replace(self, size_multiple=multiple)._padded_size(x.shape[-2:])
            with contextlib.suppress(RuntimeError, ValueError, AssertionError), torch.no_grad():
                if size not in tried:
                    self.run(network, x.new_zeros(1, x.shape[1], *size))
                    return multiple if tried else None
            tried.add(size)
        return None

    def resized(self, scores: Tensor, size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
        """Resize score maps bilinearly: [B, C, h, w] -> [B, C, *size]. Only that part of a map is kept which belongs to
        the image, of `image_size` (height, width) before padding."""
        padded, aligned = self._padded_size(image_size), self.align_corners
        if tuple(size) == tuple(image_size):
            whole = bilinear(scores, padded, aligned)
            return whole if self.size_multiple == 1 else _corner(whole, size)
        wanted = [s * p / i for s, p, i in zip(size, padded, image_size)]  # of the whole map, at the scale of `size`
        if aligned or all(extent == int(extent) for extent in wanted):
            whole = bilinear(scores, tuple(map(round, wanted)), aligned)
        else:  # by a factor, as the size is no whole number; the margin makes up for rounding down
            factors = tuple(extent / n * (1 + 1e-9) for extent, n in zip(wanted, scores.shape[-2:]))
            whole = bilinear(scores, None, False, factors)
        return whole if padded == tuple(image_size) else whole[..., :size[0], :size[1]]

    def scores(self, found: Any, num_classes: int) -> Tensor:
        """Extract the logits [B, num_classes, h, w] from what `run` returned. One channel z for two classes stands for
        the logits (0, z), as softmax((0, z)) is (1 - sigmoid(z), sigmoid(z)). Raises ConfigError, which says what the
        network returned, if there are no such logits."""
        scores = _chosen(found, self.output)
        chosen, count = self.channels, scores.shape[1]
        if chosen and max(chosen) >= count:
            raise ConfigError(f"output_channels: {max(chosen)} is not there, the network gives {count} channels, "
                              f"0..{count - 1}.")
        if chosen and chosen != tuple(range(count)):
            ordered = chosen == tuple(range(chosen[0], chosen[0] + len(chosen)))
            scores = scores[:, chosen[0]:chosen[-1] + 1] if ordered else scores.index_select(
                1, _indices(chosen, scores.device))
        if scores.shape[1] == 1 and num_classes == 2:
            return torch.cat([torch.zeros_like(scores), scores], 1)
        if scores.shape[1] != num_classes:
            what = f"output_channels names {len(chosen)}" if chosen else f"the network gives {count}"
            raise ConfigError(f"num_classes: {num_classes} classes, but {what} channels: set output_channels to "
                              f"the {num_classes} that are the classes, in their order, or num_classes to "
                              f"{scores.shape[1]}.")
        return scores


def _chosen(found, output):
    """The scores in what a network returned. Raises ConfigError, which says what that was, if there are none."""
    def refuse(problem):
        raise ConfigError(f"output: {problem}; the network returns {described(found)}: set output to the name or "
                          "index of the scores, a tensor [B, channels, h, w].")
    chosen = found
    if output == AUTO:
        named = [part for name in _NAMES if (part := _part(found, name)) is not None]
        maps = [part for part in found if _is_map(part)] if isinstance(found, (tuple, list)) else []
        chosen = found if isinstance(found, Tensor) else named[0] if named else maps[0] if len(maps) == 1 else None
        if chosen is None:
            refuse("the scores are not a tensor, nor called out or logits")
    elif (chosen := _part(found, output)) is None:
        refuse(f"{output!r} is not there")
    if not _is_map(chosen):
        refuse(f"the scores are {described(chosen)}")
    return chosen


def _part(found, name):
    """The entry, attribute or item of that name or index, or None."""
    if isinstance(found, Mapping):
        return found.get(name)
    if isinstance(found, (tuple, list)) and name.lstrip("-").isdigit() and -len(found) <= int(name) < len(found):
        return found[int(name)]
    if isinstance(found, Tensor):
        return found if name == "0" else None
    return getattr(found, name, None)


def _is_map(found):
    return isinstance(found, Tensor) and found.ndim == 4 and found.is_floating_point()


def described(found: object, depth: int = 2) -> str:
    """What kind of thing a network or a method has returned, for a message; containers are opened `depth` deep."""
    if isinstance(found, Tensor):
        return f"a tensor {list(found.shape)} of {str(found.dtype).removeprefix('torch.')}"
    if depth and isinstance(found, Mapping):
        return f"a mapping ({', '.join(f'{name}: {described(part, depth - 1)}' for name, part in found.items())})"
    if depth and isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} ({', '.join(described(part, depth - 1) for part in found)})"
    return f"a {type(found).__name__}"


def _corner(whole, size):
    """The part [..., :height, :width] of maps [B, C, H, W]. Of symbolic sizes, in an export, it is copied by index: the
    strides of a slice would fix whether there is any padding."""
    if not isinstance(size[0], torch.SymInt):
        return whole[..., :size[0], :size[1]]
    rows, columns = (torch.arange(extent, device=whole.device) for extent in size)
    return whole.index_select(2, rows).index_select(3, columns)


@functools.cache
def _offset_and_scale(convention: InputConvention, device: torch.device) -> tuple[Tensor, Tensor]:
    """Offset and scale of an input convention, float32 [K, 1, 1] each. They are cached, as every copy to a GPU would
    make it wait."""
    with torch.inference_mode(False):  # even if first called in inference mode: training uses them too
        offset, scale = (torch.tensor(v, device=device).view(-1, 1, 1) for v in convention.on_pixels())
    return offset, scale


@functools.cache
def _indices(channels: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(channels, device=device)

"""Loading checkpoints into a network, and saving the network's own.

Loading is strict: a tensor that does not load is an error or one of the exceptions named here, never silently random.
"""
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint_file import INPUT, read_content
from model.conversion import convert, convert_input, recognise_input, sum_of_heads, untrained_branches
from model.deeplabv2 import DeepLabV2
from model.fit import counter, fault, require_fit, require_in_range, require_same
from model.folder import WEIGHTS, file_sha256, input_statement, is_folder, read_folder, stated_input
from model.folder_writing import require_finite
from model.foreign import Network, find_named, find_network, some
from model.segmenter import Segmenter
from utils.checkpoint import write_atomically
from utils.constants import HOUSE_INPUT, INPUTS, InputConvention
from utils.errors import CheckpointError

IMAGENET = "imagenet"  # the word for torchvision's ResNet-101 weights
BOTH_HEADS = "layer5+layer6"  # behind the # of a checkpoint: the sum of two heads on the same features
PLAIN = "same names"  # a LoadReport's format where the file's tensors were loaded as they are
_HOUSE = "bgr255"  # name of the input that DeepLabV2 takes here
_KNOWN_INPUT = {"Caffe initialisation": "bgr255", "torchvision ImageNet": "rgb01"}  # of initialisations without a head


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from a checkpoint, and how.

    format: the kind of network in the file. loaded, total: numbers of tensors. initialised: tensors that keep their
    random start. dropped: tensors of the file that the network does not use. entry: where in the file the network was.
    converted: the input that it was trained with, if that was another one. warnings: what may make its results worse.
    """

    format: str
    loaded: int = 0
    total: int = 0
    initialised: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    entry: str = ""
    converted: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def facts(self) -> str:
        """The report in one line, without the warnings."""
        parts = [f"{self.format}{f' from {self.entry}' if self.entry else ''}, {self.loaded} of {self.total} tensors "
                 "loaded"]
        if self.converted:
            parts.append(f"converted from {self.converted} input to {_HOUSE}")
        if self.initialised:
            parts.append(f"random start: {some(self.initialised)}")
        if self.dropped:
            parts.append(f"not used: {some(self.dropped)}")
        return "; ".join(parts)

    @property
    def remarkable(self) -> bool:
        """Whether the file's network was changed in any way, or there is a warning."""
        return bool(self.format not in ("one head", PLAIN) or self.dropped or self.converted or self.warnings)

    def __str__(self):
        return "\n".join([self.facts, *(f"warning: {text}" for text in self.warnings)])


def read_network(source: str | Path, expected: set[str] | None = None) -> Network:
    """Read the network in a file, `path` or `path#entry`, or in a model folder onto the CPU: a DeepLabV2, or, if given,
    one whose tensors have the names `expected`.

    No code in a file is run. Raises CheckpointError if the file is missing, is no checkpoint, needs more than plain
    tensors and containers, or holds several networks of which none is named; also if a tensor is not plain numbers,
    finite and stored in full.
    """
    path, entry, both = _split(source)
    content = read_folder(path) if is_folder(path) else read_content(path)
    network = find_named(content, str(path), expected, entry) if expected else find_network(content, str(path), entry)
    for name, tensor in network.tensors.items():
        if what := fault(tensor):
            raise CheckpointError(f"{path}: {name!r} {what}: this is no usable network, give another checkpoint.")
    if not both:
        return replace(network, input="" if network.words else stated_input(content))
    try:
        return Network(network.words, sum_of_heads(network.tensors), network.others)
    except ValueError as error:
        raise CheckpointError(f"{source}: has {error} to add up: give {path} alone.") from None


def load_weights(model: Segmenter | nn.Module, source: str | Path | None, init_input: str = "auto") -> LoadReport:
    """Load a checkpoint into a network and report what was loaded.

    source: a file, `file#entry`, a model folder, for DeepLabV2 the word `imagenet`, or None for a random start.
    init_input: the input that a DeepLabV2's checkpoint was trained with, a name of INPUTS or `auto`; what this project
    has written states its input, which takes precedence.

    Every tensor must fit by name and shape, with these exceptions. Old files have no `num_batches_tracked`, and some
    hold it as a float or as [1]. DeepLabV2's initialisations (Caffe, ImageNet) have no head, which then keeps its
    random start. For anything else CheckpointError is raised, and the model stays unchanged.
    """
    network = model.network if isinstance(model, Segmenter) else model
    expected = network.state_dict()
    if source is None:
        return LoadReport("none (random start)", 0, len(expected), tuple(expected))
    if isinstance(network, DeepLabV2):
        return _load_deeplab(network, expected, source, init_input)
    if str(source) == IMAGENET:
        raise CheckpointError(f"init_weight: {IMAGENET!r} is a start of deeplab only: give a checkpoint.")
    return _load_plain(network, expected, source, model.interface.input if isinstance(model, Segmenter) else None)


def _load_deeplab(model, expected, source, init_input):
    network = Network((), _imagenet()) if str(source) == IMAGENET else read_network(source)
    name, given, dropped = convert(network.tensors)
    given = {k: counter(v) if k.endswith("num_batches_tracked") else v for k, v in given.items()}
    require_fit(source, expected, given, name in _KNOWN_INPUT)
    given = {k: v.to(expected[k].dtype) for k, v in given.items()}
    stated = network.input if isinstance(network.input, str) else ""
    converted, warnings = _input_of(name, given, stated, "auto" if str(source) == IMAGENET else init_input)
    if converted:
        given = convert_input(given, INPUTS[converted])
    require_in_range(source, expected, given)
    model.load_state_dict(given, strict=False)
    random_start = tuple(k for k in expected if k not in given and not k.endswith("num_batches_tracked"))
    warnings += _head_warnings(source, name, given, network.tensors, model.layer5.branches)
    return LoadReport(name, len(given), len(expected), random_start, (*dropped, *network.others), network.label,
                      converted, tuple(warnings))


def _load_plain(network, expected, source, takes):
    """Load into a network that is no DeepLabV2. takes: the input convention of its Segmenter, or None."""
    found = read_network(source, set(expected))
    given = {k: counter(v) if k.endswith("num_batches_tracked") else v for k, v in found.tensors.items()}
    require_same(source, expected, given)
    given = {k: v.to(expected[k].dtype) for k, v in given.items()}
    require_in_range(source, expected, given)
    nn.Module.load_state_dict(network, given, strict=False)  # complete, as has been checked
    stated = INPUTS.get(found.input, found.input) if isinstance(found.input, str) else found.input
    warnings = []
    if takes and isinstance(stated, InputConvention) and stated != takes:
        warnings = [f"it was trained with {stated.words} input, and is given {takes.words}: set input_order, "
                    "input_max, input_mean and input_std as they were"]
    return LoadReport(PLAIN, len(given), len(expected), (), found.others, found.label, "", tuple(warnings))


def save_weights(model: Segmenter | nn.Module, path: str | Path) -> None:
    """Save the plain state dict, atomically: a reader finds the old file or the whole new one.

    The network's input is stated in the `_metadata` that torch keeps with a state dict, so that `load_weights` need not
    guess it from the weights' scale. Raises CheckpointError if weights are NaN or infinite or the disk refuses; an old
    file is then left as it was.
    """
    path = Path(path)
    state: Any = model.state_dict()
    takes = model.interface.input if isinstance(model, Segmenter) else HOUSE_INPUT
    state._metadata.setdefault("", {})[INPUT] = input_statement(takes)
    state.update({k: v.detach().cpu().contiguous() for k, v in state.items()})
    require_finite(path, state)
    write_atomically(path, lambda file: torch.save(state, file))


def source_sha256(source: str | None) -> str | None:
    """Hexadecimal SHA-256 of the file, or of the weights in the model folder, that a value of `init_weight` names; None
    if it names none. Raises CheckpointError if the file cannot be read."""
    if source in (None, IMAGENET):
        return None
    path = file_of(source)
    return file_sha256(path / WEIGHTS if is_folder(path) else path)


def file_of(source: str) -> Path:
    """The file or folder that a value of `init_weight` names, without the name of a network in it."""
    return _split(source)[0]


def _split(source):
    """(file, entry or None, whether its two heads are to be added up). A # in the name of an existing file is part of
    that name."""
    name, mark, entry = str(source).rpartition("#")
    if not mark or os.path.exists(source) or not os.path.exists(name):
        return Path(source), None, False
    both = entry == BOTH_HEADS or entry.endswith("." + BOTH_HEADS)
    return Path(name), entry.removesuffix(BOTH_HEADS).rstrip(".") or None if both else entry, both


def _imagenet() -> dict[str, Tensor]:
    from torchvision.models import ResNet101_Weights
    try:
        return ResNet101_Weights.IMAGENET1K_V1.get_state_dict(progress=True)
    except Exception as error:
        raise CheckpointError(f"init_weight: {IMAGENET!r} could not be downloaded ({error}): download "
                              "torchvision's resnet101 weights on another machine and give the file.") from None


def _input_of(name, given, stated, init_input):
    """(the input to convert from, empty if none is needed; warnings). stated: the input that the file itself states,
    which takes precedence."""
    found = _HOUSE if name == "Caffe initialisation" else recognise_input(given)
    if stated:
        chosen, warnings = stated, []
    elif init_input == "auto":
        chosen = found or _KNOWN_INPUT.get(name, _HOUSE)
        warnings = [] if found or name in _KNOWN_INPUT else [
            f"the scale of its first layer does not tell which input it was trained with; taken as {_HOUSE}: set "
            f"init_input=rgb01 if it expects RGB / 255 with mean and std, or init_input={_HOUSE} if this is right"]
    else:
        chosen = init_input
        warnings = [] if found in (None, chosen) else [
            f"the scale of its first layer looks like {found} input, but init_input is {init_input}: set "
            "init_input=auto if you did not mean that"]
    return "" if chosen == _HOUSE else chosen, warnings


def _head_warnings(source, name, given, original, used):
    """Warnings about the head, of which the first `used` branches are summed."""
    def branches(tensors, head, added=1):
        found = [tensors.get(f"{head}.conv2d_list.{i}.weight") for i in range(4)]
        return untrained_branches(found, added) if all(w is not None and w.ndim == 4 for w in found) else []
    path, entry, both = _split(source)
    warnings, untrained = [], branches(given, "layer5", 1 + both)
    trained = next((i for i, state in enumerate(untrained) if state is not False), len(untrained))
    if trained and used != trained and all(untrained[trained:]):
        what = "the others add noise to the scores" if used > trained else f"head_branches={used} leaves some out"
        like = ", as in files of AdaptSegNet and BDL" if trained == 2 else ""
        warnings.append(f"of its head's four branches the first {trained} look trained{like}; {what}: set "
                        f"head_branches={trained}")
    sizes = {v.shape for k, v in original.items() if k.endswith("conv2d_list.0.weight")}
    if name == "two heads" and len(sizes) == 1 and False in branches(original, "layer6"):
        warnings.append("layer6, which is not used, looks trained too: if this file is CLAN's, whose authors score the "
                        f"sum of both heads, give {path}#{entry + '.' if entry else ''}{BOTH_HEADS}")
    return warnings


if __name__ == "__main__":
    from model.weights_command import run  # which imports this module once more, by its name
    from utils.cli import leave
    leave(run())

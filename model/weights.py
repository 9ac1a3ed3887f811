"""Checkpoints: reading those that the field uses under our parameter names, and writing ours.

Strict: whatever does not load is either one of the exceptions named here or an error, never a silent random tensor.
"""
import os
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.checkpoint import write_atomically
from utils.constants import BGR_MEAN
from utils.errors import CheckpointError

IMAGENET = "imagenet"  # the word for torchvision's ResNet-101 weights
WRAPPERS = ("state_dict", "model_state_dict", "model")
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's normalisation of RGB in 0..1
_SHOWN = 4  # names listed in a message
_MOST_WRAPPERS = 4
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
           torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint gave. `initialised`: tensors that keep their random start; `dropped`: tensors of the file that
    the network has no use for."""

    format: str
    loaded: int = 0
    total: int = 0
    initialised: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __str__(self):
        parts = [f"{self.format}, {self.loaded} of {self.total} tensors loaded"]
        if self.initialised:
            parts.append(f"random start: {_some(self.initialised)}")
        if self.dropped:
            parts.append(f"not used: {_some(self.dropped)}")
        return "; ".join(parts)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file on the CPU, without wrapper and `module.` prefix.

    Nothing but tensors and plain containers is ever unpickled. Raises CheckpointError if the file is missing, is no
    checkpoint, needs more than that, or holds a tensor that is not plain numbers, finite and stored in full.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint: check the path (init_weight also takes the word "
                              f"{IMAGENET!r}).")
    content, depth = _unpickle(path), 0
    while isinstance(content, dict) and (inner := [content[k] for k in WRAPPERS if isinstance(content.get(k), dict)]):
        content, depth = inner[0], depth + 1
        if depth > _MOST_WRAPPERS:  # a dictionary may even hold itself
            raise CheckpointError(f"{path}: more than {_MOST_WRAPPERS} wrappers around the tensors: expected a "
                                  "state dict.")
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{path}: holds no tensors under parameter names: expected a state dict.")
    for name, tensor in tensors.items():
        if fault := _fault(tensor):
            raise CheckpointError(f"{path}: {name!r} {fault}: this is no usable network, give another checkpoint.")
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _unpickle(path):
    """The content of a checkpoint file, read with `weights_only`. Raises CheckpointError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch never compresses
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError("a compressed archive, which may unpack to any size")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL (\S+)", str(error))
        asked = f" (it asks for {needs[1]})" if needs else ""
        raise CheckpointError(f"{path}: not a file of plain tensors{asked}, nothing in it was run: save the network's "
                              "state_dict() alone.") from None
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({_first_line(error)}): copy or download it "
                              "anew, or give another.") from None


def convert(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Recognise a checkpoint's format by its names: (format, tensors under our names, names dropped).

    - Caffe initialisation: every name starts with `Scale.`; its 21-class head is dropped.
    - torchvision: has `fc.weight`, which is dropped; the first convolution is converted (`_to_bgr_input`).
    - authors' two heads: `layer6` is trained by nobody and dropped.
    - anything else is taken to have our names already (AdaptSegNet, CCM, CRST, ours).
    """
    if all(name.startswith("Scale.") for name in tensors):
        tensors = {name.removeprefix("Scale."): tensor for name, tensor in tensors.items()}
        return _without("Caffe initialisation", "layer5.", tensors)
    stem, mean = tensors.get("conv1.weight"), tensors.get("bn1.running_mean")
    if "fc.weight" in tensors and stem is not None and stem.ndim == 4 and stem.shape[1] == 3 and mean is not None:
        return _without("torchvision ImageNet", "fc.", _to_bgr_input(tensors))
    if any(name.startswith("layer6.") for name in tensors):
        return _without("two heads", "layer6.", tensors)
    return "one head", tensors, ()


def load_weights(model: nn.Module, source: str | Path | None) -> LoadReport:
    """Load a checkpoint into a DeepLabV2. source: a file, the word `imagenet`, or None for a random start.

    The backbone must fit tensor by tensor. Exceptions: old files have no `num_batches_tracked`; initialisations (Caffe,
    ImageNet) have no head, which then keeps its random start. Raises CheckpointError, with the model unchanged, for
    anything else.
    """
    expected = model.state_dict()
    if source is None:
        return LoadReport("none (random start)", 0, len(expected), tuple(expected))
    name, given, dropped = convert(_imagenet() if str(source) == IMAGENET else read_checkpoint(source))
    optional = {k for k in expected if k.endswith("num_batches_tracked")}
    if name in ("Caffe initialisation", "torchvision ImageNet"):
        optional |= {k for k in expected if k.startswith("layer5.")}
    missing = [k for k in expected if k not in given and k not in optional]
    unexpected = [k for k in given if k not in expected]
    other_shape = [k for k in given if k in expected and given[k].shape != expected[k].shape]
    other_kind = [k for k in given if k in expected and given[k].is_floating_point() != expected[k].is_floating_point()]
    if missing or unexpected or other_shape:
        raise CheckpointError(f"{source}: {_misfit(expected, given, missing, unexpected, other_shape)}")
    if other_kind:
        k = other_kind[0]
        raise CheckpointError(f"{source}: {k!r} holds {given[k].dtype}, expected {expected[k].dtype}: give a "
                              "checkpoint whose weights are floating-point numbers and whose counters are whole ones.")
    given = {k: v.to(expected[k].dtype) for k, v in given.items()}
    if broken := [k for k, v in given.items() if _fault(v) or k.endswith("running_var") and (v < 0).any()]:
        raise CheckpointError(f"{source}: {_some(broken)} hold values out of range (beyond "
                              f"{expected[broken[0]].dtype}, or a negative variance): this is no usable network, give "
                              "another checkpoint.")
    model.load_state_dict(given, strict=False)
    random_start = tuple(k for k in expected if k not in given and not k.endswith("num_batches_tracked"))
    return LoadReport(name, len(given), len(expected), random_start, dropped)


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the plain state dict, atomically: a reader finds the old file or the whole new one.

    Raises CheckpointError, with an old file left as it was, if weights are NaN or infinite or the disk refuses.
    """
    path = Path(path)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    broken = [k for k, v in state.items() if not _finite(v)]
    if broken:
        raise CheckpointError(f"{path}: not written, {_some(broken)} hold NaN or infinite values: lower learning_rate.")
    write_atomically(path, lambda file: torch.save(state, file))


def _to_bgr_input(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's network, fed with BGR - BGR_MEAN in 0..255 in place of (RGB / 255 - mean) / std.

    With x the RGB image and u = x - M our input (M the mean in RGB order), the first convolution is
    W * ((x / 255 - m) / s) = (W / 255 s) * u + k,  k = sum over input channels and taps of W (M / 255 - m) / s:
    scaled weights on flipped channels, and a constant that bn1 takes off with its running mean. At the border, zero
    padding stands for M here and for 255 m there.
    """
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (RGB_MEAN, RGB_STD))
    ours = torch.tensor(BGR_MEAN, dtype=torch.float64).flip(0).view(1, 3, 1, 1)
    weight, running_mean = tensors["conv1.weight"], tensors["bn1.running_mean"]
    constant = (weight.double() * (ours / 255 - mean) / std).sum((1, 2, 3))
    converted = (weight.double() / (255 * std)).flip(1)
    return {**tensors, "conv1.weight": converted.to(weight.dtype),
            "bn1.running_mean": (running_mean.double() - constant).to(running_mean.dtype)}


def _imagenet() -> dict[str, Tensor]:
    from torchvision.models import ResNet101_Weights
    try:
        return ResNet101_Weights.IMAGENET1K_V1.get_state_dict(progress=True)
    except Exception as error:
        raise CheckpointError(f"init_weight: {IMAGENET!r} could not be downloaded ({error}): fetch torchvision's "
                              "resnet101 weights elsewhere and give the file.") from None


def _without(name, prefix, tensors):
    dropped = tuple(k for k in tensors if k.startswith(prefix))
    return name, {k: v for k, v in tensors.items() if k not in dropped}, dropped


def _misfit(expected, given, missing, unexpected, other_shape):
    """One sentence: what does not fit, and which key to change."""
    head = "layer5.conv2d_list.0.weight"
    shapes = [f"{k} {tuple(given[k].shape)} for {tuple(expected[k].shape)}" for k in other_shape]
    if len(missing) + len(other_shape) >= len(expected) - sum(k.endswith("num_batches_tracked") for k in expected):
        advice = "it fits nothing of the network: give a DeepLabV2 checkpoint, and check the keys layers and width"
    elif other_shape and all(k.startswith("layer5.") for k in other_shape) and head in given:
        advice = f"it has {given[head].shape[0]} classes, the configuration {expected[head].shape[0]}: set num_classes"
    elif other_shape:
        advice = "sizes differ: check the keys width and num_classes"
    else:
        advice = "tensors do not match: check the key layers"
    found = [f"{len(names)} {what} ({_some(names)})" for what, names in
             (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)) if names]
    return f"{advice}; {', '.join(found)}."


def _some(names):
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _fault(tensor):
    """What makes a tensor unfit as a weight, or None."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
        return f"is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device.type}, expected plain numbers"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims {tuple(tensor.shape)} values, more than the file holds"
    return None if _finite(tensor) else "holds NaN or infinite values"


def _finite(tensor):
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0][:120]

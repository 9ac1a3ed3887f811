"""Checks that a checkpoint's tensors fit the network; the errors say what to do if they do not."""
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.deeplabv2 import DeepLabV2
from model.foreign import describe, some
from utils.config_keys import KEYS, known_classes
from utils.errors import CheckpointError

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
           torch.int8, torch.uint8, torch.bool)


def require_fit(source: str | Path, expected: dict[str, Tensor], given: dict[str, Tensor], headless: bool) -> None:
    """Raise CheckpointError, which starts with `source`, unless the tensors given are those expected, of the same
    shapes and kinds. `num_batches_tracked` may be missing, and, if `headless`, the head."""
    if any(_differences(expected, given, headless)):
        raise CheckpointError(f"{source}: {_misfit(expected, given, headless)}.")
    _require_kinds(source, expected, given)


def require_same(source: str | Path, expected: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """`require_fit` for networks other than DeepLabV2: names, shapes and kinds must be the same, but
    `num_batches_tracked` may be missing."""
    missing, unexpected, other_shape = _differences(expected, given, False)
    if not (missing or unexpected or other_shape):
        return _require_kinds(source, expected, given)
    shapes = [f"{k} {tuple(given[k].shape)} for {tuple(expected[k].shape)}" for k in other_shape]
    found = [f"{len(names)} {what} ({some(names)})" for what, names in
             (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)) if names]
    advice = "give a checkpoint of the network that model and model_args name"
    if unexpected and all(k.startswith("aux_classifier.") for k in unexpected):
        advice = "set model_args={aux_loss: True}, since the file has an auxiliary classifier"
    elif not missing and not unexpected and all(
            given[k].shape[1:] == expected[k].shape[1:] for k in other_shape):
        counts = sorted({given[k].shape[0] for k in other_shape})
        advice = f"it has {', '.join(map(str, counts))} outputs there: build the network with as many, by " \
                 "model_args, and name those that are the classes in output_channels, or set num_classes"
    raise CheckpointError(f"{source}: does not fit the network, {', '.join(found)}: {advice}.")


def require_in_range(source: str | Path, expected: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Raise CheckpointError if a value is not finite in the network's dtype, or a variance is negative."""
    if broken := [k for k, v in given.items() if fault(v) or k.endswith("running_var") and (v < 0).any()]:
        raise CheckpointError(f"{source}: {some(broken)} hold values out of range (beyond "
                              f"{expected[broken[0]].dtype}, or a negative variance): this is no usable network, give "
                              "another checkpoint.")


def counter(tensor: Tensor) -> Tensor:
    """A whole number in a tensor of one element and any type -> int64 []. Other tensors are returned unchanged."""
    whole = tensor.numel() == 1 and tensor.double().frac().eq(0).all()
    return tensor.long().reshape(()) if whole else tensor


def fault(tensor: Tensor) -> str | None:
    """What makes a tensor unusable as a weight, or None."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
        return f"is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device.type}, expected plain numbers"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims {tuple(tensor.shape)} values, more than the file holds"
    return None if finite(tensor) else "holds NaN or infinite values"


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _require_kinds(source, expected, given):
    for k, tensor in given.items():
        if tensor.is_floating_point() != expected[k].is_floating_point():
            raise CheckpointError(f"{source}: {k!r} holds {tensor.dtype}, expected {expected[k].dtype}: give a "
                                  "checkpoint whose weights are floating-point numbers and whose counters are whole "
                                  "ones.")


def _needed(expected, headless):
    return [k for k in expected if not k.endswith("num_batches_tracked") and not (headless and k.startswith("layer5."))]


def _differences(expected, given, headless):
    """The names that are (missing, unexpected, of another shape)."""
    return ([k for k in _needed(expected, headless) if k not in given],
            [k for k in given if k not in expected],
            [k for k in given if k in expected and given[k].shape != expected[k].shape])


def _misfit(expected, given, headless):
    """What does not fit, and what to do. If the file's network merely has another size, only that is said."""
    mine, theirs = deeplab_size(expected), deeplab_size(given)
    differing = [key for key in mine if theirs[key] not in (None, mine[key])]
    own = _of_size({**mine, **{k: v for k, v in theirs.items() if v is not None}}) if differing else None
    texts = {"num_classes": "{} classes", "layers": "layers={}", "width": "width={}"}
    shown = {key: str(list(v)).replace(" ", "") if isinstance(v, tuple) else v for key, v in theirs.items()}
    if own is not None and not any(_differences(own, given, headless)):
        has = ", ".join(texts[key].format(shown[key]) for key in differing)
        ours = ", ".join(str(list(mine[k]) if k == "layers" else mine[k]).replace(" ", "") for k in differing)
        return f"it has {has}, the configuration {ours}: set {' '.join(f'{k}={shown[k]}' for k in differing)}"
    reference = expected if own is None else own
    missing, unexpected, other_shape = _differences(reference, given, headless)
    shapes = [f"{k} {tuple(given[k].shape)} for {tuple(reference[k].shape)}" for k in other_shape]
    if missing and not unexpected and not shapes and all(k.startswith("layer5.") for k in missing):
        advice = "it has no head, or not all of it: give a checkpoint of the whole network; to start stage 0 from a " \
                 "backbone, init_weight=imagenet or the field's Caffe initialisation"
    elif "layer1.0.conv2.weight" in given and "layer1.0.conv3.weight" not in given:
        advice = "it is a ResNet-18 or -34, whose blocks have two convolutions: give one with bottlenecks, as " \
                 "ResNet-50 and -101 have"
    elif len(missing) + len(shapes) >= len(_needed(reference, headless)):
        advice = f"it fits nothing of the network: give a DeepLabV2 checkpoint; {describe(list(given))}"
    else:
        advice = "it is no DeepLabV2 of this kind or not all of one: give another checkpoint"
    found = [f"{len(names)} {what} ({some(names)})" for what, names in
             (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)) if names]
    return f"{advice}; {', '.join(found)}"


def deeplab_size(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """num_classes, layers and width of the DeepLabV2 with these tensors; None for what they do not show."""
    head, stem = tensors.get("layer5.conv2d_list.0.weight"), tensors.get("conv1.weight")
    parts = [name.split(".") for name in tensors]
    blocks = [{int(p[1]) for p in parts if p[0] == f"layer{i}" and len(p) > 2 and p[1].isdecimal() and len(p[1]) < 4}
              for i in range(1, 5)]
    return {"num_classes": head.shape[0] if head is not None and head.ndim == 4 else None,
            "layers": tuple(map(len, blocks)) if all(blocks) else None,
            "width": stem.shape[0] if stem is not None and stem.ndim == 4 else None}


def _of_size(size):
    """The state dict, without content, of a DeepLabV2 of that size; None if the configuration does not allow it."""
    keys = KEYS | known_classes("model")["deeplab"].keys
    if any(not keys[key].low <= n <= keys[key].high for key, value in size.items()
           for n in (value if isinstance(value, tuple) else (value,))):
        return None
    with torch.device("meta"):
        return DeepLabV2(**size).state_dict()

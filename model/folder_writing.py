"""Writing a model folder, which `model.folder` reads."""
import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from model.checkpoint_file import INPUT
from model.fit import finite
from model.folder import CONFIG, DOWNLOADS, FORMAT, SAFE, TRANSFORMERS, VERSION, WEIGHTS, input_statement
from model.foreign import some
from model.library_form import write_library_form
from model.segmenter import Segmenter
from utils.checkpoint import write_atomically
from utils.config import Config
from utils.config_values import plain
from utils.constants import InputConvention
from utils.errors import CheckpointError


def save_folder(folder: str | Path, network: Segmenter, cfg: Config, classes: Mapping[str, Any],
                provenance: Mapping[str, Any], state: Mapping[str, Tensor] | None = None) -> None:
    """Write a network as a model folder. Equal arguments give equal bytes.

    classes: `classes`, `palette` and `label_ids` of the network, as `dataset.class_sets.described` gives them.
    provenance: where the network comes from, for JSON. state: tensors to write in place of the network's own. A network
    of smp or transformers goes into a sub-folder once more, in its library's form. Each file is replaced atomically,
    config.json last. Raises CheckpointError if weights are not finite or the disk refuses.
    """
    folder, tensors = Path(folder), _separate(network.state_dict() if state is None else state)
    require_finite(folder, tensors)
    weights = safetensors.torch.save(tensors, {"format": "pt"})  # which transformers asks for
    write_atomically(folder / WEIGHTS, lambda file: file.write(weights))
    write_library_form(folder, network, cfg.model, tensors, classes["classes"])
    content = _described(network, cfg, classes, hashlib.sha256(weights).hexdigest())
    _write(folder / CONFIG, _json({**content, "provenance": provenance}) + "\n")


def save_safetensors(path: str | Path, tensors: Mapping[str, Tensor], convention: InputConvention) -> None:
    """Write tensors as one file, atomically, that states the network's input. Raises CheckpointError."""
    require_finite(Path(path), tensors)
    stated = {"format": "pt", INPUT: json.dumps(input_statement(convention))}
    content = safetensors.torch.save(_separate(tensors), stated)
    write_atomically(path, lambda file: file.write(content))


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if weights that are to be written to `path` hold NaN or infinity."""
    if broken := [name for name, tensor in tensors.items() if not finite(tensor)]:
        raise CheckpointError(f"{path}: not written, {some(broken)} hold NaN or infinite values: lower learning_rate.")


def _separate(state):
    """The tensors on the CPU, each with memory of its own, as safetensors asks for."""
    found, seen = {}, set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        found[name] = tensor
        seen.add(storage.data_ptr())
    return found


def _json(value, line="\n"):
    """JSON text, in which mappings have a line for each entry, and lists have one line."""
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value, ensure_ascii=False)
    entries = [f"{line} {json.dumps(name, ensure_ascii=False)}: {_json(v, f'{line} ')}" for name, v in value.items()]
    return f"{{{','.join(entries)}{line}}}"


def _write(path, text):
    write_atomically(path, lambda file: file.write(text.encode()))


def _described(network, cfg, classes, digest):
    """The content of config.json, but for the provenance."""
    interface, section = network.interface, cfg.target_data
    width, height = section.input_size
    aligned = "" if interface.align_corners else "not "
    padding = (f"pad below and on the right with zeros to multiples of {interface.size_multiple}; "
               if interface.size_multiple > 1 else "")
    return {
        "format": FORMAT, "version": VERSION,
        "network": network_keys(network, cfg),
        "input": {"words": f"resize the image to {width} x {height} pixels (width x height) by bicubic interpolation "
                           "with antialiasing; take its channels in `order` and its values in 0..`maximum`; subtract "
                           "`mean`, divide by `std`; layout [batch, bands, height, width]",
                  **dataclasses.asdict(interface.input), "input_size": [width, height], "bands": section.bands,
                  "value_range": plain(section.value_range)},
        "output": {"words": f"{padding}the network's scores are upsampled bilinearly, corners {aligned}aligned "
                            "(align_corners), to the size of the image; the largest one of a pixel is its class",
                   "align_corners": interface.align_corners, "size_multiple": interface.size_multiple,
                   "channels": plain(interface.channels)},
        "section": cfg.target, **{name: plain(classes[name]) for name in ("classes", "palette", "label_ids")},
        "id2label": {str(i): name for i, name in enumerate(classes["classes"])},
        "weights": {"file": WEIGHTS, "sha256": digest}}


def network_keys(network: Segmenter, cfg: Config) -> dict[str, Any]:
    """`model`, `num_classes` and the keys of the network's family, where these are None what the family knows: the same
    for a network that comes from its model folder."""
    keys = {name: plain(cfg.options[name]) for name, key in cfg.network_class.keys.items() if not key.may_change}
    if "input_order" in keys:
        interface = network.interface
        taken = interface.input
        keys |= {"input_order": taken.order, "input_max": taken.maximum, "input_mean": list(taken.mean),
                 "input_std": list(taken.std), "output": interface.output, "output_channels": plain(interface.channels),
                 "head": plain(interface.head), "size_multiple": interface.size_multiple,
                 "output_align_corners": interface.align_corners, "model_args": _arguments(network, cfg)}
    model = TRANSFORMERS if cfg.model.startswith("hf/") else cfg.model
    if not re.fullmatch(SAFE, model):
        model = re.split(r"[/\\]", model)[-1]  # a user's file, without its folder
    return {"model": model, "num_classes": cfg.num_classes, **keys}


def _arguments(network, cfg):
    """model_args for building the network again, whose weights are then loaded."""
    args = plain(cfg.options["model_args"])
    if cfg.model.startswith("hf/"):
        return None  # the folder in ours has the whole configuration
    if cfg.model.startswith(("smp/", "torchvision/")):
        args = {k: v for k, v in (args or {}).items() if k not in DOWNLOADS}
        if cfg.model.startswith("torchvision/") and getattr(network.network, "aux_classifier", None) is not None:
            args["aux_loss"] = True  # as weights that were downloaded may have asked for
    with contextlib.suppress(TypeError, ValueError):
        if not args or json.loads(json.dumps(args, allow_nan=False)) == args:
            return args or None
    return "cannot be written as JSON: give model_args={...} as the run had it"

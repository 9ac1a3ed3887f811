"""What a checkpoint tells about the configuration of a run that starts from it."""
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint_file import read_content
from model.conversion import convert
from model.deeplabv2 import DeepLabV2
from model.fit import deeplab_size
from model.folder import SAFE, folder_config, folder_content, is_folder
from model.foreign import other_network
from model.weights import file_of, load_weights, read_network
from utils.config_keys import Recognised, known_classes
from utils.errors import CheckpointError

_HOW = "set model to the network that it belongs to (torchvision/NAME, smp/ARCH:ENCODER, my_file.py:function)"


def recognise(checkpoint: str, model: str | None = None) -> Recognised:
    """What a file, `file#entry`, or a folder with config.json tells. No code in it is run. model: a value of that key,
    for a model folder of a user's own network. Raises CheckpointError if it cannot be read, or holds no trained one."""
    if os.path.isdir(checkpoint):
        return _of_folder(checkpoint, model)
    content = read_content(file_of(checkpoint))
    if other := other_network(content):
        return _of_other(checkpoint, content, other)
    kind, given, _ = convert(read_network(checkpoint).tensors)
    size = deeplab_size(given)
    if size["num_classes"] is None:
        raise CheckpointError(f"{checkpoint}: is an initialisation without a head ({kind}), no trained network: give "
                              "the checkpoint of one that is.")
    if None in size.values():
        return Recognised({"init_weight": checkpoint}, {}, (f"{checkpoint} holds a network that is not known: {_HOW}",))
    return _of_deeplab(checkpoint, kind, size)


def _of_deeplab(checkpoint, kind, size):
    """Load the network, so that what `load_weights` would refuse is refused now, with as many branches of its head as
    are trained."""
    for branches in (4, 3, 2, 1):
        report = load_weights(DeepLabV2(**size, head_branches=branches), checkpoint)
        if not any("set head_branches=" in warning for warning in report.warnings):
            break
    defaults = known_classes("model")["deeplab"].keys
    values = {"model": "deeplab", "init_weight": checkpoint, **size, "head_branches": branches}
    keys = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()
            if k not in defaults or v != defaults[k].default}
    return Recognised(keys, {}, tuple(f"{checkpoint}: {text}" for text in (report.facts, *report.warnings)),
                      _weight(size["layers"], size["width"]))


def _weight(layers: Sequence[int], width: int) -> float:
    """What a DeepLabV2 keeps for each pixel in training, beside one on a ResNet-101: the channels of the stem and of
    each block, by their resolution."""
    def kept(layers, width):
        return width * (0.75 + 4 * sum(n * 2**i / (64 if i else 16) for i, n in enumerate(layers)))
    return kept(layers, width) / kept((3, 4, 23, 3), 64)


def _of_other(checkpoint, content, looks):
    """A network that is no DeepLabV2: its head is not known, so neither is its number of classes."""
    return Recognised({"init_weight": checkpoint}, {}, (
        f"{checkpoint} holds another network than deeplab ({looks}): {_HOW}, and num_classes",))


def _of_folder(folder, model):
    if is_folder(folder):
        own = re.fullmatch(SAFE, str(folder_content(folder)["network"].get("model")))
        cfg = folder_config(folder, [f"model={model}"] if model and not own else [])
        keys = {key: value for key, value in cfg.options.items()
                if key in cfg.network_class.keys and value != cfg.network_class.keys[key].default}
        section = {key: getattr(cfg.target_data, key) for key in ("input_size", "classes", "palette", "bands",
                                                                  "value_range")}
        return Recognised({"model": cfg.model, "init_weight": folder, "num_classes": cfg.num_classes, **keys},
                          {k: v for k, v in section.items() if v is not None}, (),
                          _weight(cfg.options["layers"], cfg.options["width"]) if cfg.model == "deeplab" else None)
    try:
        found = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        names = {int(i): str(name) for i, name in found.get("id2label", {}).items()}
    except (OSError, ValueError, AttributeError):
        raise CheckpointError(f"{folder}: is a folder without a config.json that can be read: give a checkpoint, a "
                              "model folder, or one that save_pretrained has written.") from None
    if "model_type" not in found:
        return Recognised({"init_weight": folder}, {}, (
            f"{folder} is no folder of transformers or of this program: {_HOW}, and give its weights as a file",))
    count = len(names) or found.get("num_labels")
    classes = {"classes": [names[i] for i in sorted(names)]} if sorted(names) == list(range(len(names))) else {}
    keys = {"model": f"hf/{folder}", "init_weight": None, **({"num_classes": count} if count else {})}
    return Recognised(keys, classes if count else {}, (f"{folder}: a {found['model_type']} network of transformers",))

"""Reading a model folder: `model.safetensors` and `config.json`, from which another program, too, can load a network.

config.json describes the network, its input and output, its classes and where it comes from. It is read as input that
anybody may have written: nothing in it can name code that is run, a file outside the folder, or a download.
"""
import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint_file import INPUT, read_content
from utils.config import Config, config_of, load_config
from utils.config_keys import KEYS, NO_EFFECT, find_class
from utils.config_values import nearest, shown
from utils.constants import INPUTS, InputConvention
from utils.errors import CheckpointError, ConfigError, first_line

FORMAT, VERSION = "ldbe-model", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
TRANSFORMERS = "hf/transformers"  # `model` of a network of transformers, whose folder is inside ours
SAFE = r"deeplab|torchvision/\w+|smp/\w+:[\w.-]+|" + TRANSFORMERS  # values of `model` that name no user's code
# Arguments by which libraries download weights or read them from any file; the last ones are of timm's encoders.
DOWNLOADS = ("weights", "weights_backbone", "encoder_weights", "checkpoint_path", "cache_dir", "pretrained",
             "pretrained_cfg", "pretrained_cfg_overlay")
_FETCHES = {  # entries of a configuration of transformers -> whether a value has it fetch weights, settings or code
    **dict.fromkeys(("use_pretrained_backbone", "quantization_config", "trust_remote_code", "checkpoint_path"), bool),
    **dict.fromkeys(("attn_implementation", "_attn_implementation"), lambda value: "/" in str(value)),
    "backbone": lambda value: bool(re.search(r"[/\\:]", str(value)))}  # a repository or a path, no name of timm
_LARGEST = 2**22  # bytes of a config.json
_SECTION = ("input_size", "bands", "value_range", "classes", "palette", "label_ids")  # keys of the section


def is_folder(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is a model folder of this project, whole or not. A folder of transformers or smp is none."""
    try:
        with open(Path(checkpoint) / CONFIG, "rb") as file:
            return bool(re.search(rf'"format"\s*:\s*"{FORMAT}"'.encode(), file.read(_LARGEST)))
    except (OSError, ValueError):
        return False


def folder_config(folder: str | Path, words: Sequence[str] = ()) -> Config:
    """The configuration of a model folder's network, with `key=value` words on top. Its `init_weight` is the folder;
    its target is a section with the classes and the image size.

    Raises ConfigError, CheckpointError. Python code is run only if a word names it, `model=my_file.py:function`.
    """
    content, where = folder_content(folder), f"{folder}: {CONFIG}"
    network = dict(content["network"])
    trusted = [name for name in ("model", "model_args") if any(word.startswith(f"{name}=") for word in words)]
    network["model"] = _model(network.get("model"), folder, where, "model" in trusted)
    family = find_class("model", network["model"]).keys
    known = {"model", "num_classes", *(name for name, key in family.items() if not key.may_change)}
    if unknown := [name for name in network if name not in known]:
        raise ConfigError(f"{where}: network has an unknown key {shown(unknown[0])}{nearest(unknown[0], known)}.")
    if "model_args" in trusted:
        network["model_args"] = None
    _require_plain_arguments(network, where)
    section = content.get("section")
    if not isinstance(section, str) or not re.fullmatch(r"[^.=\s]+", section) or section in (*known, *KEYS, *NO_EFFECT):
        raise ConfigError(f"{where}: section: expected the name of a data set, found {shown(section)}.")
    data = {**content["input"], **content}
    tree = {**network, "source": section, "target": section,
            section: {"type": "folder", "data_dir": ".", "images": "{split}",
                      **{name: data[name] for name in _SECTION if data.get(name) is not None}}}
    own = {} if any(word.startswith("init_weight=") for word in words) else {"init_weight": str(folder)}
    try:
        cfg = config_of(tree, where, list(words), **own)
    except ConfigError as error:
        raise ConfigError(str(error) if words or where in str(error) else f"{where}: {error}") from None
    _require_as_large(cfg, Path(folder))
    return cfg


def config_for(file: str | None, checkpoint: str | None, words: Sequence[str]) -> Config:
    """The configuration of a YAML file or, without one, of a checkpoint that is a model folder, with `key=value` words
    on top. Raises ConfigError if there is neither."""
    if file:
        return load_config(file, tuple(words))
    if checkpoint and is_folder(checkpoint):
        return folder_config(checkpoint, words)
    if checkpoint and not os.path.exists(checkpoint.partition("#")[0]):
        raise CheckpointError(f"{checkpoint}: no such checkpoint: check the path.")
    beside = checkpoint and os.path.splitext(checkpoint)[0]
    instead = f", or the folder {beside}" if beside and beside != checkpoint and is_folder(beside) else ""
    raise ConfigError(f"--config: missing: {checkpoint or 'no checkpoint'} is no model folder, which describes its "
                      f"network: give the YAML file{instead}.")


def folder_content(folder: str | Path) -> dict[str, Any]:
    """The content of a model folder's config.json, of which the parts are there and of the right kinds. Raises
    CheckpointError."""
    where = f"{folder}: {CONFIG}"
    try:
        with open(Path(folder) / CONFIG, "rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes")
        content = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_number)
        json.dumps(content, ensure_ascii=False).encode()  # no half of a character
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} cannot be read ({first_line(error)}): write the folder again.") from None
    kind = (content.get("format"), content.get("version")) if isinstance(content, dict) else ()
    if kind != (FORMAT, VERSION):
        raise CheckpointError(f"{where}: expected the format {FORMAT!r} of version {VERSION}, found {shown(kind)}: "
                              "write the folder with this version of the program.")
    for part in ("network", "input", "output", "weights"):
        if not isinstance(content.get(part), dict):
            raise CheckpointError(f"{where}: {part}: expected a mapping, found {shown(content.get(part))}.")
    return content


def read_folder(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a model folder, as a state dict that states the network's input in its metadata. Raises
    CheckpointError, also if the weights are not those that config.json was written for."""
    content, path = folder_content(folder), Path(folder) / WEIGHTS
    if content["weights"].get("file") != WEIGHTS:
        raise CheckpointError(f"{folder}: {CONFIG}: weights.file: expected {WEIGHTS!r}, found "
                              f"{shown(content['weights'].get('file'))}.")
    if not path.is_file():
        raise CheckpointError(f"{folder}: has no {WEIGHTS}: copy the whole folder again.")
    if file_sha256(path) != content["weights"].get("sha256"):
        raise CheckpointError(f"{folder}: {CONFIG} was written for another {WEIGHTS} (their SHA-256 differ): a copy or "
                              "a run was cut off while it replaced them; copy or write the folder again.")
    state: Any = read_content(path)
    state._metadata = {"": {INPUT: input_statement(_convention(content["input"], f"{folder}: {CONFIG}"))}}
    return state


def input_statement(convention: InputConvention) -> str | dict[str, Any]:
    """An input convention as it is stated beside weights: its name in INPUTS, or its fields."""
    return next((name for name, known in INPUTS.items() if known == convention), dataclasses.asdict(convention))


def stated_input(content: object) -> str | InputConvention:
    """The input that the content of a checkpoint of this project states, a name of INPUTS or a convention; empty for
    other files, whose metadata may be anything."""
    metadata = getattr(content, "_metadata", None)
    stated = metadata.get("") if isinstance(metadata, dict) else None
    found: Any = stated.get(INPUT) if isinstance(stated, dict) else None
    if isinstance(found, str):
        return found if found in INPUTS else ""
    try:
        return InputConvention(found["order"], found["maximum"], tuple(found["mean"]), tuple(found["std"]))
    except (TypeError, KeyError):
        return ""


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    result = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(2**20):
                result.update(part)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)}): check its permissions.") from None
    return result.hexdigest()


def _model(model, folder, where, trusted):
    """The value of `model` that a folder names, checked. trusted: the command line gives another one."""
    if not isinstance(model, str):
        raise ConfigError(f"{where}: network.model: expected a text, found {shown(model)}.")
    if model == TRANSFORMERS:
        inner = os.path.join(os.path.abspath(folder), "transformers")
        if ".py:" in inner:
            raise ConfigError(f"{where}: a folder with '.py:' in its path cannot be loaded: rename it.")
        if not trusted:
            _require_nothing_fetched(Path(inner, CONFIG), where)
        return f"hf/{inner}"
    if re.fullmatch(SAFE, model):
        return model
    if not re.fullmatch(r"[^/\\:]+:\w+", model):
        raise ConfigError(f"{where}: network.model: {shown(model)} is no network that a folder can name.")
    if not trusted:
        raise ConfigError(f"{where}: the network is Python code, {model}, which a folder cannot have run: if you trust "
                          f"that file and have it, add model={model} (with the path where it is), or name another "
                          "function that builds it.")
    return model


def _require_nothing_fetched(path, where):
    """Raise ConfigError if a configuration of transformers has it fetch anything."""
    waiting = []
    with contextlib.suppress(OSError, ValueError, RecursionError):  # of which transformers will tell
        waiting += [json.loads(path.read_bytes())]
    for part in waiting:  # which grows meanwhile
        entries = part if isinstance(part, dict) else dict(enumerate(part)) if isinstance(part, list) else {}
        waiting += entries.values()
        if name := next((name for name, fetches in _FETCHES.items() if fetches(entries.get(name, ""))), None):
            raise ConfigError(f"{where}: transformers/{CONFIG} has {name}={shown(entries[name])}, for which a folder "
                              f"cannot ask: if you trust it, give model=hf/{path.parent}.")


def _require_plain_arguments(network, where):
    """Raise ConfigError for arguments that would run code of a folder or download anything."""
    model, args = network["model"], network.get("model_args")
    if args is None:
        return
    refused = [name for name in (args if isinstance(args, dict) else ())
               if model.startswith("hf/") or model.startswith(("smp/", "torchvision/")) and name in DOWNLOADS]
    if refused or not isinstance(args, dict):
        what = shown(refused[0] if refused else args)
        raise ConfigError(f"{where}: network.model_args: {what} is nothing that a folder can give: if you trust it, "
                          "give model_args={...} on the command line.")


def _require_as_large(cfg, folder):
    """Raise CheckpointError if the network that config.json describes is much larger than the folder's weights, before
    its memory is taken. What else is wrong with it is left to those who build and load it."""
    weights, needed = folder / WEIGHTS, 0
    if not weights.is_file():
        return
    size = weights.stat().st_size
    if cfg.model == "deeplab":
        width, layers = cfg.options["width"], cfg.options["layers"]
        needed = 4 * width**2 * sum(n * 17 * 4**i for i, n in enumerate(layers))  # a block: 1x1, 3x3 and 1x1
    elif cfg.model.startswith("smp/") and cfg.options["model_args"]:
        with contextlib.suppress(Exception), torch.device("meta"):
            family = cfg.network_class(cfg.options)
            built = family._build(cfg.model, cfg.num_classes, family._arguments())
            needed = sum(t.numel() * t.element_size() for t in built.state_dict().values())
    if needed > 2 * size + 2**20:
        raise CheckpointError(f"{folder}: {CONFIG}: the network that it describes has {needed} bytes of weights, "
                              f"{WEIGHTS} has {size}: they do not belong together.")


def _convention(found, where):
    """The input convention in a config.json."""
    def numbers(values, low):
        return isinstance(values, list) and 1 <= len(values) <= 16 and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and low < v < 1e30 for v in values)
    order, maximum, mean, std = (found.get(name) for name in ("order", "maximum", "mean", "std"))
    if order not in ("rgb", "bgr") or not numbers([maximum], 0) or not numbers(mean, -1e30) or not numbers(std, 0) \
            or len(mean) != len(std):
        raise CheckpointError(f"{where}: input: expected order, maximum, mean and std, found "
                              f"{shown({'order': order, 'maximum': maximum, 'mean': mean, 'std': std})}.")
    return InputConvention(order, maximum, tuple(mean), tuple(std))


def _once(pairs):
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is given twice")
    return content


def _no_number(text):
    raise ValueError(f"{text} is no number")
